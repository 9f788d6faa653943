"""`training.reproduce` is killed, stopped, started twice and started again: nothing is lost."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from deitlt.batch.file_lock import FolderLock
from deitlt.errors import UsageError
from deitlt.files import write_json
from training import evaluate, reproduce
from training.reproduce import main
from training.reproduction import launch

TINY = "--epochs 1 --batch-size 16 --warmup-epochs 0 --drw-epoch 1 --workers 0 --img-size 8"
ENDLESS = f"{TINY} --epochs 100000 --drw-epoch 100000 --checkpoint-epochs 1"
PATIENCE_S = 60


@pytest.fixture
def data(tmp_path: Path, class_tree: Callable[[Path, Mapping[str, int]], Path]) -> Path:
    for split, count in (("train", 16), ("test", 3)):
        class_tree(tmp_path / "data" / split, {"a": count, "b": count})
    return tmp_path / "data"


@pytest.fixture
def words(data: Path, tmp_path: Path) -> list[str]:
    """One teacher that trains until it is stopped."""
    where = ["--data", str(data), "--output", str(tmp_path / "o"), "--imbalance-factor", "2"]
    return ["evidence", *where, "--only", "teacher_ldam", "--teacher-options", ENDLESS]


@contextmanager
def running(words: list[str], log: Path, run: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The program, once the run it has started has finished an epoch."""
    command = [sys.executable, "-m", "training.reproduce", *words]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        until(lambda: (run / "results.csv").is_file(), log)
        yield process
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def child_of(pid: int) -> Path:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return Path("/proc", child)


def epochs(run: Path) -> int:
    with (run / "results.csv").open(newline="", encoding="utf-8") as rows:
        return len(list(csv.DictReader(rows)))


def test_killed_it_leaves_no_program_behind_and_goes_on(words: list[str], tmp_path: Path) -> None:
    run, log = tmp_path / "o" / "teacher_ldam", tmp_path / "log"
    with running(words, log, run) as process:
        child = child_of(process.pid)
        assert b"training.train_teacher" in (child / "cmdline").read_bytes()
        process.kill()
        process.wait()
        until(lambda: not child.exists(), log)
    assert "stopped by SIGTERM" in log.read_text()
    before = epochs(run)
    assert before > 0
    with running(words, log, run):
        until(lambda: epochs(run) > before, log)
    assert f"resuming after epoch {before} of 100000" in log.read_text()


def test_sigterm_stops_what_it_has_started_too(words: list[str], tmp_path: Path) -> None:
    run, log = tmp_path / "o" / "teacher_ldam", tmp_path / "log"
    with running(words, log, run) as process:
        child = child_of(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
        assert not child.exists()
    text = log.read_text()
    assert "stopped by SIGTERM" in text
    assert "interrupted; the same command goes on where it stopped" in text
    assert "Traceback" not in text


SURVIVED = """
import os, subprocess, sys
from pathlib import Path
from training.reproduction.launch import alone_in

with alone_in(Path(sys.argv[1])):
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(["sleep", "60"], close_fds=False, **nowhere)
    print(child.pid, flush=True)
    os._exit(0)  # as a kill ends it: nothing is let go of
"""


def test_two_commands_do_not_write_the_same_runs(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words, "--minutes", "0.02"]
    with launch.alone_in(tmp_path / "o"):
        assert main(words) == 2
        assert "o: another run writes there" in capsys.readouterr().err
    command = [sys.executable, "-c", SURVIVED, str(tmp_path / "o")]
    survivor = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    try:
        assert main(words) == 2
    finally:
        os.kill(survivor, signal.SIGKILL)
    until(lambda: _is_free(tmp_path / "o"), tmp_path / "o" / "lock")


def _is_free(folder: Path) -> bool:
    try:
        FolderLock(folder).release()
    except UsageError:
        return False
    return True


def test_a_finished_run_is_run_again_where_anything_has_changed(
    words: list[str],
    data: Path,
    tmp_path: Path,
    class_tree: Callable[[Path, Mapping[str, int]], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "o" / "teacher_ldam"
    ran: list[str] = []

    def finish(command: list[str], deadline: float | None) -> bool:
        ran.append(command[0])
        assert import_module(command[0]).main(command[1:]) == 0
        return True

    def started() -> list[str]:
        ran.clear()
        assert main([*words, "--teacher-options", TINY]) == 0
        return list(ran)

    monkeypatch.setattr(launch, "finish", finish)
    both = ["training.train_teacher", "training.evaluate"]
    assert started() == both
    assert started() == []
    picture = data / "test" / "a" / "0.png"
    picture.write_bytes(picture.read_bytes())
    assert started() == both[:1], "it looks again, and its figures stay"
    assert started() == []
    (run / "metrics-test.json").unlink()
    assert started() == both[1:]
    # Someone else's figures, or those of an earlier version, are not taken for its own.
    other = class_tree(tmp_path / "other" / "test", {"a": 2, "b": 1}).parent
    assert evaluate.main([str(run), "--data", str(other)]) == 0
    assert started() == both[1:]
    metrics = json.loads((run / "metrics-test.json").read_text())
    assert metrics["num_images"] == 6
    del metrics["images_sha256"]
    write_json(run / "metrics-test.json", metrics)
    assert started() == both[1:]


def test_digits_are_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def half(folder: Path) -> None:
        (folder / "train" / "0").mkdir(parents=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reproduce, "write_digits", half)
    assert main(["6", "--scale", "tiny", "--output", str(tmp_path / "o")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "o" / "digits").exists()


def test_what_a_finished_run_rests_on_must_be_older(tmp_path: Path) -> None:
    teacher, run = tmp_path / "teacher", tmp_path / "student"
    words = ["training.train_student", "cifar", "--teacher", str(teacher)]
    made_of: dict[str, Any] = {"command": words, "data": "hash"}
    data = launch.Data(tmp_path, "hash", "of test images")

    def write(file: Path, age_s: float) -> None:
        file.parent.mkdir(exist_ok=True)
        write_json(file, {"images_sha256": "of test images"})
        then = time.time() - age_s
        os.utime(file, (then, then))

    write(teacher / "teacher.safetensors", 30)
    write(run / "student.safetensors", 20)
    write(run / "metrics-test.json", 10)
    write_json(run / launch.FINISHED, made_of)
    assert launch._is_trained(run, words, made_of)
    assert launch._is_evaluated(run, words, data)
    assert not launch._is_trained(run, words, {**made_of, "data": "other"})
    assert not launch._is_evaluated(run, words, replace(data, test_sha256="of others"))
    write(teacher / "teacher.safetensors", -5)
    assert not launch._is_trained(run, words, made_of)
    assert not launch._is_evaluated(run, words, data)
