"""What the readers of labelled images share: rows, the two ways to take a fault, a file check.

A reader is given `complain`, and goes on after calling it as if the faulty thing were not there.
Training passes `refuse`, so that the first fault ends the reading; the doctor collects them all.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

from deitlt.errors import DataError

SPLITS = ("train", "val", "test")
# What others call them; case does not count.
OTHER_NAMES = {"training": "train", "validation": "val", "valid": "val", "testing": "test"}

Layout = Literal["class folders", "csv", "lists"]


class Row(NamedTuple):
    """One labelled image: its file, the name of its class, and its group (empty: none)."""

    path: Path
    name: str
    group: str = ""


class Fault(NamedTuple):
    """What is wrong with the data: a stable word for programs, and a line that says what to do."""

    kind: str
    text: str


Complain = Callable[[str, str], None]
"""Told of a fault's `kind` and `text`."""


@dataclass(frozen=True)
class Listing:
    """What a reader found.

    Attributes:
        layout: what kind of data it is.
        rows: by split, in the order `train`, `val`, `test`; or `all` where none is marked.
        classes: class names in the order of their labels; None where names alone set the order.
        notes: what a user should know of how the data was understood, a line each.
    """

    layout: Layout
    rows: dict[str, list[Row]]
    classes: list[str] | None = None
    notes: list[str] = field(default_factory=list)


def split_of(name: str) -> str:
    """The split that a folder or cell of this name means, if it means any; else the name."""
    lower = name.lower()
    return OTHER_NAMES.get(lower, lower)


def refuse(kind: str, text: str) -> NoReturn:
    """The strict way to take a fault.

    Raises:
        DataError: always, with `text`.
    """
    raise DataError(text)


class FileCheck:
    """Which files exist: one look into each folder instead of one at each of its files."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def exists(self, path: str) -> bool:
        """Whether there is a file at `path`, be it through a link."""
        folder, name = os.path.split(path)
        if folder not in self._names:
            self._names[folder] = _file_names(folder or ".")
        # The second look is for file systems that fold case or accents; it is rarely needed.
        return name in self._names[folder] or os.path.isfile(path)


class NoFileCheck(FileCheck):
    """Takes every file to be there."""

    def exists(self, path: str) -> bool:
        """True."""
        return True


def _file_names(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (OSError, ValueError):  # no such folder, or no possible name of one
        return frozenset()
