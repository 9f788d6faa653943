"""Training and evaluation as programs of their own, one after the other, that stop in time."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from deitlt.batch.file_lock import FolderLock
from deitlt.errors import UsageError
from deitlt.files import write_json
from deitlt.labelled import pick_split, read_labelled
from deitlt.program import Terminated
from deitlt.run_splits import files_sha256
from deitlt.weights import weight_file
from training.command_line import parse, pick_recipe
from training.recipes import STUDENTS, TEACHERS
from training.train_student import StudentCommand
from training.train_teacher import TeacherCommand

# What a run that is trained and evaluated was made of, and what `training.evaluate` found.
FINISHED, METRICS = "reproduced.json", "metrics-test.json"
# prctl(2): the signal a process gets when the one that started it ends, however it ends.
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Data:
    """A data set as it is now.

    Attributes:
        path: folder or CSV.
        state: hash over names, sizes and times of all its images, to see when it has changed.
        test_sha256: identity of its test images, as `training.evaluate` notes it.
    """

    path: Path
    state: str
    test_sha256: str


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Have the runs of a folder for oneself, and for the programs started meanwhile.

    Raises:
        UsageError: another command works there, or there can be no such folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot be made ({error.strerror}); name another --output"
        ) from error
    lock = FolderLock(folder)
    lock.share_with_children()
    try:
        yield
    finally:
        lock.release(remove=True)


def deadline_in(minutes: float | None) -> float | None:
    """When so many minutes are over, on the monotonic clock; None for None.

    Raises:
        UsageError: it is no time.
    """
    if minutes is None:
        return None
    if not minutes > 0:
        raise UsageError(f"--minutes must be above 0, not {minutes:g}")
    return time.monotonic() + 60 * minutes


def check_command(words: list[str]) -> None:
    """Read a training program's arguments as it will, before the runs it rests on take hours.

    Raises:
        UsageError: it would not take them.
    """
    program, *rest = words
    if program == "training.train_teacher":
        teacher, options = pick_recipe(program, rest, TEACHERS)
        parse(program, TeacherCommand, options, recipe=teacher)
    else:
        student, options = pick_recipe(program, rest, STUDENTS)
        parse(program, StudentCommand, options, recipe=student)


def train_and_evaluate(words: list[str], run: Path, data: Data, deadline: float | None) -> bool:
    """Train a run, or go on with it, and evaluate it on the test split once.

    Args:
        words: the training program and its arguments.
        run: its run folder.
        data: what it is evaluated on.
        deadline: when to stop, on the monotonic clock; None has none.

    Returns:
        False where time was up; the same call goes on.

    Raises:
        UsageError: a program failed; it has said why itself.
    """
    made_of = {"command": words, "data": data.state}
    if not _is_trained(run, words, made_of):
        # A finished run resumes to itself, and refuses to be another one.
        if not finish(words, deadline):
            return False
    elif _is_evaluated(run, words, data):
        print(f"{run}: finished before", flush=True)
        return True
    if not _is_evaluated(run, words, data):
        evaluation = ["training.evaluate", str(run), "--data", str(data.path), "--split", "test"]
        if not finish(evaluation, deadline):
            return False
    write_json(run / FINISHED, {**made_of, "test_sha256": data.test_sha256})
    return True


def finish(words: list[str], deadline: float | None) -> bool:
    """Run a program to its end, or stop it in time; False where time was up.

    Raises:
        UsageError: it failed; it has said why itself.
    """
    print(f"$ python -m {shlex.join(words)}", flush=True)
    process = subprocess.Popen(
        [sys.executable, "-m", *words],
        env=os.environ,
        close_fds=False,  # it keeps the lock, should it outlive this program
        preexec_fn=_stop_with_parent(),
    )
    try:
        left = None if deadline is None else max(1.0, deadline - time.monotonic())
        status = process.wait(left)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        status = process.wait()
    except KeyboardInterrupt:
        process.wait()  # Ctrl-C has reached it too, and it saves
        raise
    except Terminated:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    if status in (128 + signal.SIGTERM, -signal.SIGTERM):  # the latter: before its first step
        return False
    if status:
        raise UsageError(f"{words[0]} ended with status {status}")
    return True


def _stop_with_parent() -> Callable[[], None] | None:
    """What makes a child save and stop when this program is killed; None but on Linux."""
    if sys.platform != "linux":
        return None
    import ctypes

    library = ctypes.CDLL(None)  # nothing may be loaded between fork and exec

    def ask() -> None:
        library.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    return ask


def figures_of(run: Path, test_sha256: str | None) -> dict[str, Any] | None:
    """What `training.evaluate` found on the test images; None where it was on others, or not yet.

    Args:
        run: its run folder.
        test_sha256: of the test images; None takes those that the run was finished with.
    """
    metrics = _read(run / METRICS)
    wanted = test_sha256 or _read(run / FINISHED).get("test_sha256")
    return metrics if wanted and metrics.get("images_sha256") == wanted else None


def _read(file: Path) -> dict[str, Any]:
    """An object of JSON; an empty one where the file is not there or damaged."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_trained(run: Path, words: list[str], made_of: dict[str, Any]) -> bool:
    """Whether this very command has finished a run, and nothing has changed since."""
    known = _read(run / FINISHED)
    return known | made_of == known and _is_younger(run / FINISHED, run, words)


def _is_evaluated(run: Path, words: list[str], data: Data) -> bool:
    """Whether a run's figures are of these test images and of its weights as they are."""
    figures = figures_of(run, data.test_sha256)
    return figures is not None and _is_younger(run / METRICS, run, words)


def _is_younger(file: Path, run: Path, words: list[str]) -> bool:
    """Whether a file is younger than a run's weights and than those it was trained with."""
    weights = [weight_file(run, "teacher" if words[0].endswith("teacher") else "student")]
    if "--teacher" in words:
        weights.append(weight_file(Path(words[words.index("--teacher") + 1]), "teacher"))
    if "--init" in words:
        weights.append(weight_file(Path(words[words.index("--init") + 1]), "student"))
    if not all(other.is_file() for other in (file, *weights)):
        return False
    return all(file.stat().st_mtime > other.stat().st_mtime for other in weights)


def look_at(data: Path) -> Data:
    """A data set with its test images, as it is now.

    Raises:
        DataError: it cannot be read, or has no test images.
    """
    splits = read_labelled(data)
    test = pick_split(splits, "test", data)[1]
    digest = sha256()
    for split, images in sorted(splits.items()):
        for path, label in zip(images.paths, images.labels, strict=True):
            try:
                state = path.stat()
            except OSError:  # the programs will say what they think of it
                continue
            line = f"{split} {label} {path} {state.st_size} {state.st_mtime_ns}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return Data(data, digest.hexdigest(), files_sha256(test))


def split_options(options: str) -> list[str]:
    """Further options of a program, as they stand in quotes.

    Raises:
        UsageError: quotes in them are not closed.
    """
    try:
        return shlex.split(options)
    except ValueError as error:
        raise UsageError(f"options {options!r}: {error}") from error
