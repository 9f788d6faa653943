"""The benchmark of batch prediction runs, and says what it measured."""

import json
from pathlib import Path

import pytest

from export.batch_benchmark.__main__ import main
from export.batch_benchmark.memory import Memory, summary
from export.batch_benchmark.turns import Pace


def test_a_quick_run_has_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--json", str(tmp_path / "figures.json")]) == 0
    parts = json.loads((tmp_path / "figures.json").read_text())["parts"]
    assert [len(parts[part]) for part in "abc"] == [6, 3, 3]
    for part in "abc":
        rows = list(parts[part].values())
        assert rows[0]["ratio"] == 1
        assert all(row["images_per_s"] > 0 for row in rows)
    assert set(parts["d"]["rows"]) <= set(range(20, 201, 20))
    assert min(parts["d"]["mib"]) > 20
    shown = capsys.readouterr().out
    assert "python -m export.batch_benchmark --quick --json" in shown
    assert "timm's inference" in shown


def test_ratios_are_of_the_same_round() -> None:
    slow_machine = Pace([100.0, 10.0, 50.0], [10.0, 10.0, 20.0])
    ours = Pace([200.0, 20.0, 25.0], [5.0, 5.0, 10.0])
    assert ours.times(slow_machine) == 2
    assert ours.cpu_times(slow_machine) == 2
    assert ours.cpu_times(Pace([1.0] * 3, [1.0] * 3)) == 0.2
    assert Pace([1.0], [0.0]).cpu_times(Pace([1.0], [1.0])) is None


@pytest.mark.parametrize(
    ("mib", "flat"),
    [([100, 101, 102, 101], True), ([100, 110, 120, 130], False), ([100], None)],
)
def test_memory_that_grows_is_not_flat(mib: list[float], flat: bool | None) -> None:
    assert Memory(list(range(len(mib))), mib, 1.0).flat == flat


def test_the_most_memory_of_each_tenth_counts() -> None:
    samples = [(0, 10.0), (9, 30.0), (10, 20.0), (99, 15.0), (100, 12.0)]
    assert summary(samples, 100, 1.0) == Memory([10, 20, 100], [30.0, 20.0, 15.0], 1.0)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [(["--rounds", "0"], "--rounds is 0"), (["--data", "."], "there are no images")],
)
def test_wrong_use_is_one_line(
    arguments: list[str],
    fragment: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert fragment in error
