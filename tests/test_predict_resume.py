"""`deitlt predict` stopped in any way: the old output stays, and the same command goes on."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from deitlt.batch.inference import Plan
from deitlt.batch.output import Output
from deitlt.batch.pipeline import predict_iter
from deitlt.batch.rows import Layout
from deitlt.batch.sources import Source
from deitlt.cli import main
from deitlt.errors import OpenFailed, UsageError
from tests.bundle_support import DIGITS
from tests.predict_support import FORMATS, BreakOff, Ended, file_names, predict, read_rows

TIMEOUT_S = 60  # only ever waited for where a test fails
NAMES = ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]


@pytest.fixture
def photos(tmp_path: Path, class_tree: Callable[[Path, Mapping[str, int]], Path]) -> Path:
    """Four pictures."""
    return class_tree(tmp_path / "photos", {"a": 2, "b": 2})


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_command_goes_on(
    format: str, photos: Path, tmp_path: Path, breaks_off: BreakOff
) -> None:
    breaks_off(99)
    output, whole = tmp_path / f"rows.{format}", tmp_path / f"whole.{format}"
    assert predict(photos, "--output", whole) == 0
    for count in (2, 1, 0):
        breaks_off(count)
        with pytest.raises(Ended):
            predict(photos, "--output", output)
        assert not output.exists()
    breaks_off(1)  # an image is left
    assert predict(photos, "--output", output, "--log", tmp_path / "log.json") == 0
    assert read_rows(output) == read_rows(whole)
    assert file_names(output) == NAMES
    log = json.loads((tmp_path / "log.json").read_text())
    assert (log["num_images"], log["num_images_before"]) == (4, 3)
    assert {file.name for file in tmp_path.iterdir()} == {
        *("photos", "log.json", f"rows.{format}", f"whole.{format}")
    }


def test_a_resumed_run_says_what_was_done_earlier(
    photos: Path,
    tmp_path: Path,
    breaks_off: BreakOff,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (photos / "a" / "0.png").write_bytes(b"")
    breaks_off(3)
    with pytest.raises(Ended):
        predict(photos, "--output", tmp_path / "rows.csv")
    breaks_off(99)
    assert predict(photos, "--output", tmp_path / "rows.csv") == 3
    line = capsys.readouterr().err
    assert line.startswith("4 images (3 of them earlier) in ")
    assert "1 failed (decode_failed 1); rows in" in line


def test_rows_are_brought_to_the_disk_every_five_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0]
    monkeypatch.setattr("deitlt.batch.output.time.monotonic", lambda: now[0])
    state = tmp_path / "rows.csv.partial" / "state.json"
    counted = []
    with Output(tmp_path / "rows.csv", Layout(1), model_version="", fingerprint={}) as output:
        for now[0] in range(12):
            output.add(Source(Path("x.png"), "x.png"), OpenFailed("it is not there"))
            counted.append(json.loads(state.read_text())["num_images"])
    assert counted == [0] * 5 + [6] * 5 + [11] * 2


def test_a_run_that_goes_on_keeps_the_batch_size_it_found(
    photos: Path, tmp_path: Path, breaks_off: BreakOff, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU it is found by trying, which may come out otherwise."""
    found = iter([Plan(2, at_once=1, num_threads=1), Plan(3, at_once=1, num_threads=1)])
    monkeypatch.setattr("deitlt.commands.predict.choose_plan", lambda *_: next(found))
    used = []

    def noted(*arguments: Any, batch_size: int, **named: Any) -> Iterator[object]:
        used.append(batch_size)
        for number, item in enumerate(predict_iter(*arguments, batch_size=batch_size, **named)):
            if len(used) == 1 and number == 3:
                raise Ended
            yield item

    breaks_off(99)  # its classifier is what is wanted
    monkeypatch.setattr("deitlt.commands.predict.predict_iter", noted)
    with pytest.raises(Ended):
        predict(photos, "--output", tmp_path / "rows.csv")
    assert predict(photos, "--output", tmp_path / "rows.csv") == 0
    assert used == [2, 2]


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        (["--topk", "2"], "topk was 1 and is 2"),
        (["--experts"], "experts was false and is true"),
        (["--blend", "0.25"], "blend was 0.5 and is 0.25"),
        (["--wide"], "wide was false and is true"),
        (["--fast-decode"], "fast-decode was false and is true"),
        (["--output-type", "logit"], 'output-type was "prob" and is "logit"'),
        (["--variant", "int8"], 'variant was "float32" and is "int8"'),
        (["photos/a"], "inputs"),
        (["--filepaths", "list.txt"], 'filepaths was [] and is ["list.txt"]'),
    ],
)
def test_another_command_is_refused_until_overwrite(
    changes: list[str],
    fragment: str,
    photos: Path,
    tmp_path: Path,
    breaks_off: BreakOff,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("photos/a/0.png\n")
    breaks_off(2)
    with pytest.raises(Ended):
        predict("photos", "--output", "rows.csv")
    breaks_off(99)
    assert predict(*changes, "photos", "--output", "rows.csv") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "rows.csv.partial: holds rows of another run" in error
    assert fragment in error
    assert "--overwrite" in error
    assert predict(*changes, "photos", "--output", "rows.csv", "--overwrite") == 0
    assert not Path("rows.csv.partial").exists()


def test_another_bundle_is_refused(
    photos: Path,
    tmp_path: Path,
    breaks_off: BreakOff,
    make_bundle: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    breaks_off(2)
    with pytest.raises(Ended):
        predict(photos, "--output", tmp_path / "rows.csv")
    monkeypatch.undo()
    other = make_bundle(tmp_path / "other", name="other")
    assert predict(photos, "--output", tmp_path / "rows.csv", "--model", other) == 2
    assert "another run (bundle changed)" in capsys.readouterr().err


def test_rows_of_two_versions_of_the_package_are_not_mixed(
    photos: Path,
    tmp_path: Path,
    breaks_off: BreakOff,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    breaks_off(2)
    with pytest.raises(Ended):
        predict(photos, "--output", tmp_path / "rows.csv")
    breaks_off(99)
    monkeypatch.setattr("deitlt.commands.predict.__version__", "99.0")
    assert predict(photos, "--output", tmp_path / "rows.csv") == 2
    assert '"99.0"' in capsys.readouterr().err
    assert predict(photos, "--output", tmp_path / "rows.csv", "--overwrite") == 0


def test_inputs_that_changed_are_refused_and_new_ones_behind_are_taken(
    photos: Path,
    tmp_path: Path,
    breaks_off: BreakOff,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "rows.csv"
    breaks_off(2)
    with pytest.raises(Ended):
        predict(photos, "--output", output)
    breaks_off(99)
    first = photos / "a" / "0.png"
    first.rename(photos / "a" / "2.png")
    assert predict(photos, "--output", output) == 2
    error = capsys.readouterr().err
    assert "the first 2 inputs are not those" in error
    assert error.count("\n") == 1
    (photos / "a" / "2.png").rename(first)
    (photos / "b" / "2.png").write_bytes(first.read_bytes())
    assert predict(photos, "--output", output) == 0
    assert file_names(output) == [*NAMES, "b/2.png"]


def test_fewer_inputs_than_rows_are_refused(
    photos: Path, tmp_path: Path, breaks_off: BreakOff
) -> None:
    breaks_off(3)
    with pytest.raises(Ended):
        predict(photos, "--output", tmp_path / "rows.csv")
    for name in NAMES[1:]:
        (photos / name).unlink()
    assert predict(photos, "--output", tmp_path / "rows.csv") == 2


def test_an_overwriting_run_keeps_the_old_rows_and_goes_on_without_the_flag(
    photos: Path, tmp_path: Path, breaks_off: BreakOff
) -> None:
    output = tmp_path / "rows.csv"
    output.write_text("former rows")
    breaks_off(2)
    with pytest.raises(Ended):
        predict(photos, "--output", output, "--overwrite")
    breaks_off(1)
    with pytest.raises(Ended):
        predict(photos, "--output", output)
    assert output.read_text() == "former rows"
    breaks_off(1)
    assert predict(photos, "--output", output) == 0
    assert file_names(output) == NAMES


def test_an_output_that_comes_before_the_lock_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    output = Output(path, Layout(1), model_version="", fingerprint={})
    path.write_text("another's rows")
    with pytest.raises(UsageError, match="exists already"), output:
        pass
    assert path.read_text() == "another's rows"
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]


def test_an_output_removed_before_its_run_had_ended_is_written_again(
    photos: Path, tmp_path: Path, breaks_off: BreakOff, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks_off(99)
    output = tmp_path / "rows.csv"
    with monkeypatch.context() as killed:  # once the rows have their name, before the state goes
        killed.setattr(Output, "_discard", lambda self: None)
        assert predict(photos, "--output", output) == 0
    assert (tmp_path / "rows.csv.partial" / "state.json").exists()
    output.unlink()
    assert predict(photos, "--output", output) == 0
    assert file_names(output) == NAMES


def test_an_output_that_came_meanwhile_is_not_replaced(
    photos: Path, tmp_path: Path, breaks_off: BreakOff
) -> None:
    output = tmp_path / "rows.csv"
    breaks_off(2)
    with pytest.raises(Ended):
        predict(photos, "--output", output)
    output.write_text("another's rows")
    assert predict(photos, "--output", output) == 2
    assert output.read_text() == "another's rows"


def test_a_run_that_fails_at_its_first_image_leaves_nothing(
    photos: Path, tmp_path: Path, breaks_off: BreakOff
) -> None:
    breaks_off(0)
    with pytest.raises(Ended):
        predict(photos, "--output", tmp_path / "rows.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize("command", ["predict", "inspect"])
def test_ctrl_c_before_the_first_image_is_one_line_too(
    command: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deitlt.commands.predict.open_model", interrupted)
    monkeypatch.setattr("deitlt.commands.inspect.open_bundle", interrupted)
    words = [str(photos), "--output", str(tmp_path / "rows.csv")] if command == "predict" else []
    assert main([command, *words]) == 130
    error = capsys.readouterr().err
    assert error.startswith("deitlt: interrupted; ")
    assert error.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["photos"]


def test_the_log_says_what_ran(photos: Path, tmp_path: Path) -> None:
    (photos / "a" / "0.png").write_bytes(b"")
    log = tmp_path / "log.json"
    words = [photos, "--output", tmp_path / "rows.csv", "--topk", "3", "--log", log]
    assert predict(*words) == 3
    record = json.loads(log.read_text())
    manifest = json.loads((DIGITS / "bundle.json").read_text())
    assert record["command"] == [
        "deitlt",
        "predict",
        "--model",
        str(DIGITS),
        "--device",
        "cpu",
        *map(str, words),
    ]
    assert record["errors"] == {"decode_failed": 1}
    assert (record["num_images"], record["num_failed"]) == (4, 1)
    assert record["run"]["bundle"] == manifest["sha256"]
    assert record["run"]["topk"] == 3
    assert record["files"]["model.onnx"] == manifest["files"]["model.onnx"]["sha256"]
    assert {"deitlt", "python", "numpy", "pillow"} <= set(record["versions"])
    assert record["seconds"] > 0
