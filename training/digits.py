"""`python -m training.digits FOLDER`: scikit-learn's handwritten digits as PNG class folders.

1,797 real scans of 8 x 8 px from 43 writers (UCI optical recognition of handwritten digits), which
come inside the scikit-learn package, so nothing is downloaded.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

# The rarest digit has 174 images. The first 44 of each, in scikit-learn's order, are the test set.
TEST_IMAGES = 44
TRAIN_IMAGES = 130
BRIGHTEST = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Write the data set; returns 0, or 2 for wrong use."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) != 1:
        print("usage: python -m training.digits FOLDER", file=sys.stderr)
        return 2
    write_digits(Path(arguments[0]))
    return 0


def write_digits(folder: Path) -> None:
    """Write `train/<digit>/*.png`, 130 a class, and `test/<digit>/*.png`, 44 a class."""
    digits = load_digits()
    for digit in range(10):
        images = digits.images[digits.target == digit]
        for number, image in enumerate(images[: TEST_IMAGES + TRAIN_IMAGES]):
            split = "test" if number < TEST_IMAGES else "train"
            path = folder / split / str(digit) / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.round(image * (255 / BRIGHTEST)).astype(np.uint8)
            Image.fromarray(pixels).save(path)


if __name__ == "__main__":
    sys.exit(main())
