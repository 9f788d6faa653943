"""A bundle with random weights, for whoever measures without a trained one."""

from pathlib import Path

import pytest

from deitlt.bundle import FLOAT32, open_bundle
from deitlt.golden import check_golden
from export.benchmark import untrained


def test_a_bundle_to_measure_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "nano"
    shape = ["--img-size", "32", "--patch-size", "4", "--num-classes", "10"]
    assert untrained.main(["nano", str(folder), *shape]) == 0
    bundle = open_bundle(folder)
    assert (bundle.name, len(bundle.classes), bundle.preprocess.img_size) == ("nano", 10, 32)
    assert "8 golden images" in check_golden(bundle)
    again = tmp_path / "again"
    assert untrained.main(["nano", str(again), *shape]) == 0
    same = [open_bundle(path).artefact(FLOAT32).path.read_bytes() for path in (folder, again)]
    assert same[0] == same[1]  # so figures of two machines are of the same model
    assert untrained.main(["nano", str(folder), *shape]) == 2


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--img-size", "0"], "--img-size is 0; it must be at least 1"),
        (["--num-classes", "1"], "--num-classes is 1; it must be at least 2"),
        (["--img-size", "30"], "--img-size 30 is not a multiple of --patch-size 16"),
    ],
)
def test_a_mistake_is_one_line(
    flags: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert untrained.main(["nano", str(tmp_path / "bundle"), *flags]) == 2
    assert capsys.readouterr().err == f"export.benchmark.untrained: {complaint}\n"
    assert not (tmp_path / "bundle").exists()
