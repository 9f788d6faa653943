"""Labelled images on disk: a tree of class folders, or a CSV. Training and export read it."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deitlt.errors import DataError
from deitlt.longtail import IntArray, class_counts
from deitlt.preprocess import SUFFIXES

SPLITS = ("train", "val", "test")
PATH_COLUMNS = ("image_path", "filepath", "path", "filename")


@dataclass(frozen=True)
class LabelledImages:
    """Image files with class indices; `classes[label]` is the name.

    Attributes:
        paths: one file an image.
        labels: class index of each, `(N,)`.
        classes: names, `C` of them.
    """

    paths: list[Path]
    labels: IntArray
    classes: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def counts(self) -> IntArray:
        """Images of each class, `(C,)`."""
        return class_counts(self.labels, len(self.classes))

    def subset(self, indices: IntArray) -> "LabelledImages":
        """The images at `indices`, in that order, under the same classes."""
        return LabelledImages([self.paths[i] for i in indices], self.labels[indices], self.classes)


def read_labelled(
    source: str | Path, classes: list[str] | None = None
) -> dict[str, LabelledImages]:
    """Labelled images by split: any of `train`, `val` and `test`, or `all` where none is marked.

    A folder holds `<split>/<class>/*` or `<class>/*`. It is taken to hold splits if there are
    folders in its `train`, or if all its folders are called `train`, `val` or `test` and hold
    folders; so a class may be called `train`, and data to evaluate on may be just `test`. A CSV has
    the columns `image_path,label` and perhaps `split`; its paths are relative to the CSV, and
    spaces around a cell do not count. Classes are sorted by name, and files by path within their
    class. Hidden files and folders are left out.

    Args:
        source: the folder or CSV.
        classes: the class names in the order a model knows them; those of the data by default.
            Data may lack some of them, but may have no others.

    Raises:
        DataError: nothing there, an empty class folder, a missing column or file, a class that the
            training split (or `classes`) lacks, several splits without `train` or `classes`.
    """
    root = Path(source)
    if root.is_dir():
        named = _read_tree(root)
    elif root.is_file():
        named = _read_csv(root)
    else:
        raise DataError(f"{root}: there is no such folder or CSV file")
    if classes is None:
        if "train" not in named and len(named) > 1:
            raise DataError(f"{root}: has {' and '.join(named)}, but no train to take classes from")
        reference = "train" if "train" in named else next(iter(named))
        classes = sorted({name for _, name in named[reference]})
    if len(classes) < 2:
        raise DataError(f"{root}: a classifier needs at least two classes, found {len(classes)}")
    index = {name: i for i, name in enumerate(classes)}
    for split, rows in named.items():
        unknown = sorted({name for _, name in rows} - index.keys())
        if unknown:
            raise DataError(
                f"{root}: class {unknown[0]!r} of {split} is not among the "
                f"{len(classes)} classes trained on; add training images or remove it"
            )
    return {
        split: LabelledImages(
            [path for path, _ in rows],
            np.array([index[name] for _, name in rows], dtype=np.int64),
            list(classes),
        )
        for split, rows in named.items()
    }


def image_files(folder: Path) -> Iterator[Path]:
    """Image files under a folder, by suffix, in sorted order; hidden entries are left out."""
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from image_files(entry)
        elif entry.suffix.lower() in SUFFIXES:
            yield entry


def _read_tree(root: Path) -> dict[str, list[tuple[Path, str]]]:
    names = _folders(root)
    splits = {name: root / name for name in SPLITS if name in names}
    marked = [name for name, folder in splits.items() if _folders(folder)]
    has_splits = "train" in marked or (marked and sorted(marked) == names)
    folders = splits if has_splits else {"all": root}
    return {name: list(_class_rows(folder)) for name, folder in folders.items()}


def _folders(folder: Path) -> list[str]:
    """Names of the visible folders in a folder, sorted."""
    return sorted(e.name for e in folder.iterdir() if e.is_dir() and not e.name.startswith("."))


def _class_rows(folder: Path) -> Iterator[tuple[Path, str]]:
    names = _folders(folder)
    if not names:
        raise DataError(f"{folder}: no class folders in it; expected {folder.name}/<class>/<image>")
    for name in names:
        files = list(image_files(folder / name))
        if not files:
            raise DataError(f"{folder / name}: no images in this class folder; fill or remove it")
        yield from ((file, name) for file in files)


def _read_csv(path: Path) -> dict[str, list[tuple[Path, str]]]:
    named: dict[str, list[tuple[Path, str]]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            path_column = next((name for name in PATH_COLUMNS if name in columns), None)
            if path_column is None or "label" not in columns:
                missing = "label" if path_column else "image_path"
                raise DataError(
                    f"{path}: no column {missing!r}; the header must be image_path,label[,split]"
                )
            for row in reader:
                split = _split_of(_cell(row, "split"), path, reader.line_num)
                file_path = path.parent / _cell(row, path_column)
                label = _cell(row, "label")
                if not label:
                    raise DataError(f"{path}, line {reader.line_num}: the label is empty")
                if not file_path.is_file():
                    raise DataError(f"{path}, line {reader.line_num}: there is no file {file_path}")
                named.setdefault(split, []).append((file_path, label))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a UTF-8 CSV file ({error})") from error
    if not named:
        raise DataError(f"{path}: no rows below the header")
    if "all" in named and len(named) > 1:
        raise DataError(f"{path}: some rows have no split; give one to all rows or to none")
    order = ("all", *SPLITS)
    return {
        name: sorted(named[name], key=lambda r: (r[1], r[0])) for name in order if name in named
    }


def _cell(row: dict[str, str], column: str) -> str:
    """A cell without spaces around it; a row may be too short to have it."""
    return (row.get(column) or "").strip()


def _split_of(cell: str, path: Path, line: int) -> str:
    if not cell:
        return "all"
    name = {"validation": "val", "valid": "val"}.get(cell.lower(), cell.lower())
    if name not in SPLITS:
        raise DataError(f"{path}, line {line}: split {cell!r} is none of {', '.join(SPLITS)}")
    return name
