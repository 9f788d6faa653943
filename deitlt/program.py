"""How every command-line program of the project begins and ends: one line, and an exit status."""

import argparse
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any, NoReturn

from deitlt.errors import DeitLTError

OK, WRONG_USE, SOME_FAILED = 0, 2, 3
INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended
TERMINATED = 143  # and of one that SIGTERM ended
UNREAD = 141  # and of one that wrote into a pipe which nobody reads any more


class Terminated(BaseException):
    """SIGTERM has come; like Ctrl-C it is no error that anything but the program's end handles."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """While it lasts SIGTERM raises `Terminated` in the main thread: all is left cleanly."""
    if threading.current_thread() is not threading.main_thread():  # it takes no signals
        yield
        return

    def stop(*_: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the leaving short
        raise Terminated

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


class OneLineParser(argparse.ArgumentParser):
    """A parser that answers wrong use with one line instead of the whole usage text."""

    _words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse; what is parsed is kept to explain an error."""
        self._words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2. Of an unknown option and a missing one the unknown is named."""
        known = tuple(self._option_string_actions)
        flags = [word.partition("=")[0] for word in self._words if word.startswith("--")]
        strange = [flag for flag in flags if not any(name.startswith(flag) for name in known)]
        if strange and "required" in message:
            message = f"unrecognized arguments: {' '.join(strange)}"
        self.exit(WRONG_USE, f"{self.prog}: {message}; see {self.prog} --help\n")


def typed(module: str, argv: Sequence[str] | None) -> str:
    """The command that runs a module as a program with these arguments, or the process's own."""
    return shlex.join(["python", "-m", module, *(sys.argv[1:] if argv is None else argv)])


def run_program(
    program: str,
    body: Callable[[], int | None],
    *,
    output: object = "output",
    interrupted: str = "interrupted; nothing was written",
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> int:
    """Run a program's body; a user's mistake becomes one line on stderr.

    Args:
        program: its name, which starts the line.
        body: may return an exit status of its own.
        output: what a write error is about where the system names no file.
        interrupted: what to say after Ctrl-C.
        say: where the line goes.

    Returns:
        The body's status or 0; 2 for a user's mistake, 130 after Ctrl-C, 143 after SIGTERM in
        `sigterm_raises`, 141 where the reader of standard output has gone (`| head`).
    """
    # Names of classes need not be in its encoding.
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = body() or OK
        _flush_output()
        return status
    except DeitLTError as error:
        say(f"{program}: {error}")
        return WRONG_USE
    except BrokenPipeError:
        return UNREAD
    except OSError as error:
        say(f"{program}: {error.filename or output}: {error.strerror or error}")
        return WRONG_USE
    except (KeyboardInterrupt, Terminated) as error:
        say(f"{program}: {interrupted}")
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else TERMINATED
    finally:
        with suppress(OSError):
            _flush_output()


def _flush_output() -> None:
    """Have all that was printed arrive; what cannot is let go of, lest the interpreter speak of it.

    Raises:
        OSError: why it cannot, the first time.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise
