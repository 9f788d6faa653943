"""The bytes of an image file, read without waiting and never more than an image may have."""

import os
import stat
from pathlib import Path

from deitlt.errors import OpenFailed

# Of one encoded image; it is held in memory whole.
MAX_BYTES = 1 << 28


def read_image_file(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The content, or one byte more than `max_bytes` of it.

    Raises:
        OpenFailed: it cannot be read, or is a pipe or device.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OpenFailed(f"{path}: cannot be read (it is a pipe or a device, no file)")
            return file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OpenFailed(f"{path}: cannot be read ({reason})") from error


def _open_at_once(path: str, flags: int) -> int:
    """Else opening a pipe would wait for a writer for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
