"""Whether the service can start; as a program it only tries, and says what is wrong.

DEITLT_MODEL=bundle/ DEITLT_DEVICE=cuda python -m serving.startup
"""

import logging
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from deitlt.errors import DeitLTError
from serving.backend import Backend
from serving.settings import Settings

logger = logging.getLogger("deitlt.serving")

OK, WRONG_USE = 0, 2
PAUSE_S = 5.0


def why_not() -> str | None:
    """One line that says why the service cannot start as the environment stands; None if it can.

    It tries in a process of its own: whatever a runtime holds on to (a CUDA context is hundreds of
    megabytes) is gone when the workers start.
    """
    # A fork has everything imported already, which saves a tenth of the whole start.
    # Beside other threads, or on macOS, a forked process may hang.
    can_fork = sys.platform == "linux" and threading.active_count() == 1
    status, said = _try_forked() if can_fork else _try_spawned()
    if status == OK:
        return None
    lines = said.strip().splitlines()
    return lines[-1] if lines else f"the start-up check ended with status {status}"


def give_up(error: DeitLTError) -> NoReturn:
    """End a worker that cannot start, as where its bundle was damaged since the check, in one line.

    BentoML starts the next at once, for ever; raising would have it log two tracebacks each time.
    """
    logger.critical("this worker cannot start, the next one tries in %g s: %s", PAUSE_S, error)
    logging.shutdown()
    time.sleep(PAUSE_S)
    os._exit(WRONG_USE)


def _try_forked() -> tuple[int, str]:
    """Exit status and standard error of `main` in a fork of this process."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.dup2(sender, 2)  # what ONNX Runtime itself writes, too
            with open(2, "w", closefd=False) as sys.stderr:
                status = main([])
        except Exception:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(sender)
    with open(receiver, errors="replace") as output:
        said = output.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def _try_spawned() -> tuple[int, str]:
    """Exit status and standard error of this module as a program."""
    checkout = str(Path(__file__).resolve().parents[1])
    paths = [checkout, *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [sys.executable, "-m", "serving.startup"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    return result.returncode, result.stderr


def main(argv: Sequence[str] | None = None) -> int:
    """Try to load every model.

    Returns:
        0 if it works, 2 if not, with one line on standard error.
    """
    if argv if argv is not None else sys.argv[1:]:
        print("usage: python -m serving.startup (settings come from DEITLT_*)", file=sys.stderr)
        return WRONG_USE
    try:
        Backend.start(Settings.from_environ(os.environ)).close()
    except DeitLTError as error:
        print(error, file=sys.stderr)
        return WRONG_USE
    return OK


if __name__ == "__main__":
    sys.exit(main())
