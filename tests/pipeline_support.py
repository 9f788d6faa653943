"""What a decoding process can import: images at hand, and some that are bad for it."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deitlt.errors import OpenFailed


@dataclass(frozen=True)
class Given:
    """The bytes of an image."""

    data: bytes
    filename: str = ""

    def read(self) -> bytes:
        return self.data


@dataclass(frozen=True)
class Gone:
    """A file that is not there any more."""

    filename: str = "gone"

    def read(self) -> bytes:
        raise OpenFailed("gone: cannot be read")


@dataclass(frozen=True)
class Killer:
    """An image that kills who decodes it, each time or, with a place to note it, the first time."""

    data: bytes
    note: Path | None = None
    filename: str = "killer"

    def read(self) -> bytes:
        if self.note is None or not self.note.exists():
            if self.note is not None:
                self.note.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.data


def children(pid: int) -> set[int]:
    """Decoding processes that a process has started and that still run."""
    found: set[int] = set()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        found |= {int(child) for child in file.read_text().split()}
    return {child for child in found if b"decode_worker" in _command(child)}


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has just ended
        return b""


def counted(items: Iterator[Given], taken: list[int]) -> Iterator[Given]:
    """The items; how many were taken stands in `taken[0]`."""
    for item in items:
        taken[0] += 1
        yield item
