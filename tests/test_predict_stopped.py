"""`deitlt predict` stopped by the disk, a signal or another run: one line, nothing is lost."""

import errno
import io
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from deitlt.batch.decode_worker import READY
from deitlt.batch.file_lock import FolderLock
from deitlt.classifier import Classifier
from deitlt.cli import main
from deitlt.errors import UsageError
from deitlt.preprocess import PreprocessSpec
from tests.bundle_support import DIGITS
from tests.checkout_support import ROOT
from tests.disk_support import largest_file
from tests.predict_support import FORMATS, BreakOff, Ended, file_names, predict, read_rows

TIMEOUT_S = 60  # only ever waited for where a test fails
NAMES = ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]

# `deitlt` with a runtime that says when its third call has begun and a row is written, and waits.
HELD = """
import signal, sys
from itertools import count
from threading import Event
from deitlt.batch.output import Output
from deitlt.cli import main
from deitlt.runtimes import OnnxRuntime
numbers, written = count(1), Event()
def add(*arguments):
    real_add(*arguments)
    written.set()
def run(*arguments):
    if next(numbers) == 3:
        assert written.wait(30)
        print("begun", flush=True)
        sys.stdin.read()
    return real_run(*arguments)
real_add, Output.add = Output.add, add
real_run, OnnxRuntime.run = OnnxRuntime.run, run
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
sys.exit(main())
"""


@pytest.fixture
def photos(tmp_path: Path, class_tree: Callable[[Path, Mapping[str, int]], Path]) -> Path:
    """Four pictures."""
    return class_tree(tmp_path / "photos", {"a": 2, "b": 2})


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    format: str,
    photos: Path,
    tmp_path: Path,
    breaks_off: BreakOff,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / f"rows.{format}"
    flags = ["--topk", "10", "--experts"]
    breaks_off(99)
    assert predict(photos, "--output", tmp_path / f"whole.{format}", *flags) == 0
    capsys.readouterr()
    monkeypatch.setattr("deitlt.batch.output.MAX_WAITING_CELLS", 1)
    monkeypatch.setattr("deitlt.batch.formats.ROW_GROUP", 10)
    # The state is about 1,000 bytes; of CSV and JSONL some images fit, of Parquet all parts do.
    size = {"csv": 1800, "jsonl": 5000, "parquet": 7500}[format]
    with largest_file(size):
        assert predict(photos, "--output", output, *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{output}.partial: File too large; finished rows are kept" in error
    state = json.loads((tmp_path / f"rows.{format}.partial" / "state.json").read_text())
    assert state["num_images"] in ({4} if format == "parquet" else {1, 2, 3})
    assert predict(photos, "--output", output, *flags) == 0
    assert read_rows(output) == read_rows(tmp_path / f"whole.{format}")


def test_errors_of_the_disk_name_the_place(
    photos: Path,
    tmp_path: Path,
    breaks_off: BreakOff,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    breaks_off(99)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("deitlt.batch.formats.os.fsync", full)
        assert predict(photos, "--output", tmp_path / "rows.csv") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert predict(photos, "--output", tmp_path / "rows.csv") == 0


@pytest.mark.parametrize(
    ("file", "damage"),
    [("state.json", b"{}"), ("state.json", b"\xff"), ("rows", b"short"), ("rows", None)],
)
def test_a_damaged_partial_output_is_one_line(
    file: str,
    damage: bytes | None,
    photos: Path,
    tmp_path: Path,
    breaks_off: BreakOff,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "rows.csv"
    breaks_off(2)
    with pytest.raises(Ended):
        predict(photos, "--output", output)
    damaged = tmp_path / "rows.csv.partial" / file
    damaged.unlink() if damage is None else damaged.write_bytes(damage)
    capsys.readouterr()
    assert predict(photos, "--output", output) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    breaks_off(99)
    assert predict(photos, "--output", output, "--overwrite") == 0
    assert file_names(output) == NAMES


def test_a_lost_part_of_parquet_is_one_line(
    photos: Path,
    tmp_path: Path,
    breaks_off: BreakOff,
    capsys: pytest.CaptureFixture[str],
) -> None:
    breaks_off(2)
    with pytest.raises(Ended):
        predict(photos, "--output", tmp_path / "rows.parquet")
    (tmp_path / "rows.parquet.partial" / "part-00000000.parquet").unlink()
    assert predict(photos, "--output", tmp_path / "rows.parquet") == 2
    assert "part-00000000.parquet: missing" in capsys.readouterr().err


def test_two_runs_on_one_output(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rows.csv"
    command = [sys.executable, "-c", HELD, "predict", str(photos), "--output", str(output)]
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--batch-size", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            for flags in ([], ["--overwrite"]):
                assert predict(photos, "--output", output, *flags) == 2
                error = capsys.readouterr().err
                assert "another run writes there" in error
                assert error.count("\n") == 1
            process.communicate(timeout=TIMEOUT_S)  # ends its standard input
        finally:
            process.kill()
    assert process.returncode == 0
    assert file_names(output) == NAMES


def test_a_lock_ends_with_its_folder(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "partial")
    with pytest.raises(UsageError, match="another run"):
        FolderLock(tmp_path / "partial")
    lock.release(remove=True)
    assert not (tmp_path / "partial").exists()
    again = FolderLock(tmp_path / "partial")
    again.release()
    assert (tmp_path / "partial").exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EIO])
def test_a_file_system_without_locks_needs_none(
    number: int,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    output = tmp_path / "rows.csv"
    assert predict(photos, "--output", output) == (2 if number == errno.EIO else 0)
    assert output.exists() == (number != errno.EIO)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_a_signal_is_one_line_and_the_same_command_goes_on(
    number: int, status: int, word: str, photos: Path, tmp_path: Path, classifier: Classifier
) -> None:
    output, log = tmp_path / "rows.csv", tmp_path / "log.json"
    words = ["predict", str(photos), "--output", str(output), "--model", str(DIGITS)]
    words += ["-j", "1", "--batch-size", "1", "--device", "cpu", "--log", str(log)]
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            process.send_signal(number)
            _, errors = process.communicate(timeout=TIMEOUT_S)  # ends its standard input
        finally:
            process.kill()
    assert process.returncode == status, word
    assert errors.startswith("deitlt: interrupted; ")
    assert errors.count("\n") == 1
    assert not output.exists()
    assert json.loads(log.read_text())["status"] == "interrupted"
    assert main([*words, "--topk", "2"]) == 2
    assert json.loads(log.read_text())["status"] == "interrupted"  # a refused command has no log
    assert main(words) == 0
    assert file_names(output) == NAMES
    record = json.loads(log.read_text())
    assert record["status"] == "finished"
    assert record["num_images"] == 4
    assert record["bundle"]["version"] == classifier.bundle.version


def test_a_decoding_process_whose_parent_is_gone_ends_without_a_word() -> None:
    command = [sys.executable, "-m", "deitlt.batch.decode_worker"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stderr is not None
        assert worker.stdout.read(len(READY)) == READY
        worker.stdout.close()
        pickle.dump((PreprocessSpec(img_size=16), 100), worker.stdin)
        pickle.dump([io.BytesIO(b"no image")], worker.stdin)
        worker.stdin.close()
        assert worker.stderr.read() == b""
    assert worker.returncode == 0
