"""A lock on a folder that the system lets go of when its holder ends, however it ends."""

import errno
import os
import sys
from pathlib import Path
from typing import IO

from deitlt.errors import UsageError

NAME = "lock"
# What file systems without locks answer: Lustre as it is mounted by default, NFS without its lock
# daemon, gateways to object stores.
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


class FolderLock:
    """The right to work in a folder, for one process at a time; a file in it carries the lock.

    Where the file system knows no locks everyone has it.
    """

    def __init__(self, folder: Path) -> None:
        """Take the lock, and make the folder if it is not there.

        Raises:
            UsageError: another process holds it.
        """
        self._path = folder / NAME
        while True:
            folder.mkdir(exist_ok=True)
            try:
                self._file = self._path.open("ab")
            except FileNotFoundError:  # its last holder has just removed the folder
                continue
            if not _try_lock(self._file):
                self._file.close()
                raise UsageError(
                    f"{folder}: another run writes there; wait for it, or name another output"
                )
            if self._is_in_place():
                return
            self._file.close()

    def share_with_children(self) -> None:
        """Let processes started from now on, with `close_fds=False`, hold on to the lock too.

        It is free again when the last of them has ended.
        """
        os.set_inheritable(self._file.fileno(), True)

    def release(self, *, remove: bool = False) -> None:
        """Let go; with `remove` the folder goes too, if the lock is all that is in it."""
        if remove and sys.platform != "win32":  # while it is held, so that nobody takes it
            self._remove()
        self._file.close()
        if remove and sys.platform == "win32":  # Windows removes no open file
            self._remove()

    def _remove(self) -> None:
        self._path.unlink(missing_ok=True)
        if not any(self._path.parent.iterdir()):
            self._path.parent.rmdir()

    def _is_in_place(self) -> bool:
        """Whether what was locked is still the file of this name, and not one just removed."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False


def _try_lock(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True
