"""Images in tar archives, such as WebDataset shards, in the order they were archived."""

import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from deitlt.batch.places import Held, Place, Unreadable
from deitlt.errors import ImageTooLarge, OpenFailed
from deitlt.image_files import MAX_BYTES
from deitlt.preprocess import SUFFIXES

PLAIN = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# A member of a compressed archive is held in memory until it is decoded; none larger than this is.
# What `tarfile` and what unpacks raise where headers or data mean nothing.
DAMAGED = (
    *(tarfile.TarError, OSError, EOFError, ValueError, OverflowError),
    *(zlib.error, lzma.LZMAError),
)


@dataclass(frozen=True, slots=True)
class TarMember:
    """Bytes of an archive that is not compressed, from `start` to before `end`."""

    archive: Path
    start: int
    end: int

    def read(self) -> bytes:
        """The member's content; raises `OpenFailed`, `ImageTooLarge`."""
        if self.end - self.start > MAX_BYTES:
            raise ImageTooLarge(f"{self.archive}: an image of more than {MAX_BYTES} bytes in it")
        try:
            with self.archive.open("rb") as file:
                file.seek(self.start)
                data = file.read(self.end - self.start)
        except OSError as error:
            raise OpenFailed(f"{self.archive}: cannot be read ({error.strerror})") from error
        if len(data) != self.end - self.start:
            raise OpenFailed(f"{self.archive}: ends in the middle of the image")
        return data


class _StrictInfo(tarfile.TarInfo):
    """A header that must be one: `tarfile` takes a damaged one for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictInfo":
        """The header in a block; raises `ReadError` unless it is one or marks the end."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if not buf.strip(b"\0"):
                raise
            raise tarfile.ReadError("a header in it is damaged") from error


def is_tar(name: str) -> bool:
    """Whether a file of this name is looked into."""
    return name.lower().endswith((PLAIN, *COMPRESSED))


def is_compressed_tar(name: str) -> bool:
    """Whether its members can only be reached through all that lies before them."""
    return name.lower().endswith(COMPRESSED)


def local_tar_members(archive: Path) -> Iterator[tuple[str, Place]]:
    """What `tar_members` says of a file on this machine."""
    return tar_members(
        archive.name,
        lambda: archive.open("rb"),
        lambda start, end: TarMember(archive, start, end),
    )


def tar_members(
    archive: str, opened: Callable[[], IO[bytes]], place: Callable[[int, int], Place]
) -> Iterator[tuple[str, Place]]:
    """Names and places of the image files in an archive; hidden members are left out.

    Of an archive that is not compressed only the headers are read here. Where an archive cannot be
    read to its end, the last name is empty and its place says why: it stands for the archive.

    Args:
        archive: its name, which says how it is compressed.
        opened: opens it.
        place: where the bytes from a start to before an end are.
    """
    compressed = is_compressed_tar(archive)
    try:
        with (
            opened() as file,
            tarfile.open(
                fileobj=file,
                mode="r|*" if compressed else "r:",
                tarinfo=_StrictInfo,
                encoding="utf-8",
                errors="surrogateescape",
            ) as tar,
        ):
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or it keeps every header
                _check_progress(tar, member)
                if _is_wanted(member):
                    yield member.name, _place(tar, member, place, compressed)
    except DAMAGED as error:
        yield "", Unreadable(f"{archive}: cannot be read to its end ({error})")


def _check_progress(tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    """Refuse sizes that lead back, so that the same headers would come for ever, or nowhere."""
    if member.size < 0 or not member.offset < tar.offset < 1 << 60:
        raise tarfile.ReadError(f"{member.name}: impossible size {member.size}")


def _is_wanted(member: tarfile.TarInfo) -> bool:
    path = PurePosixPath(member.name)
    hidden = any(part.startswith(".") and part != ".." for part in path.parts)
    return not member.isdir() and not hidden and path.suffix.lower() in SUFFIXES


def _place(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    place: Callable[[int, int], Place],
    compressed: bool,
) -> Place:
    if not member.isreg():
        return Unreadable(f"{member.name}: is a link or no file in its archive; pack the file")
    if not compressed and not member.issparse():
        return place(member.offset_data, member.offset_data + member.size)
    if member.size > MAX_BYTES:
        text = f"{member.name}: {member.size} bytes, at most {MAX_BYTES} are unpacked"
        return Unreadable(text, ImageTooLarge)
    file = tar.extractfile(member)
    assert file is not None, "a regular member has content"
    return Held(file.read())
