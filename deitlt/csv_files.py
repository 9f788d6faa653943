"""Labelled images of a CSV: `image_path,label`, and perhaps `split` and `group`."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from deitlt.labelled_rows import SPLITS, Complain, FileCheck, Listing, Row, split_of

PATH_COLUMNS = ("image_path", "filepath", "path", "filename")
MAX_SHOWN = 80


def read_csv(path: Path, complain: Complain, files: FileCheck) -> Listing:
    """The rows of a UTF-8 CSV by split, sorted by class name and path.

    Paths are relative to the CSV, and spaces around a cell do not count. A `split` or a `group`
    stands in all rows or in none.
    """
    named: dict[str, list[Row]] = {}
    for split, row in _rows(path, complain, files):
        named.setdefault(split, []).append(row)
    if "all" in named and len(named) > 1:
        complain("no_split", f"{path}: some rows have no split; give one to all rows or to none")
    if len({row.group == "" for rows in named.values() for row in rows}) > 1:
        complain("no_group", f"{path}: some rows have no group; give one to all rows or to none")
    order = ("all", *SPLITS)
    return Listing(
        "csv",
        {
            name: sorted(named[name], key=lambda r: (r.name, r.path))
            for name in order
            if name in named
        },
    )


def _rows(path: Path, complain: Complain, files: FileCheck) -> Iterator[tuple[str, Row]]:
    empty = True
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            path_column = next((name for name in PATH_COLUMNS if name in columns), None)
            if path_column is None or "label" not in columns:
                complain(
                    "no_column", _missing_column(path, columns, has_path=path_column is not None)
                )
                return
            for cells in reader:
                empty = False
                where = f"{path}, line {reader.line_num}"
                split = split_of(_cell(cells, "split")) or "all"
                file_path = path.parent / _cell(cells, path_column)
                label = _cell(cells, "label")
                if split not in ("all", *SPLITS):
                    text = f"split {_cell(cells, 'split')!r} is none of {', '.join(SPLITS)}"
                    complain("unknown_split", f"{where}: {text}")
                elif not label:
                    complain("no_label", f"{where}: the label is empty; fill it or remove the row")
                elif not files.exists(str(file_path)):
                    complain("missing_file", f"{where}: there is no file {file_path}")
                else:
                    yield split, Row(file_path, label, _cell(cells, "group"))
    except (UnicodeDecodeError, csv.Error) as error:
        complain("not_csv", f"{path}: not a UTF-8 CSV file ({error}); save it as one")
        return
    if empty:
        complain("no_rows", f"{path}: no rows below the header")


def shown_header(columns: Sequence[str]) -> str:
    """The beginning of a header, which shows another separator or encoding at a glance."""
    return repr(",".join(columns)[:MAX_SHOWN])


def _missing_column(path: Path, columns: Sequence[str], *, has_path: bool) -> str:
    text = f"{path}: no column {'label' if has_path else 'image_path'!r}; the header must be "
    text += f"image_path,label[,split][,group] in UTF-8, and is {shown_header(columns)}"
    if path.suffix.lower() == ".txt":
        text += ", or the name that of a list file: *_train.txt, *_val.txt or *_test.txt"
    return text


def _cell(row: dict[str, str], column: str) -> str:
    """A cell without spaces around it; a row may be too short to have it."""
    return (row.get(column) or "").strip()
