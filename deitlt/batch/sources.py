"""What there is to classify: files, folders, patterns, lists, archives and URLs, in a fixed order.

Sources come one by one, whatever their number; only the names in one folder, the matches of one
pattern and the listing of one URL are ever in memory together.
"""

import glob
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from deitlt.batch.path_lists import csv_paths, line_paths, text_paths
from deitlt.batch.places import Place, Unreadable
from deitlt.batch.remote_files import RemoteFile, is_url, remote_images
from deitlt.batch.tar_files import is_compressed_tar, is_tar, local_tar_members
from deitlt.errors import UsageError
from deitlt.image_files import walk
from deitlt.preprocess import SUFFIXES, ImageLike

STDIN = "-"


@dataclass(frozen=True, slots=True)
class Source:
    """An image to classify: where it is, and the name its rows bear."""

    place: Path | Place
    filename: str

    def read(self) -> ImageLike:
        """What `Classifier.predict` takes: the path of a plain file, else bytes.

        Raises:
            OpenFailed: it cannot be read. Of a plain file, the one who opens the path says so.
            ImageTooLarge: it is too large to be unpacked.
        """
        return self.place if isinstance(self.place, Path) else self.place.read()


def find_sources(inputs: Sequence[str], lists: Sequence[str] = ()) -> Iterator[Source]:
    """Images of all inputs and lists, in the order given.

    An input is a file, a folder (image files by suffix, recursive, sorted, hidden ones left out,
    a link back to a folder above not followed), a CSV with a column of paths, a tar archive, a
    pattern, a URL, or `-` for paths on standard input.

    A single folder's files are named relative to it. With several inputs every name begins with its
    input as it was given, so that `a/1.png` and `b/1.png` stay two. Files of a list bear the name
    that stands there; those of an archive the archive's name and their own. Folders are separated
    by `/`.

    Args:
        inputs: as above.
        lists: CSV or text files of paths, relative to where the list lies; `-` for standard input,
            relative to the current folder, as those of a pipe are.

    Raises:
        UsageError: an input does not exist, or there is no image at all.
        DataError: a CSV has no column of paths, or a list is no text.
    """
    alone = len(inputs) + len(lists) == 1
    parts = [_input(item, alone=alone) for item in inputs] + [_listed(item) for item in lists]
    sources = chain.from_iterable(parts)
    first = next(sources, None)
    if first is None:
        raise UsageError(f"no images in {', '.join([*inputs, *lists])}")
    return chain([first], sources)


def count_sources(inputs: Sequence[str], lists: Sequence[str] = ()) -> int | None:
    """How many sources `find_sources` gives; None where counting would use them up or take long."""
    for item in [*inputs, *lists]:
        if item == STDIN or is_url(item) or is_compressed_tar(item) or _is_pipe(item):
            return None
    return sum(1 for _ in find_sources(inputs, lists))


def _input(item: str, *, alone: bool) -> Iterator[Source]:
    path = Path(item)
    if not item:
        raise UsageError("an INPUT is empty; is a variable of the shell not set?")
    if item == STDIN:
        return _listed(item)
    if is_url(item):
        return (Source(place, name) for name, place in remote_images(item))
    if path.is_dir():
        return _folder_sources(path, "" if alone else f"{path.as_posix().rstrip('/')}/")
    if os.path.lexists(path):
        if path.suffix.lower() == ".csv":
            return _listed(item)
        return _file_sources(path)
    if matches := sorted(_matches(item)):
        # `**` has matched what lies in a folder, too.
        wanted = (path for path in map(Path, matches) if "**" not in item or not path.is_dir())
        return chain.from_iterable(_matched(path) for path in wanted)
    raise UsageError(f"{item}: there is no such file, folder or match")


def _matched(path: Path) -> Iterator[Source]:
    if path.is_dir():
        return _folder_sources(path, f"{path.as_posix()}/")
    return _file_sources(path)


def _file_sources(path: Path) -> Iterator[Source]:
    name = path.as_posix()
    if not is_tar(name):
        return iter([Source(path, name)])
    members = local_tar_members(path)
    return (Source(place, f"{name}/{member}" if member else name) for member, place in members)


def _listed(item: str) -> Iterator[Source]:
    """The sources of a list; each line or cell is a file or a URL."""
    if item == STDIN:
        if sys.stdin is None:
            raise UsageError("-: standard input is closed")
        return (_listed_source(text, Path()) for text in line_paths(sys.stdin.buffer, item))
    file = Path(item)
    if not file.exists():
        raise UsageError(f"{item}: there is no such list of files")
    if file.is_dir():
        raise UsageError(f"{item}: is a folder; a list of files is a .csv or a text file")
    paths = csv_paths(file) if file.suffix.lower() == ".csv" else text_paths(file)
    # Of a shell's <(...) its place among the open files says nothing of where the images are.
    folder = Path() if _is_pipe(item) else file.parent
    return (_listed_source(text, folder) for text in paths)


def _listed_source(text: str, folder: Path) -> Source:
    if not text:
        return Source(Unreadable("the list names no file here"), text)
    return Source(RemoteFile(text) if is_url(text) else folder / text, text)


def _folder_sources(folder: Path, prefix: str) -> Iterator[Source]:
    """Image files under a folder, and folders in it that cannot be listed."""
    for name, entry in walk(str(folder)):
        if isinstance(entry, OSError):
            where = folder / name
            reason = f"{where}: cannot be listed ({entry.strerror})"
            yield Source(Unreadable(reason), prefix + name or where.as_posix())
        elif entry is not None and os.path.splitext(name)[1].lower() in SUFFIXES:
            # Opening a pipe would wait for a writer for ever.
            plain = entry.is_symlink() or entry.is_file()
            place = Path(entry.path) if plain else Unreadable(f"{entry.path}: is no plain file")
            yield Source(place, prefix + name)


def _matches(pattern: str) -> set[str]:
    """Paths that a pattern matches; `**` stands for any number of folders.

    `glob` alone would follow links in circles, and take for ever where two of them cross.
    """
    parts = pattern.split("/")
    if "**" not in parts:
        return set(glob.glob(pattern))
    at = parts.index("**")
    rest = "/".join(parts[at + 1 :]) or "*"
    tops = glob.glob("/".join(parts[:at]) or "/") if at else [""]
    folders = (folder for top in tops for folder in _folders_under(top))
    return {match for folder in folders for match in _matches(f"{glob.escape(folder)}{rest}")}


def _folders_under(folder: str) -> Iterator[str]:
    """A folder and all visible ones under it, with a `/` behind; the current one is empty."""
    top = os.path.join(folder, "") if folder else ""
    # One that does not let itself be looked into holds nothing that matches.
    return (top + name for name, entry in walk(folder) if entry is None)


def _is_pipe(item: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(item).st_mode)
    except (OSError, ValueError):  # a pattern
        return False
