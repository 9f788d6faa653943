"""Rows as lines of CSV, whatever stands in the names of files and classes."""

import csv
from collections.abc import Iterable
from typing import Any


class _Echo:
    """A file that hands back what is written to it, which `csv.writer` passes on."""

    def write(self, text: str) -> str:
        return text


def csv_line(cells: Iterable[Any]) -> str:
    r"""A row, ended by \n; a cell with a comma, a quote or a line end of any kind is quoted."""
    # csv quotes only the line ends that it writes itself, so it must be given both kinds.
    line: Any = csv.writer(_Echo(), lineterminator="\r\n").writerow(cells)
    return str(line).removesuffix("\r\n") + "\n"
