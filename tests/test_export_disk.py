"""Each writer of the export on a disk that fills up: an `OSError`, which the program prints."""

from pathlib import Path

import pytest

from deitlt.preprocess import PreprocessSpec
from deitlt.student import DeiTLT, StudentConfig
from deitlt.weights import Card
from export.fuse import FusedStudent
from export.quantize import quantize_int8
from export.to_onnx import export_onnx
from export.variants import VARIANTS
from tests.disk_support import largest_file
from tests.export_support import card_of, noise_student, photo_pixels

SPEC = PreprocessSpec(16)


@pytest.fixture(scope="module")
def student() -> DeiTLT:
    return noise_student(StudentConfig(size="pico", img_size=16, patch_size=8, num_classes=3))


@pytest.fixture(scope="module")
def card(student: DeiTLT) -> Card:
    return card_of(student, SPEC)


@pytest.mark.parametrize("name", ["fp16", "torchscript", "pt2"])
def test_a_writer_says_that_the_disk_is_full(
    name: str, student: DeiTLT, card: Card, tmp_path: Path
) -> None:
    write = VARIANTS[name].write
    assert write is not None
    with largest_file(20_000), pytest.raises(OSError, match="File too large"):
        write(student, card, "matmul", tmp_path / "artefact")


def test_int8_says_that_the_disk_is_full(student: DeiTLT, card: Card, tmp_path: Path) -> None:
    source, pixels = tmp_path / "model.onnx", photo_pixels(4, SPEC)
    export_onnx(FusedStudent(student, SPEC), card, source)
    whole = source.stat().st_size
    # The graphs that it writes on its way are as large as the float32 one.
    for size in (0, 1000, whole // 4, whole // 2, whole - 1):
        with largest_file(size), pytest.raises(OSError, match="File too large"):
            quantize_int8(source, tmp_path / "int8.onnx", pixels)
    assert not (tmp_path / "int8.onnx").exists()
