"""Images behind URLs, through fsspec: s3://, gs://, https:// and what else it knows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import IO, Any

from deitlt.batch.places import Place
from deitlt.batch.tar_files import is_tar, tar_members
from deitlt.errors import DeitLTError, ImageTooLarge, OpenFailed, UsageError
from deitlt.image_files import MAX_BYTES, walk
from deitlt.preprocess import SUFFIXES

WEB = ("http", "https")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file behind a URL, or the bytes of it from `start` to before `end`."""

    url: str
    start: int | None = None
    end: int | None = None

    def read(self) -> bytes:
        """Its bytes, or one more than an image may have; raises `OpenFailed`, `ImageTooLarge`."""
        if self.start is not None and self.end is not None and self.end - self.start > MAX_BYTES:
            raise ImageTooLarge(f"{self.url}: an image of more than {MAX_BYTES} bytes in it")
        end = MAX_BYTES + 1 if self.end is None else self.end
        try:
            system, path = _open(self.url)
            data: bytes = system.cat_file(path, start=self.start, end=end)
        except Exception as error:  # every file system raises errors of its own
            raise OpenFailed(f"{self.url}: cannot be read ({_reason(error)})") from error
        if self.start is not None and self.end is not None and len(data) > self.end - self.start:
            data = data[self.start : self.end]  # the server knows of no ranges and sent it whole
        if self.start is not None and self.end is not None and len(data) != self.end - self.start:
            raise OpenFailed(f"{self.url}: ends in the middle of the image")
        return data


def is_url(text: str) -> bool:
    """Whether this names something that fsspec reads, and no local file."""
    return "://" in text


def remote_images(url: str) -> Iterator[tuple[str, Place]]:
    """Names (URLs) and places of what a URL stands for: a file, a folder, a pattern or a tar.

    A folder is looked through recursively for image files, hidden ones left out; one behind http
    must end in `/`, and its server must list what is in it.

    Raises:
        UsageError: there is nothing, fsspec is missing, or the URL's kind needs another package.
    """
    try:
        system, path = _open(url)
        found = _listed(system, path)
    except DeitLTError:
        raise
    except Exception as error:  # every file system raises errors of its own
        raise UsageError(f"{url}: cannot be listed ({_reason(error)})") from error
    if not found:
        raise UsageError(f"{url}: there is no such file, folder or match")
    return _images(system, found, _address(url, system, path))


def _images(
    system: Any, found: list[str], address: Callable[[str], str]
) -> Iterator[tuple[str, Place]]:
    for path in found:
        url = address(path)
        if is_tar(path):
            yield from _tar(system, path, url)
        else:
            yield url, RemoteFile(url)


def _address(url: str, system: Any, path: str) -> Callable[[str], str]:
    """What makes URLs of a file system's paths, like the one whose path is known.

    `unstrip_protocol` forgets hosts and users, and all behind the `::` of a chain.
    """
    first, chained, rest = url.partition("::")
    bare = path.rstrip("/")
    start = first.rstrip("/") if bare else first
    if not start.endswith(bare):
        return lambda other: str(system.unstrip_protocol(other)) + chained + rest
    start = start.removesuffix(bare)
    return lambda other: f"{start}{other}{chained}{rest}"


def _tar(system: Any, path: str, url: str) -> Iterator[tuple[str, Place]]:
    def opened() -> IO[bytes]:
        file: IO[bytes] = system.open(path, "rb")
        return file

    for name, place in tar_members(url, opened, lambda start, end: RemoteFile(url, start, end)):
        yield f"{url}/{name}" if name else url, place


def _listed(system: Any, path: str) -> list[str]:
    """Paths of the files that a path stands for; none if there are none."""
    web = system.protocol[0] in WEB if not isinstance(system.protocol, str) else False
    magic = "*[" if web else "*?["  # a question mark begins the query of a web address
    if any(sign in path for sign in magic) and not system.exists(path):
        top = path[: min(path.find(sign) for sign in magic if sign in path)]
        found = map(str, system.glob(path))
        return sorted(file for file in found if _is_visible(file, top) and not system.isdir(file))
    if path.endswith("/") if web else system.isdir(path):
        found = map(str, _found(system, path))
        return sorted(file for file in found if _is_visible(file, path) and _is_image(file))
    return [path] if web or system.exists(path) else []


def _found(system: Any, top: str) -> Iterator[str]:
    """All files under a folder, and some hidden ones.

    What `find` gives, but that of most file systems passes over every folder which cannot be
    listed, as on a server that is gone; object stores have one of their own. Names that lead
    nowhere, as links of a web page do, are passed over here, too.
    """
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem
    from fsspec.implementations.local import LocalFileSystem

    if isinstance(system, LocalFileSystem):  # whose own way leaves out linked folders
        for _, entry in walk(top):
            if isinstance(entry, OSError):
                raise entry
            if entry is not None:
                yield entry.path
        return
    kind = type(system)
    general = getattr(kind, "_find", AsyncFileSystem._find) is AsyncFileSystem._find
    if not (general and kind.find is AbstractFileSystem.find):
        yield from system.find(top)
        return
    files, folders, seen = set[str](), [top], {top.rstrip("/")}
    while folders:
        try:
            entries = system.ls(folders.pop(), detail=True)
        except FileNotFoundError:
            continue
        for entry in entries:
            name = str(entry["name"])
            bare = name.rstrip("/")
            if entry["type"] != "directory":
                files.add(name)
            elif bare not in seen and not bare.rpartition("/")[2].startswith("."):
                seen.add(bare)  # some list a folder in itself
                folders.append(name)
    yield from files


def _is_visible(file: str, top: str) -> bool:
    """Whether neither it nor a folder below `top` that it lies in is hidden."""
    return not any(part.startswith(".") for part in PurePosixPath(file.removeprefix(top)).parts)


def _is_image(file: str) -> bool:
    return PurePosixPath(file).suffix.lower() in SUFFIXES


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL (kept for all of its URLs), and the path in it."""
    try:
        import fsspec
    except ImportError as error:
        raise UsageError(f"{url}: URLs need fsspec; pip install 'deitlt[remote]'") from error
    first, chained, rest = url.partition("::")
    try:
        if not chained:
            system, path = fsspec.url_to_fs(url)
            return system, str(path)
        system = _chained(f"{first.partition('://')[0]}://::{rest}")
        return system, str(system._strip_protocol(first))
    except (ImportError, ValueError) as error:  # the package for s3://, say, or no such protocol
        raise UsageError(f"{url}: {_reason(error)}") from error


@lru_cache(maxsize=4)
def _chained(url: str) -> Any:
    """The file system in another's file; fsspec would read a zip's directory for each picture."""
    import fsspec

    return fsspec.url_to_fs(url)[0]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
