"""Training and evaluation as programs of their own, one after the other, that stop in time."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from deitlt.errors import UsageError


def train_and_evaluate(words: list[str], run: Path, data: Path, deadline: float | None) -> bool:
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
    # A finished run resumes to itself, and refuses to be another one.
    if not finish(words, deadline):
        return False
    metrics = run / "metrics-test.json"
    files = (run / "student.safetensors", run / "teacher.safetensors")
    weights = next(file for file in files if file.is_file())
    if metrics.is_file() and metrics.stat().st_mtime > weights.stat().st_mtime:
        return True
    evaluation = ["training.evaluate", str(run), "--data", str(data), "--split", "test"]
    return finish(evaluation, deadline)


def finish(words: list[str], deadline: float | None) -> bool:
    """Run a program to its end, or stop it in time; False where time was up.

    Raises:
        UsageError: it failed; it has said why itself.
    """
    print(f"$ python -m {shlex.join(words)}", flush=True)
    process = subprocess.Popen([sys.executable, "-m", *words], env=os.environ)
    try:
        left = None if deadline is None else max(1.0, deadline - time.monotonic())
        status = process.wait(left)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        status = process.wait()
    except KeyboardInterrupt:
        process.wait()  # Ctrl-C has reached it too, and it saves
        raise
    if status in (128 + signal.SIGTERM, -signal.SIGTERM):  # the latter: before its first step
        return False
    if status:
        raise UsageError(f"{words[0]} ended with status {status}")
    return True


def split_options(options: str) -> list[str]:
    """Further options of a program, as they stand in quotes.

    Raises:
        UsageError: quotes in them are not closed.
    """
    try:
        return shlex.split(options)
    except ValueError as error:
        raise UsageError(f"options {options!r}: {error}") from error
