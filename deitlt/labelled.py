"""Labelled images on disk: class folders, a CSV, or list files. Training and export read them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deitlt.csv_files import read_csv
from deitlt.errors import DataError
from deitlt.image_files import walk
from deitlt.labelled_rows import (
    SPLITS,
    Complain,
    Fault,
    FileCheck,
    Layout,
    Listing,
    NoFileCheck,
    Row,
    refuse,
    split_of,
)
from deitlt.list_files import find_lists, read_lists
from deitlt.longtail import IntArray, class_counts
from deitlt.preprocess import SUFFIXES

# Which images are judged on where nothing is said.
EVALUATION_ORDER = ("test", "val", "all", "train")
# Folders that a note names.
NAMED = 5


@dataclass(frozen=True)
class LabelledImages:
    """Image files with class indices; `classes[label]` is the name.

    Attributes:
        paths: one file an image.
        labels: class index of each, `(N,)`.
        classes: names, `C` of them.
        groups: what each image belongs to (site, patient, burst), `N` of them; None where images
            stand on their own. A group must not be split between training and evaluation.
    """

    paths: list[Path]
    labels: IntArray
    classes: list[str]
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def counts(self) -> IntArray:
        """Images of each class, `(C,)`."""
        return class_counts(self.labels, len(self.classes))

    def subset(self, indices: IntArray) -> "LabelledImages":
        """The images at `indices`, in that order, under the same classes."""
        groups = None if self.groups is None else [self.groups[i] for i in indices]
        paths = [self.paths[i] for i in indices]
        return LabelledImages(paths, self.labels[indices], self.classes, groups)


@dataclass(frozen=True)
class Inspection:
    """Labelled images as far as they can be read, and all that is wrong with them.

    Attributes:
        layout: what kind of data it is.
        splits: what `read_labelled` would return, without the faulty rows; classes that training
            lacks stand behind those it has.
        faults: what `read_labelled` refuses, its first refusal first; empty if it accepts the data.
        notes: what a user should know of how the data was understood.
    """

    layout: Layout
    splits: dict[str, LabelledImages]
    faults: list[Fault]
    notes: list[str]


def read_labelled(
    source: str | Path, classes: list[str] | None = None, *, keep_missing: bool = False
) -> dict[str, LabelledImages]:
    """Labelled images by split: any of `train`, `val` and `test`, or `all` where none is marked.

    Class folders: `<split>/<class>/*` or `<class>/*`. A folder is taken to hold splits if there are
    folders in its `train`, or if all its folders are called `train`, `val` or `test` and hold
    folders; so a class may be called `train`, and data to evaluate on may be just `test`. Splits
    may be called `training`, `valid`, `validation` and `testing`, too, in any case.

    CSV: the columns `image_path,label` and perhaps `split` and `group`; paths are relative to the
    CSV, and spaces around a cell do not count. A group (site, patient, burst) in two splits is
    refused: its images resemble each other, so figures on one split would flatter what was trained
    on the other.

    List files: a folder that holds `NAME_train.txt`, or any of its list files; see
    `deitlt.list_files`. They count before class folders beside them.

    Classes are sorted by name, those of lists by number, and files by path within their class.
    Hidden files and folders are left out.

    Args:
        source: the folder, CSV or list file.
        classes: the class names in the order a model knows them; those of the data by default.
            Data may lack some of them, but may have no others.
        keep_missing: also take rows of a CSV or list whose files are not there, for who reports
            them one by one as he does files that cannot be read.

    Raises:
        DataError: nothing there, an empty class folder (data of given `classes` may have them), no
            image at all, two folders of one split, a missing column or file, a class that the
            training split (or `classes`) lacks, several splits without `train` or `classes`, a
            group in two splits.
    """
    files = NoFileCheck() if keep_missing else FileCheck()
    return _read(Path(source), classes, refuse, files)[1]


def pick_split(
    splits: dict[str, LabelledImages], wanted: str | None, source: object
) -> tuple[str, LabelledImages]:
    """The split to judge on: what is wanted, or else test, val, all or train, the first there is.

    Raises:
        DataError: there is no such split; the text names `source`.
    """
    name = wanted or next(name for name in EVALUATION_ORDER if name in splits)
    if name not in splits:
        raise DataError(f"{source}: has no {name} images, only {', '.join(splits)}")
    return name, splits[name]


def inspect_labelled(source: str | Path, classes: list[str] | None = None) -> Inspection:
    """Like `read_labelled`, but all faults are collected and what is sound is returned.

    Raises:
        DataError: there is nothing at `source`, or it is not clear which lists to read.
    """
    faults: list[Fault] = []
    listing, splits = _read(
        Path(source), classes, lambda kind, text: faults.append(Fault(kind, text)), FileCheck()
    )
    return Inspection(listing.layout, splits, faults, listing.notes)


def image_files(folder: Path) -> Iterator[Path]:
    """Image files under a folder, by suffix, in sorted order; hidden entries are left out.

    Raises:
        OSError: it, or a folder in it, cannot be listed.
    """
    for _, entry in walk(str(folder)):
        if isinstance(entry, OSError):
            raise entry
        if entry is not None and os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            yield Path(entry.path)


def _read(
    root: Path, classes: list[str] | None, complain: Complain, files: FileCheck
) -> tuple[Listing, dict[str, LabelledImages]]:
    if not root.exists():
        raise DataError(f"{root}: there is no such folder or CSV file")
    lists = find_lists(root)
    if lists:
        listing = read_lists(lists, classes, complain, files)
    elif root.is_dir():
        listing = _read_tree(root, complain, known=classes is not None)
    else:
        listing = read_csv(root, complain, files)
    named = listing.rows
    if classes is None:
        if "train" not in named and len(named) > 1:
            text = f"{root}: has {' and '.join(named)}, but no train to take classes from"
            complain("no_train", text)
        reference = named.get("train", [row for rows in named.values() for row in rows])
        classes = listing.classes or sorted({row.name for row in reference})
    if len(classes) < 2:
        text = f"{root}: a classifier needs at least two classes, found {len(classes)}"
        complain("few_classes", text)
    for name in classes:
        if not _is_utf8(name):
            complain("class_name", f"{root}: class {name!r} is not named in UTF-8; rename it")
    known = len(classes)
    index = {name: i for i, name in enumerate(classes)}
    for split, rows in named.items():
        for name in sorted({row.name for row in rows} - set(classes)):
            complain(
                "unknown_class",
                f"{root}: class {name!r} of {split} is not among the {known} classes trained on; "
                "add training images or remove it",
            )
            index.setdefault(name, len(index))
    _check_groups(root, named, complain)
    return listing, {split: _images(rows, index) for split, rows in named.items()}


def _is_utf8(name: str) -> bool:
    """Whether a name can be written down; those of folders may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _images(rows: list[Row], index: dict[str, int]) -> LabelledImages:
    return LabelledImages(
        [row.path for row in rows],
        np.array([index[row.name] for row in rows], dtype=np.int64),
        list(index),
        [row.group for row in rows] if any(row.group for row in rows) else None,
    )


