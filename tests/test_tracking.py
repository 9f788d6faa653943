"""What a run shows: lines at milestones, and curves that agree with results.csv."""

import csv
import errno
import importlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from training import train_teacher
from training.engine.tracking import Curves, ProgressBar, _duration, _line

ROW: dict[str, Any] = {
    "epoch": 3,
    "lr": 0.1,
    "loss": 1.23456,
    "val_average_balanced": 0.876,
    "val_cls_balanced": 0.5,
    "val_cls_overall": 0.4,
    "val_cls_tail": None,
    "images_per_s": 1234.56,
    "seconds": 30.0,
}
Series = dict[str, list[tuple[int, float]]]


def curves_in(folder: Path) -> Series:
    """Step and value of every scalar, as TensorBoard shows them."""
    module = importlib.import_module(  # tensorboard is untyped
        "tensorboard.backend.event_processing.event_accumulator"
    )
    reader = module.EventAccumulator(str(folder))
    reader.Reload()
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def lines(epochs: int, done: Iterable[int], capsys: pytest.CaptureFixture[str]) -> list[str]:
    with ProgressBar(100, epochs, 0, visible=True) as bar:
        for epoch in done:
            bar.finish_epoch({**ROW, "epoch": epoch})
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (100, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]),
        (1200, list(range(120, 1201, 120))),
        (7, [1, 2, 3, 4, 5, 6, 7]),
        (45, [*range(4, 45, 4), 45]),
    ],
)
def test_a_run_says_about_ten_lines_and_one_at_its_end(
    epochs: int, expected: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    said = lines(epochs, range(1, epochs + 1), capsys)
    assert [line.split("  ")[0] for line in said] == [f"epoch {e}/{epochs}" for e in expected]


def test_a_long_silence_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with ProgressBar(100, 1000, 0, visible=True) as bar:
        for epoch, clock[0] in enumerate(
            (59.0, 61.0, 120.0, 599.0, 700.0, 1198.0, 1200.0), start=1
        ):
            bar.finish_epoch({**ROW, "epoch": epoch})
    said = capsys.readouterr().out.splitlines()
    # A minute's at first, later ten.
    assert [line.split("  ")[0] for line in said] == [f"epoch {e}/1000" for e in (2, 4, 7)]


def test_a_process_that_does_not_lead_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(100, 2, 0, visible=False) as bar:
        bar.finish_epoch({**ROW, "epoch": 2})
    assert capsys.readouterr() == ("", "")


def test_a_line_holds_loss_balanced_accuracies_speed_and_time_left() -> None:
    assert _line(ROW, 63) == (
        "epoch 3/63  loss 1.235  balanced validation accuracy: average 87.6, cls 50.0 %  "
        "1235 images/s, 30 min left"
    )
    bare = {k: v for k, v in ROW.items() if not k.startswith("val_")}
    assert _line(bare, 3) == "epoch 3/3  loss 1.235  1235 images/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (29, "29 s"),
        (31, "1 min"),
        (60, "1 min"),
        (3000, "50 min"),
        (3599, "1 h 0 min"),
        (3660, "1 h 1 min"),
        (90_000, "25 h 0 min"),
    ],
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert _duration(seconds) == text


def test_curves_hold_every_figure_that_there_is(tmp_path: Path) -> None:
    with Curves(tmp_path, 0) as curves:
        for epoch in (1, 2):
            curves.add({**ROW, "epoch": epoch, "loss": 1 / epoch})
    series = curves_in(tmp_path)
    assert series["training/loss"] == [(1, 1.0), (2, 0.5)]
    assert series["validation/cls_balanced"] == [(1, 0.5), (2, 0.5)]
    assert set(series) == {
        *(f"training/{name}" for name in ("lr", "loss", "images_per_s", "seconds")),
        *(f"validation/{name}" for name in ("average_balanced", "cls_balanced", "cls_overall")),
    }


def test_points_after_the_resume_point_are_drawn_again(tmp_path: Path) -> None:
    with Curves(tmp_path, 0) as curves:
        for epoch in (1, 2, 3):
            curves.add({**ROW, "epoch": epoch, "loss": 10.0 * epoch})
    with Curves(tmp_path, 1) as curves:  # one epoch was saved
        curves.add({**ROW, "epoch": 2, "loss": 0.25})
    assert curves_in(tmp_path)["training/loss"] == [(1, 10.0), (2, 0.25)]


def test_a_full_disk_costs_the_curves_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Curves(tmp_path, 0) as curves:
        curves.add({**ROW, "epoch": 1})
        writer = curves._writer
        monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.flush", full)
        for epoch in (2, 3):
            curves.add({**ROW, "epoch": epoch})
    monkeypatch.undo()
    writer.close()  # its thread, which of a really full disk would have ended
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"warning: {tmp_path}: no more curves (No space left on device)"
    assert curves_in(tmp_path)["training/loss"][0][0] == 1


def test_a_point_is_on_disk_as_soon_as_it_is_added(tmp_path: Path) -> None:
    """A run that is killed goes on after its resume point, and would never draw it again."""
    with Curves(tmp_path, 0) as curves:
        curves.add(ROW)
        ((step, value),) = curves_in(tmp_path)["training/loss"]
    assert step == 3
    assert value == pytest.approx(1.23456)


def test_without_a_folder_no_curves_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Curves(None, 0) as curves:
        curves.add(ROW)
    assert list(tmp_path.iterdir()) == []


def test_the_curves_of_a_run_are_its_results(
    tmp_path: Path, class_tree: Callable[[Path, Mapping[str, int]], Path]
) -> None:
    data = class_tree(tmp_path / "data", {"a": 12, "b": 8, "c": 6})
    arguments = ["digits", "--epochs", "3", "--batch-size", "8", "--imbalance-factor", "None"]
    arguments += ["--val-fraction", "0.2", "--data", str(data), "--output", str(tmp_path / "run")]
    for _ in range(2):  # the curves of a run that was written over are gone
        assert train_teacher.main([*arguments, "--overwrite"]) == 0
    with (tmp_path / "run" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    series = curves_in(tmp_path / "run" / "tensorboard")
    # A group without classes has no figures, and no curve.
    for name in {column for column, value in rows[0].items() if value} - {"epoch"}:
        group = "validation" if name.startswith("val_") else "training"
        drawn = series[f"{group}/{name.removeprefix('val_')}"]
        assert [step for step, _ in drawn] == [int(row["epoch"]) for row in rows]
        expected = [float(row[name]) for row in rows]
        assert [value for _, value in drawn] == pytest.approx(expected)
