"""What there is to classify: files, folders and patterns, as sources in a fixed order."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deitlt.errors import UsageError
from deitlt.labelled import image_files


@dataclass(frozen=True, slots=True)
class Source:
    """An image to classify: where it is, and the name its rows bear."""

    path: Path
    filename: str

    def read(self) -> Path:
        """The file, for the preprocessing to read."""
        return self.path


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """Images of files, folders (recursive) and glob patterns, in the order given.

    A single folder's files are named relative to it. With several inputs every name begins with its
    input as it was given, so that `a/1.png` and `b/1.png` stay two. Folders are separated by `/`.

    Raises:
        UsageError: an input does not exist, or there is no image at all.
    """
    sources: list[Source] = []
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            for file in image_files(path):
                name = file.relative_to(path) if len(inputs) == 1 else file
                sources.append(Source(file, name.as_posix()))
        elif path.exists():
            sources.append(Source(path, path.as_posix()))
        elif matches := sorted(glob.glob(item, recursive=True)):
            files = (Path(match) for match in matches)
            sources.extend(Source(file, file.as_posix()) for file in files if file.is_file())
        else:
            raise UsageError(f"{item}: there is no such file, folder or match")
    if not sources:
        raise UsageError(f"no images in {', '.join(inputs)}")
    return sources
