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
from hashlib import sha256
from pathlib import Path
from typing import Any

from deitlt.batch.file_lock import FolderLock
from deitlt.errors import UsageError
from deitlt.files import write_json
from deitlt.labelled import read_labelled
from deitlt.program import Terminated
from deitlt.weights import weight_file
from training.command_line import parse, pick_recipe
from training.recipes import STUDENTS, TEACHERS
from training.train_student import StudentCommand
from training.train_teacher import TeacherCommand

# What a run that is trained and evaluated was made of.
FINISHED = "reproduced.json"
# prctl(2): the signal a process gets when the one that started it ends, however it ends.
PR_SET_PDEATHSIG = 1


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


def train_and_evaluate(
    words: list[str], run: Path, data: Path, state: str, deadline: float | None
) -> bool:
    """Train a run, or go on with it, and evaluate it on the test split once.

    Args:
        words: the training program and its arguments.
        run: its run folder.
        data: what it is evaluated on.
        state: `state_of` this data.
        deadline: when to stop, on the monotonic clock; None has none.

    Returns:
        False where time was up; the same call goes on.

    Raises:
        UsageError: a program failed; it has said why itself.
    """
    made_of = {"command": words, "data": state}
    if _is_finished(run, words, made_of):
        print(f"{run}: finished before", flush=True)
        return True
    # A finished run resumes to itself, and refuses to be another one.
    if not finish(words, deadline):
        return False
    if not _is_evaluated(run, words):
        evaluation = ["training.evaluate", str(run), "--data", str(data), "--split", "test"]
        if not finish(evaluation, deadline):
            return False
    write_json(run / FINISHED, made_of)
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


def _is_finished(run: Path, words: list[str], made_of: dict[str, Any]) -> bool:
    """Whether this very command has trained and evaluated a run, and nothing has changed since."""
    try:
        known = json.loads((run / FINISHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(known == made_of) and _is_evaluated(run, words)


def _is_evaluated(run: Path, words: list[str]) -> bool:
    """Whether a run's figures are younger than its weights and than those it was trained with."""
    metrics = run / "metrics-test.json"
    weights = [weight_file(run, "teacher" if words[0].endswith("teacher") else "student")]
    if "--teacher" in words:
        weights.append(weight_file(Path(words[words.index("--teacher") + 1]), "teacher"))
    if "--init" in words:
        weights.append(weight_file(Path(words[words.index("--init") + 1]), "student"))
    if not metrics.is_file() or not all(file.is_file() for file in weights):
        return False
    return all(metrics.stat().st_mtime > file.stat().st_mtime for file in weights)


def state_of(data: Path) -> str:
    """Hash over names, sizes and times of the images of a data set, to see when it has changed.

    Raises:
        DataError: it cannot be read.
    """
    digest = sha256()
    for split, images in sorted(read_labelled(data).items()):
        for path, label in zip(images.paths, images.labels, strict=True):
            try:
                state = path.stat()
            except OSError:  # the programs will say what they think of it
                continue
            line = f"{split} {label} {path} {state.st_size} {state.st_mtime_ns}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def split_options(options: str) -> list[str]:
    """Further options of a program, as they stand in quotes.

    Raises:
        UsageError: quotes in them are not closed.
    """
    try:
        return shlex.split(options)
    except ValueError as error:
        raise UsageError(f"options {options!r}: {error}") from error
