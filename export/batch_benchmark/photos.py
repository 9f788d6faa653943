"""Made-up photographs: JPEG files of many sizes with detail of every scale."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SEED = 0
# (width, height) px: as most pictures of ImageNet are, and as those of the web and old cameras.
IMAGENET_SIZES = ((500, 375), (375, 500), (500, 333), (640, 480), (400, 300), (500, 375))
WEB_SIZES = ((1024, 768), (800, 600), (1280, 960), (960, 1280), (1600, 1200), (640, 480))
QUALITY = 90
CANVAS_PX = 2048
# Each finer layer is weaker by this factor, as in photographs, whose spectrum falls with frequency.
FALL = 0.72


def write_photos(folder: Path, number: int, sizes: Sequence[tuple[int, int]]) -> list[Path]:
    """Write `number` pictures in turns of `sizes`, pieces of one canvas, into a new folder."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(SEED)
    canvas = _canvas(generator)
    paths = [folder / f"{i:05}.jpg" for i in range(number)]
    for i, path in enumerate(paths):
        width, height = sizes[i % len(sizes)]
        left, top = (int(generator.integers(CANVAS_PX - side)) for side in (width, height))
        buffer = BytesIO()
        piece = Image.fromarray(canvas[top : top + height, left : left + width])
        piece.save(buffer, "JPEG", quality=QUALITY)
        path.write_bytes(buffer.getvalue())
    return paths


def decode_bare(paths: Sequence[Path], side: int) -> int:
    """Decode and resize pictures with Pillow and nothing else; returns how many."""
    for path in paths:
        # From memory, and converted only if need be: either takes a tenth longer otherwise.
        image: Image.Image = Image.open(BytesIO(path.read_bytes()))
        image.load()
        if image.mode != "RGB":
            image = image.convert("RGB")
        scale = side / min(image.size)
        width, height = (int(length * scale) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - side) // 2, (height - side) // 2
        np.asarray(image.crop((left, top, left + side, top + side)))
    return len(paths)


def _canvas(generator: np.random.Generator) -> NDArray[np.uint8]:
    """Noise of every scale, `(CANVAS_PX, CANVAS_PX, 3)`."""
    total = np.zeros((CANVAS_PX, CANVAS_PX, 3), np.float32)
    side, strength = 4, 0.6
    while side <= CANVAS_PX:
        layer = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
        picture = Image.fromarray(layer).resize((CANVAS_PX, CANVAS_PX), Image.Resampling.BICUBIC)
        total += (np.asarray(picture, np.float32) - 128) * strength
        side, strength = side * 2, strength * FALL
    return np.clip(128 + total, 0, 255).astype(np.uint8)
