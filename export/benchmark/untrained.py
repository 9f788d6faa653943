"""`python -m export.benchmark.untrained SIZE BUNDLE`: a bundle to measure where none is at hand.

Its student has random weights, the same ones each time, and takes as long as a trained one.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deitlt.bundle import FLOAT32, GOLDEN, Bundle, check_free
from deitlt.errors import UsageError
from deitlt.golden import write_golden
from deitlt.program import OneLineParser, run_program
from deitlt.student import SIZES, StudentConfig
from export.benchmark.artefacts import Subject, write, write_minimal_bundle
from export.benchmark.rows import ROWS
from export.benchmark.students import made_up_images, untrained
from export.parity import PlainStudent

PROGRAM = "export.benchmark.untrained"
NUM_GOLDEN = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Write a bundle; returns 0, or 2 with one line on what was wrong."""
    arguments = _parser().parse_args(argv)
    return run_program(PROGRAM, lambda: _write(arguments), output=arguments.bundle)


def _parser() -> OneLineParser:
    parser = OneLineParser(prog=f"python -m {PROGRAM}", description=__doc__)
    parser.add_argument("size", choices=tuple(SIZES), help="of the student")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle folder to write")
    parser.add_argument("--img-size", type=int, default=224, help="its input, px (224)")
    parser.add_argument("--patch-size", type=int, default=16, help="its patches, px (16)")
    parser.add_argument("--num-classes", type=int, default=1000, help="its classes (1000)")
    return parser


def _write(arguments: argparse.Namespace) -> None:
    for name, least in (("img_size", 1), ("patch_size", 1), ("num_classes", 2)):
        if (value := getattr(arguments, name)) < least:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    config = StudentConfig(
        size=arguments.size,
        img_size=arguments.img_size,
        patch_size=arguments.patch_size,
        num_classes=arguments.num_classes,
    )
    print(write_untrained(config, arguments.bundle.resolve()).describe())


def write_untrained(config: StudentConfig, output: Path) -> Bundle:
    """A bundle of the float32 graph of a student with random weights, with golden images.

    Raises:
        BundleError: there is something at `output`.
        UsageError: the patches do not divide the image.
    """
    check_free(output, overwrite=False)
    student = untrained(config, None, 0)
    pixels = made_up_images(NUM_GOLDEN, config.img_size, seed=3)
    expected = PlainStudent(student.model, student.card).run(pixels)

    def write_images(folder: Path) -> None:
        write_golden(folder / GOLDEN, pixels, expected)

    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(student.model, student.card, student.calibration, "cpu", Path(folder))
        write(subject, ROWS[FLOAT32].file)
        return write_minimal_bundle(subject, output, write_images)


if __name__ == "__main__":
    sys.exit(main())
