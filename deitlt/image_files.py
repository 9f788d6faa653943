"""Files on this machine: what lies under a folder, and the bytes of an image."""

import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from deitlt.errors import OpenFailed

# Of one encoded image; it is held in memory whole.
MAX_BYTES = 1 << 28

# What a network's file system answers while a server comes back; a night's work should outlast it.
PASSING_ERRORS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
WAITS_S = (0.1, 1.0)


def walk(top: str) -> Iterator[tuple[str, "os.DirEntry[str] | OSError | None"]]:
    """What lies under a folder, in the order of names, hidden entries left out.

    Links are followed, but not back into a folder that they lie in. However deep folders are
    nested, no more than their names is held.

    Args:
        top: the folder; empty for the current one.

    Yields:
        Names relative to `top`, with the entry of a file. Those of folders end in `/` (that of
        `top` itself is empty), and come with None, or with why they cannot be listed.
    """
    above: list[tuple[int, int]] = []  # the folders it is in, by device and number
    entered: list[Iterator[tuple[str, os.DirEntry[str] | None]]] = [iter([("", None)])]
    while entered:
        name, entry = next(entered[-1], (None, None))
        if name is None:
            entered.pop()
            del above[-1:]
        elif entry is not None and not _is_folder(entry):
            yield name, entry
        else:
            folder = os.path.join(top, name) or os.curdir
            prefix = f"{name}/" if name else ""
            try:
                status = os.stat(folder)
                this = (status.st_dev, status.st_ino)
                if this in above:
                    continue
                with os.scandir(folder) as found:
                    inside = sorted(found, key=lambda entry: entry.name)
            except OSError as error:
                yield prefix, error
                continue
            yield prefix, None
            above.append(this)
            entered.append(iter([(prefix + e.name, e) for e in inside if e.name[0] != "."]))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    # A link is looked at by its path: the entry itself would raise where links lead in a ring.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def read_image_file(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The content, or one byte more than `max_bytes` of it.

    An error that may pass is waited out, `WAITS_S` long.

    Raises:
        OpenFailed: it cannot be read, or is a pipe or device.
    """
    waits = iter(WAITS_S)
    while True:
        try:
            return _read(path, max_bytes)
        except (OSError, ValueError) as error:
            passing = getattr(error, "errno", None) in PASSING_ERRORS
            wait = next(waits, None) if passing else None
            if wait is None:
                reason = getattr(error, "strerror", None) or error
                raise OpenFailed(f"{path}: cannot be read ({reason})") from error
        time.sleep(wait)


def _read(path: str | Path, max_bytes: int) -> bytes:
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OpenFailed(f"{path}: cannot be read (it is a pipe or a device, no file)")
        return file.read(max_bytes + 1)


def _open_at_once(path: str, flags: int) -> int:
    """Else opening a pipe would wait for a writer for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
