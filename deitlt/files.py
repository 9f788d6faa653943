"""Writes that are whole or not there at all, even through a kill or a power cut."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from deitlt.errors import UsageError

# What the name of a folder ends with that `new_folder` has not finished.
UNFINISHED = ".unfinished"


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a temporary file beside `path`, then rename it over `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Atomic `Path.write_text` in UTF-8 with Unix line ends."""
    write_atomic(path, lambda file: _write_bytes(file, text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Atomic, indented JSON."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """What `write_json` writes; where a name is no UTF-8, escapes keep its bytes."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=2) + "\n"
    return text


@contextmanager
def new_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and vanishes when it fails.

    A former `path` is replaced only then, and only with `overwrite`; the caller has checked that it
    may be. Two renames, so a kill between them leaves the old folder under `.<name>.old`; the next
    call puts it back, and removes what a kill left of the new one.
    """
    path = Path(os.path.abspath(path))  # "." has no name to build a temporary one from
    path.parent.mkdir(parents=True, exist_ok=True)
    restore_stranded(path)
    old = _former(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary.chmod(0o755)
    lock = _lock(temporary)
    try:
        if lock is not None:  # only now, lest another call takes it for what a kill has left
            temporary = temporary.rename(f"{temporary}{UNFINISHED}")
        yield temporary
        for file in [*temporary.rglob("*"), temporary]:
            sync(file)
        if overwrite and path.exists():
            _remove(old)
            path.rename(old)
        elif path.exists():
            path.rmdir()  # an empty folder made by the user; anything else is an error here
        temporary.rename(path)
        sync(path.parent)
        _remove(old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def refuse_mount(path: Path) -> None:
    """Refuse a folder that `new_folder` could not put another in place of, before any work is done.

    Raises:
        UsageError: a volume is mounted there, as in a container.
    """
    if os.path.ismount(path):
        raise UsageError(f"{path}: is where a volume is mounted; name a folder inside it")


def restore_stranded(path: Path) -> None:
    """Put back a folder that a killed `new_folder` had moved aside, and remove its unfinished one.

    Those of processes that still work on theirs stay.
    """
    path = Path(os.path.abspath(path))
    if _former(path).exists() and not path.exists():
        _former(path).rename(path)
    try:
        names = os.listdir(path.parent)
    except OSError:  # no such folder, or not ours to look into
        return
    for name in names:
        if name.startswith(f".{path.name}.") and name.endswith(UNFINISHED):
            left = path.with_name(name)
            lock = _lock(left)
            if lock is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)


def move_into_place(source: Path, target: Path) -> None:
    """Rename a file that is on the disk already over `target`, and have the name on the disk."""
    os.replace(source, target)
    sync(target.parent)
    sync(source.parent)


def sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder to flush it
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _lock(folder: Path) -> int | None:
    """A descriptor that locks a folder until it is closed, or its process ends however it ends.

    None where another has it, or where folders cannot be locked (Windows, NFS).
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # removed meanwhile, or no folder
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(folder: Path) -> None:
    """Delete a folder as far as that is possible; of a link to one, the link alone."""
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _former(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
