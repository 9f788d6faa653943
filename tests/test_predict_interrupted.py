"""`deitlt predict` killed or interrupted: the old rows stay, and the new ones lie beside them."""

import csv
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from deitlt.batch.output import write_csv
from deitlt.batch.sources import Source
from deitlt.classifier import Prediction
from deitlt.cli import main
from deitlt.errors import DecodeFailed, ImageError

TIMEOUT_S = 60  # only ever waited for where a test fails

KILLED = """
import os, signal, sys
from pathlib import Path
from deitlt.batch.output import write_csv
from deitlt.batch.sources import find_sources
from deitlt.errors import DecodeFailed
def results():
    for number, source in enumerate(find_sources([sys.argv[1]])):
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield source, DecodeFailed("damaged")
write_csv(Path(sys.argv[2]), results(), experts=False, model_version="v", overwrite=True)
"""
# `deitlt` with a classifier that says when it begins, and ends when its standard input does.
HELD = """
import signal, sys
from deitlt.classifier import Classifier
from deitlt.cli import main
def predict_one(*arguments):
    print("begun", flush=True)
    sys.stdin.read()
    return real_predict_one(*arguments)
real_predict_one, Classifier.predict_one = Classifier.predict_one, predict_one
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
sys.exit(main())
"""


@pytest.fixture
def photos(tmp_path: Path, class_tree: Callable[[Path, Mapping[str, int]], Path]) -> Path:
    """Four pictures."""
    return class_tree(tmp_path / "photos", {"a": 2, "b": 2})


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output with rows of an earlier run."""
    file = tmp_path / "rows.csv"
    file.write_text("former rows")
    return file


def names(output: Path) -> list[str]:
    with output.open(newline="", encoding="utf-8") as file:
        return [row["filename"] for row in csv.DictReader(file)]


def predict(photos: Path, output: Path) -> list[str]:
    return ["predict", str(photos), "--output", str(output), "--overwrite", "--device", "cpu"]


def test_a_killed_run_keeps_the_old_rows_and_what_it_had(photos: Path, output: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(photos), str(output)]
    assert subprocess.run(command, timeout=TIMEOUT_S).returncode == -9
    assert output.read_text() == "former rows"
    partial = output.with_name("rows.csv.partial")
    assert names(partial) == ["a/0.png", "a/1.png"]
    # The same command again finishes, and leaves nothing of the killed run.
    assert main(predict(photos, output)) == 0
    assert names(output) == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    assert not partial.exists()


def test_an_interrupted_run_keeps_the_old_rows_and_what_it_had(output: Path) -> None:
    def results() -> Iterator[tuple[Source, Prediction | ImageError]]:
        yield Source(Path("a.png"), "a.png"), DecodeFailed("damaged")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_csv(output, results(), experts=False, model_version="v", overwrite=True)
    assert output.read_text() == "former rows"
    assert names(output.with_name("rows.csv.partial")) == ["a.png"]


def test_ctrl_c_is_one_line_and_status_130(photos: Path, output: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, *predict(photos, output), "-j", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=TIMEOUT_S)  # ends its standard input
        finally:
            process.kill()
    assert process.returncode == 130
    assert errors.startswith("deitlt: interrupted; ")
    assert errors.count("\n") == 1
    assert output.read_text() == "former rows"
    assert output.with_name("rows.csv.partial").read_text().startswith("filename,")


@pytest.mark.parametrize("command", ["predict", "inspect"])
def test_ctrl_c_before_the_first_image_is_one_line_too(
    command: str,
    photos: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deitlt.commands.predict.load", interrupted)
    monkeypatch.setattr("deitlt.commands.inspect.open_bundle", interrupted)
    assert main(predict(photos, output) if command == "predict" else ["inspect"]) == 130
    error = capsys.readouterr().err
    assert error.startswith("deitlt: interrupted; ")
    assert error.count("\n") == 1
    assert output.read_text() == "former rows"
