"""Labelled images of list files, as ImageNet-LT, iNaturalist 2018 and Places-LT are published.

`NAME_train.txt`, `NAME_val.txt` and `NAME_test.txt` lie in one folder. A row is a path relative to
that folder, a space, and the number of the class: `train/n01440764/n01440764_10026.JPEG 0`.

Classes keep the order of their numbers. Deviation: the official code numbers them anew by falling
training count with an unstable sort, so that classes of equal counts (866 of ImageNet-LT's 1,000,
7,953 of iNaturalist's 8,142) get other numbers under another NumPy, and its checkpoints fit no
other. Groups go by rank here too (`longtail.head_mid_tail`), but over a stable sort, and leave the
numbers alone.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from deitlt.errors import DataError
from deitlt.labelled_rows import SPLITS, Complain, FileCheck, Listing, Row

LIST_NAME = re.compile(r"(?P<stem>.+)_(?P<split>train|val|test)\.txt")
LABEL = re.compile(r"[0-9]{1,9}")


class _Line(NamedTuple):
    number: int
    path: str
    folder: str
    label: int


def find_lists(source: Path) -> dict[str, Path]:
    """The list files by split, as they are named; empty where `source` is not read by lists.

    Args:
        source: a folder with one `*_train.txt`, or any one of the list files. The others are those
            whose names begin alike.

    Raises:
        DataError: the folder holds several training lists.
    """
    if source.is_dir():
        names = sorted(entry.name for entry in source.glob("*_train.txt") if entry.is_file())
        names = [name for name in names if not name.startswith(".")]
        if len(names) > 1:
            raise DataError(
                f"{source}: holds several training lists, {' and '.join(names[:2])}; "
                "give the one to use instead of the folder"
            )
        folder = source
    else:
        names, folder = [source.name], source.parent
    match = LIST_NAME.fullmatch(names[0]) if names else None
    if match is None:
        return {}
    lists = {split: folder / f"{match['stem']}_{split}.txt" for split in SPLITS}
    return {split: file for split, file in lists.items() if file.is_file()}


def read_lists(
    lists: dict[str, Path], classes: list[str] | None, complain: Complain, files: FileCheck
) -> Listing:
    """The rows of list files by split, sorted by class number and path.

    Without a test list the val list is read as `test`: iNaturalist publishes no other to report
    figures on, so no epoch may be selected on it. Who has a list to select on and one to report on
    calls the latter `*_test.txt`.

    A class bears the name of the folder its training images lie in, if names and numbers are
    one-to-one, else its number. Without a training list the names of the folders are taken if they
    are among `classes`.

    Args:
        lists: what `find_lists` found; not empty.
        classes: class names that a model knows, if any.
        complain: told of every fault.
        files: which files there are.
    """
    notes = []
    if "val" in lists and "test" not in lists:
        val = lists["val"]
        lists = {name: file for name, file in lists.items() if name != "val"} | {"test": val}
        notes.append(
            f"{val.name} is read as test, never to select an epoch on, as there is no "
            f"{val.name.removesuffix('_val.txt')}_test.txt; name the list to report on so"
        )
    parsed = {split: _parse(file, complain) for split, file in lists.items()}
    naming = parsed["train"] if "train" in lists else [x for part in parsed.values() for x in part]
    names = _folder_names(naming)
    if "train" not in lists and classes is not None and not set(names.values()) <= set(classes):
        names = {}
    notes.append(f"classes are named by their {'folders' if names else 'numbers in the lists'}")
    if "train" in lists:
        _check_gaps(lists["train"], parsed, complain)
        judge = _Judge(lists["train"], {line.label for line in naming}, names)
        parsed = {
            split: [line for line in part if judge.accepts(line, lists[split], complain)]
            for split, part in parsed.items()
        }
    rows = {
        split: [
            Row(path, names.get(label, str(label)))
            for label, path in _existing(part, lists[split], files, complain)
        ]
        for split, part in parsed.items()
    }
    order = [names.get(label, str(label)) for label in sorted({line.label for line in naming})]
    return Listing("lists", {name: rows[name] for name in SPLITS if name in rows}, order, notes)


def _parse(file: Path, complain: Complain) -> list[_Line]:
    lines = []
    try:
        with file.open(encoding="utf-8-sig") as text:
            for number, line in enumerate(text, start=1):
                words = line.strip().rsplit(maxsplit=1)
                if len(words) == 2 and LABEL.fullmatch(words[1]):
                    folder = ("/" + words[0]).rsplit("/", 2)[-2]
                    lines.append(_Line(number, words[0], folder, int(words[1])))
                elif words:
                    where = f"{file}, line {number}: {line.strip()[:80]!r}"
                    complain("bad_row", f"{where} is not a path, a space and a class number from 0")
    except UnicodeDecodeError as error:
        complain("not_text", f"{file}: not a UTF-8 text file ({error}); save it as one")
    if not lines:
        complain("no_rows", f"{file}: no images in this list; fill or remove it")
    return lines


def _folder_names(lines: list[_Line]) -> dict[int, str]:
    """The folder of each label; empty unless every label has one of its own."""
    pairs = {(line.label, line.folder) for line in lines}
    labels, folders = {label for label, _ in pairs}, {folder for _, folder in pairs}
    one_to_one = len(pairs) == len(labels) == len(folders) and "" not in folders
    return dict(pairs) if one_to_one else {}


def _check_gaps(train: Path, parsed: dict[str, list[_Line]], complain: Complain) -> None:
    present = {line.label for line in parsed["train"]}
    num_missing = max(present, default=-1) + 1 - len(present)
    if not num_missing:
        return
    first = next(label for label in range(len(present) + 1) if label not in present)
    rows = (line for part in parsed.values() for line in part)
    folder = next((line.folder for line in rows if line.label == first), "")
    known_as = f" (folder {folder!r})" if folder else ""
    more = f", nor have {num_missing - 1} more" if num_missing > 1 else ""
    complain(
        "label_gap",
        f"{train}: class {first}{known_as} has no images here{more}; "
        "add some, or number the classes from 0 without gaps",
    )


class _Judge:
    """Whether a row means the classes of the training list."""

    def __init__(self, train: Path, labels: set[int], names: dict[int, str]) -> None:
        self._train = train
        self._labels = labels
        self._label_of = {name: label for label, name in names.items()}

    def accepts(self, line: _Line, file: Path, complain: Complain) -> bool:
        if line.label not in self._labels:
            text = f"class {line.label} is not in {self._train.name}; add training images"
            complain("unknown_class", f"{file}, line {line.number}: {text} or remove the row")
            return False
        if self._label_of.get(line.folder, line.label) != line.label:
            text = f"folder {line.folder!r} is class {line.label} here, but class "
            text += f"{self._label_of[line.folder]} in {self._train.name}; correct one of them"
            complain("label_mismatch", f"{file}, line {line.number}: {text}")
            return False
        return True


def _existing(
    lines: list[_Line], file: Path, files: FileCheck, complain: Complain
) -> list[tuple[int, Path]]:
    """Label and file of each row whose file is there, sorted by label and path."""
    root = str(file.parent)
    found = []
    for line in lines:
        path = os.path.join(root, line.path)
        if files.exists(path):
            found.append((line.label, path))
        else:
            complain("missing_file", f"{file}, line {line.number}: there is no file {path}")
    found.sort(key=lambda pair: (pair[0], pair[1].split("/")))
    return [(label, Path(path)) for label, path in found]
