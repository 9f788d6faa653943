"""`deitlt predict` over hundreds of hostile images with good ones between them."""

import warnings
from pathlib import Path

import pytest

from deitlt.classifier import load
from deitlt.errors import ImageError
from tests.bundle_support import DIGITS
from tests.hostile_support import hostile_images
from tests.predict_support import predict, read_rows
from tests.service_support import picture


def test_every_hostile_image_has_its_row_and_no_good_one_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, good = tmp_path / "images", picture(1)
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about what these files do on purpose
        hostile = hostile_images()
        expected = load(DIGITS, device="cpu", num_threads=1).predict_each([h.data for h in hostile])
    (right,) = load(DIGITS, device="cpu", num_threads=1).predict([good])
    for number, image in enumerate(hostile):
        (folder / f"{number:03}.a.png").write_bytes(image.data)
        (folder / f"{number:03}.b.png").write_bytes(good)
    output = tmp_path / "rows.csv"
    assert predict(folder, "--output", output, "-j", "2") == 3
    rows = read_rows(output)
    assert [row["filename"] for row in rows] == sorted(path.name for path in folder.iterdir())
    num_failed = 0
    for row, outcome, image in zip(rows[::2], expected, hostile, strict=True):
        if isinstance(outcome, ImageError):
            num_failed += 1
            assert (row["error"], row["label"]) == (outcome.code, ""), image.name
        else:
            assert (row["error"], row["label"]) == ("", outcome.label), image.name
            assert float(row["prob"]) == pytest.approx(outcome.probability, abs=1e-6), image.name
    assert 100 < num_failed < len(hostile)
    assert {(row["label"], row["error"]) for row in rows[1::2]} == {(right.label, "")}
    assert f"{2 * len(hostile)} images" in capsys.readouterr().err
