"""`python -m training.prepare cifar10 --output DIR`: CIFAR as a tree of lossless PNG files.

The files of a class sort as the images stand in the original, so that `--imbalance-factor` with its
default seed draws the very images of the paper, and teacher and student those of LDAM-DRW.
"""

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity
from tqdm import tqdm

from deitlt.errors import DataError, UsageError
from deitlt.files import new_folder
from training.command_line import parse, run_program

PROGRAM = "training.prepare"
SETS: dict[str, Any] = {"cifar10": CIFAR10, "cifar100": CIFAR100}


@dataclass(frozen=True, kw_only=True)
class PrepareCommand:
    """What `prepare` is told."""

    dataset: Annotated[Literal["cifar10", "cifar100"], tyro.conf.Positional]
    """Which set."""
    output: Path
    """Folder to write; there must be none yet."""
    source: Path | None = None
    """Folder with the set as it is published, packed or unpacked, or to download it to; by default
    a download is not kept."""
    download: bool = True
    """Download the set where --source lacks it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the data set; returns 0, or 2 with one line on what was wrong."""
    return run_program(PROGRAM, argv, _main, interrupted="interrupted; nothing was written")


def _main(argv: list[str]) -> None:
    prepare(parse(PROGRAM, PrepareCommand, argv))


def prepare(command: PrepareCommand) -> None:
    """Write `train/<class>/<index>.png` and `test/<class>/<index>.png`, all or nothing.

    `index` is the image's place in the original split, so sorted files keep its order; classes are
    called as torchvision calls them, and their alphabetical order is that of the labels.

    Raises:
        UsageError: the output exists, or there is neither a source nor leave to download.
        DataError: the set is not in the source, or cannot be downloaded or read.
    """
    if command.output.exists():
        raise UsageError(f"{command.output}: exists already; remove it or name another --output")
    if command.source is None and not command.download:
        raise UsageError("--no-download needs --source, the folder that holds the set")
    with ExitStack() as stack:
        folder = stack.enter_context(new_folder(command.output, overwrite=False))
        source = command.source or Path(
            stack.enter_context(tempfile.TemporaryDirectory(dir=command.output.parent))
        )
        splits = _load(SETS[command.dataset], source, download=command.download)
        for name, images in splits.items():
            _write_split(folder / name, images)
    train, test = splits["train"], splits["test"]
    print(
        f"{command.output}: {len(train)} training and {len(test)} test images of "
        f"{len(train.classes)} classes; train on it with --imbalance-factor 100"
    )


def _load(kind: Any, source: Path, *, download: bool) -> dict[str, Any]:
    # torchvision unpacks an archive only if it may download, which a sound archive makes needless.
    packed = check_integrity(source / kind.filename, kind.tgz_md5)
    try:
        return {
            name: kind(source, train=name == "train", download=download or packed)
            for name in ("train", "test")
        }
    except (OSError, RuntimeError, EOFError, HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if download:
            text = f"{kind.url}: cannot be downloaded and read ({reason}); get it by other means "
            text += "and name its folder with --source"
        else:
            text = f"{source}: holds no sound {kind.filename} or {kind.base_folder} ({reason})"
        raise DataError(text) from error


def _write_split(folder: Path, images: Any) -> None:
    assert images.classes == sorted(images.classes), "labels follow the alphabet in both sets"
    for name in images.classes:
        (folder / name).mkdir(parents=True)
    width = len(str(len(images) - 1))
    for index in tqdm(range(len(images)), f"writing {folder.name}", unit="image", disable=None):
        name = images.classes[images.targets[index]]
        Image.fromarray(images.data[index]).save(folder / name / f"{index:0{width}d}.png")


if __name__ == "__main__":
    sys.exit(main())