def _check_groups(root: Path, named: dict[str, list[Row]], complain: Complain) -> None:
    split_of: dict[str, str] = {}
    for split, rows in named.items():
        for group in sorted({row.group for row in rows if row.group}):
            other = split_of.setdefault(group, split)
            if other != split:
                complain(
                    "group_in_two_splits",
                    f"{root}: group {group!r} is in {other} and in {split}, so images of {split} "
                    "are no fair test; move all of a group to one split",
                )


def _read_tree(root: Path, complain: Complain, *, known: bool) -> Listing:
    names = _folders(root)
    called = {split: [name for name in names if split_of(name) == split] for split in SPLITS}
    splits = {split: root / found[0] for split, found in called.items() if found}
    marked = [split for split, folder in splits.items() if _folders(folder)]
    has_splits = "train" in marked or (marked and len(marked) == len(names))
    folders = splits if has_splits else {"all": root}
    notes = []
    if has_splits:
        for split, found in called.items():
            if len(found) > 1:
                text = f"{root}: {' and '.join(found)} are both {split}; make one folder of them"
                complain("split_twice", text)
        others = [name for name in names if split_of(name) not in SPLITS]
        if others:
            more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
            notes = [f"not read, as no split is called so: {', '.join(others[:NAMED])}{more}"]
    rows = {
        name: list(_class_rows(folder, complain, may_lack=known and name != "train"))
        for name, folder in folders.items()
    }
    return Listing("class folders", rows, notes=notes)


def _folders(folder: Path) -> list[str]:
    """Names of the visible folders in a folder, sorted."""
    return sorted(e.name for e in folder.iterdir() if e.is_dir() and not e.name.startswith("."))


def _class_rows(folder: Path, complain: Complain, *, may_lack: bool) -> Iterator[Row]:
    """Rows of the class folders, some of which may be empty where classes may be lacking."""
    names = _folders(folder)
    if not names:
        text = f"{folder}: no class folders in it; expected {folder.name}/<class>/<image>"
        complain("no_class_folders", text)
    is_empty = True
    for name in names:
        files = list(image_files(folder / name))
        is_empty = is_empty and not files
        if not files and not may_lack:
            text = f"{folder / name}: no images in this class folder; fill or remove it"
            complain("empty_class_folder", text)
        yield from (Row(file, name) for file in files)
    if is_empty and may_lack and names:
        complain("empty_class_folder", f"{folder}: no images in any of its class folders")
