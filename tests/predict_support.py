"""What the tests of `deitlt predict` share: a run, its rows, a runtime that is free."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deitlt.batch.sources import Source, find_sources
from deitlt.bundle import open_bundle
from deitlt.classifier import Classifier
from deitlt.cli import main
from deitlt.errors import ImageError
from deitlt.preprocess import Pixels
from deitlt.runtimes import Outputs
from tests.bundle_support import DIGITS

FORMATS = ["csv", "jsonl", "parquet"]
COMPRESSIONS = {".tar": "", ".tar.gz": "gz", ".tgz": "gz", ".tar.bz2": "bz2", ".tar.xz": "xz"}

BreakOff = Callable[[int], None]


class HashRuntime:
    """Logits that depend on every pixel and on nothing else."""

    provider = "HashExecutionProvider"

    def run(self, pixels: Pixels) -> Outputs:
        """Logits of `(B, S, S, 3)` uint8 pixels."""
        seeds = [int(image.astype(np.uint64).cumsum().sum()) for image in pixels]
        cls, dist = (
            np.stack([np.random.default_rng([seed, head]).normal(size=10) for seed in seeds])
            for head in (0, 1)
        )
        features = (cls[:, :4], dist[:, :4])  # stand for what the heads read
        heads = ((cls + dist) / 2, cls, dist, *features)
        return Outputs(*(scores.astype(np.float32) for scores in heads))


def hash_classifier() -> Classifier:
    """The digits bundle without its model."""
    return Classifier(open_bundle(DIGITS), HashRuntime())


def predict(*arguments: object) -> int:
    """The exit status with digits, whether it is returned or argparse exits with it."""
    model = ("--model", str(DIGITS))  # another among the arguments comes later, and so counts
    try:
        return main(["predict", *model, "--device", "cpu", *map(str, arguments)])
    except SystemExit as exit_status:
        return int(exit_status.code or 0)


def read_rows(output: Path) -> list[dict[str, Any]]:
    """Rows as the library of the format reads them; of a CSV all cells are text."""
    if output.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = pq.read_table(output).to_pylist()
        return rows
    with output.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        if output.suffix == ".jsonl":
            return [json.loads(line) for line in file]
        return list(csv.DictReader(file))


def file_names(output: Path) -> list[str]:
    """What the rows of an output are of, in order."""
    return [row["filename"] for row in read_rows(output)]


def names(*inputs: object, lists: Iterable[object] = ()) -> list[str]:
    sources = find_sources([str(item) for item in inputs], [str(item) for item in lists])
    return [source.filename for source in sources]


def content(source: Source) -> bytes:
    read = source.read()
    return read.read_bytes() if isinstance(read, Path) else bytes(read)  # type: ignore[arg-type]


def error_of(source: Source) -> ImageError:
    with pytest.raises(ImageError) as caught:
        source.read()
    return caught.value


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    mode: Any = f"w:{COMPRESSIONS[''.join(path.suffixes)]}"
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


class Ended(Exception):
    """What the fixture `breaks_off` breaks off with."""
