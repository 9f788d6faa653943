"""Rows as CSV, JSONL or Parquet, written so that a run can be killed at any moment and go on.

Each writer works in a folder. What `append` has returned from is on the disk, and the mark that it
returns is where a later run goes on: everything after it is cut off.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from deitlt.batch.rows import Cells, Kind
from deitlt.csv_lines import csv_line
from deitlt.errors import UsageError
from deitlt.files import write_atomic

# The one file with all rows.
ROWS = "rows"
# Rows in a row group of Parquet: what a reader holds at once, and this writer too.
ROW_GROUP = 16_384


class RowWriter(Protocol):
    """Rows into a folder."""

    def open(self, mark: int) -> None:
        """Go on after a mark; 0 is the beginning."""
        ...

    def append(self, rows: Sequence[Cells]) -> int:
        """Have these rows on the disk; gives the mark behind them."""
        ...

    def finish(self) -> Path:
        """The one file with all rows, on the disk; nothing can be appended any more."""
        ...

    def close(self) -> None:
        """Let go of open files; what was appended stays."""
        ...


def row_writer(format: str, folder: Path, columns: Mapping[str, Kind]) -> RowWriter:
    """The writer of a format: csv, jsonl or parquet."""
    if format == "parquet":
        return ParquetRows(folder, columns)
    return TextRows(folder, CsvLines(columns) if format == "csv" else JsonLines(columns))


class Lines(Protocol):
    """How rows are written as text."""

    def header(self) -> bytes:
        """What stands before the rows."""
        ...

    def line(self, row: Cells) -> bytes:
        """A row with its line end."""
        ...


class CsvLines:
    """CSV: UTF-8, a header, six decimals, empty cells for what is not there."""

    def __init__(self, columns: Mapping[str, Kind]) -> None:
        self._columns = list(columns)

    def header(self) -> bytes:
        """The names of the columns."""
        return csv_line(self._columns).encode("utf-8", "surrogateescape")

    def line(self, row: Cells) -> bytes:
        """A row; bytes of a name that are no UTF-8 come back as they were."""
        cells = [_csv_cell(row.get(column)) for column in self._columns]
        return csv_line(cells).encode("utf-8", "surrogateescape")


class JsonLines:
    """One JSON object a line with every column, null for what is not there."""

    def __init__(self, columns: Mapping[str, Kind]) -> None:
        self._columns = list(columns)

    def header(self) -> bytes:
        """Nothing: each row names its columns."""
        return b""

    def line(self, row: Cells) -> bytes:
        """A row; bytes of a name that are no UTF-8 are escaped as Python's `os.fsdecode` has it."""
        cells = {column: _json_cell(row.get(column)) for column in self._columns}
        try:
            return json.dumps(cells, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:
            return json.dumps(cells).encode() + b"\n"


class TextRows:
    """Lines at the end of one file; a mark is the file's length in bytes."""

    def __init__(self, folder: Path, lines: Lines) -> None:
        self._path = folder / ROWS
        self._lines = lines
        self._file: FileIO | None = None

    def open(self, mark: int) -> None:
        """Go on after a mark; what a killed run wrote behind it, perhaps half a line, is cut off.

        Raises:
            UsageError: the file has been shortened since.
        """
        self._file = FileIO(self._path, "r+" if mark else "w")
        if self._file.seek(0, os.SEEK_END) < mark:
            raise UsageError(f"{self._path}: shorter than it was; pass --overwrite to start anew")
        self._file.truncate(mark)
        self._file.seek(mark)

    def append(self, rows: Sequence[Cells]) -> int:
        """Have these rows on the disk; gives the file's length."""
        assert self._file is not None, "append follows open"
        start = b"" if self._file.tell() else self._lines.header()
        rest = memoryview(start + b"".join(map(self._lines.line, rows)))
        while rest:
            rest = rest[self._file.write(rest) :]  # a disk that fills up takes a part of it
        os.fsync(self._file.fileno())
        return self._file.tell()

    def finish(self) -> Path:
        """The file."""
        self.close()
        return self._path

    def close(self) -> None:
        """Close it."""
        if self._file is not None:
            self._file.close()


class ParquetRows:
    """A file for each call of `append`, put together at the end; a mark is their number."""

    def __init__(self, folder: Path, columns: Mapping[str, Kind]) -> None:
        require_pyarrow()
        self._folder = folder
        self._schema = _schema(columns)
        self._num_parts = 0

    def open(self, mark: int) -> None:
        """Go on after this many files; a later one, of a run killed since, is written over.

        Raises:
            UsageError: one of them is not there any more.
        """
        for number in range(mark):
            if not self._part(number).is_file():
                raise UsageError(f"{self._part(number)}: missing; pass --overwrite to start anew")
        self._num_parts = mark

    def append(self, rows: Sequence[Cells]) -> int:
        """Write these rows as one more file; gives the number of files."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if rows:
            arrays = [
                pa.array([_parquet_cell(row.get(field.name)) for row in rows], field.type)
                for field in self._schema
            ]
            table = pa.Table.from_arrays(arrays, schema=self._schema)
            write_atomic(self._part(self._num_parts), lambda file: pq.write_table(table, file))
            self._num_parts += 1
        return self._num_parts

    def finish(self) -> Path:
        """All parts as one file of equal row groups, read and written a few rows at a time."""
        import pyarrow.parquet as pq

        whole = self._folder / ROWS

        def write(file: Path) -> None:
            with pq.ParquetWriter(file, self._schema) as writer:
                for table in self._row_groups():
                    writer.write_table(table, row_group_size=ROW_GROUP)

        write_atomic(whole, write)
        return whole

    def close(self) -> None:
        """Nothing is open between two calls."""

    def _row_groups(self) -> Iterator[Any]:
        """All rows in tables of `ROW_GROUP` rows, the last one with the rest."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        waiting = self._schema.empty_table()
        for number in range(self._num_parts):
            with pq.ParquetFile(self._part(number)) as part:
                for batch in part.iter_batches(ROW_GROUP):
                    added = pa.Table.from_batches([batch], self._schema)
                    waiting = pa.concat_tables([waiting, added])
                    while waiting.num_rows >= ROW_GROUP:
                        yield waiting.slice(0, ROW_GROUP)
                        waiting = waiting.slice(ROW_GROUP)
        if waiting.num_rows:
            yield waiting

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number:08d}.parquet"


def require_pyarrow() -> None:
    """Refuse to go on without pyarrow; raises `UsageError`."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        text = "Parquet needs pyarrow; pip install 'deitlt[parquet]', or name a .csv or .jsonl file"
        raise UsageError(text) from error


def _schema(columns: Mapping[str, Kind]) -> Any:
    import pyarrow as pa

    types = {str: pa.string(), int: pa.int32(), float: pa.float32(), bool: pa.bool_()}
    vector = pa.list_(pa.float32())
    return pa.schema([(name, types.get(kind, vector)) for name, kind in columns.items()])


def _csv_cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6f}" if isinstance(value, float) else value


def _json_cell(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def _parquet_cell(value: Any) -> Any:
    """Text of Parquet is UTF-8 to the last byte: other bytes of a name become escapes in it."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
