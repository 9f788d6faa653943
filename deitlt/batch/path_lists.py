"""Lists of images: a CSV with a column of paths, or a text with one path a line."""

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from deitlt.csv_files import PATH_COLUMNS, shown_header
from deitlt.errors import DataError


def csv_paths(file: Path) -> Iterator[str]:
    """The cells of a CSV's path column, as they are written; the header is read at once.

    Raises:
        DataError: no column bears one of the names of a path column, or it is not a CSV file.
    """
    stream = file.open(newline="", encoding="utf-8-sig", errors="surrogateescape")
    # Strict: else a quote that is not closed makes one cell of all lines behind it.
    reader = csv.reader(stream, skipinitialspace=True, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise DataError(f"{file}: not a CSV file ({error}); save it as one") from error
    column = next((header.index(name) for name in PATH_COLUMNS if name in header), None)
    if column is None:
        names = ", ".join(PATH_COLUMNS)
        raise DataError(
            f"{file}: no column of paths; the header must have one of {names}, and is "
            f"{shown_header(header)}"
        )

    def cells() -> Iterator[str]:
        with stream:
            try:
                for row in reader:
                    if row:  # a blank line is none
                        yield row[column] if column < len(row) else ""
            except csv.Error as error:
                where = f"{file}, line {reader.line_num}"
                raise DataError(f"{where}: not CSV ({error}); correct the line") from error

    return cells()


def text_paths(file: Path) -> Iterator[str]:
    """The lines of a text file, without empty ones; raises what `line_paths` does."""
    stream = file.open("rb")

    def lines() -> Iterator[str]:
        with stream:
            yield from line_paths(stream, str(file))

    return lines()


def line_paths(stream: Iterable[bytes], name: str) -> Iterator[str]:
    """Lines as paths; what is no UTF-8 comes back byte for byte, as file names do.

    Raises:
        DataError: it is no text, such as a Parquet file, or one in UTF-16; the line names `name`.
    """
    for number, line in enumerate(stream):
        bare = line.rstrip(b"\r\n")
        if number == 0 and b"\0" in bare:
            raise DataError(
                f"{name}: not a text with a path a line, its first line holds a NUL byte; save it "
                "as UTF-8 text or as .csv (of find take -print, not -print0)"
            )
        if number == 0:
            bare = bare.removeprefix(b"\xef\xbb\xbf")  # how some editors begin a text
        if bare:
            yield os.fsdecode(bare)
