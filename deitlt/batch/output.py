"""Predictions to a file: rows of known columns, and a name that stands for a complete file."""

import csv
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from deitlt.batch.sources import Source
from deitlt.classifier import Prediction
from deitlt.errors import ImageError, UsageError

COLUMNS = ["filename", "rank", "index", "label", "prob"]
EXPERT_COLUMNS = ["cls_label", "cls_prob", "dist_label", "dist_prob", "agree"]
LAST_COLUMNS = ["group", "error", "model_version"]


@dataclass(slots=True)
class Summary:
    """Counts of a finished run."""

    num_images: int = 0
    num_failed: int = 0


def write_csv(
    output: Path,
    results: Iterable[tuple[Source, Prediction | ImageError]],
    *,
    experts: bool,
    model_version: str,
    overwrite: bool = False,
) -> Summary:
    """Write one row an image and rank; the file appears under its name once it is complete.

    Until then the rows stand in `<output>.partial`, flushed as they come, so that a killed run
    leaves what it had finished.

    Raises:
        UsageError: `output` exists and `overwrite` is off, or its folder does not exist.
    """
    check_output(output, overwrite=overwrite)
    partial = output.with_name(output.name + ".partial")
    summary = Summary()
    with partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        _write_rows(file, results, experts, model_version, summary)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, output)
    return summary


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse an output that cannot be written, before any image is read; raises `UsageError`."""
    if output.is_dir():
        raise UsageError(f"{output}: is a folder; name a .csv file")
    if output.suffix.lower() != ".csv":
        raise UsageError(f"{output}: the output must be a .csv file")
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent}: there is no such folder for the output")
    if output.exists() and not overwrite:
        raise UsageError(f"{output}: exists already; pass --overwrite to replace it")


def _write_rows(
    file: IO[str],
    results: Iterable[tuple[Source, Prediction | ImageError]],
    experts: bool,
    model_version: str,
    summary: Summary,
) -> None:
    columns = COLUMNS + (EXPERT_COLUMNS if experts else []) + LAST_COLUMNS
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for source, result in results:
        summary.num_images += 1
        common = {"filename": source.filename, "model_version": model_version}
        if isinstance(result, ImageError):
            summary.num_failed += 1
            writer.writerow({**common, "error": result.code})
        else:
            writer.writerows({**common, **row} for row in _rows(result))
        file.flush()


def _rows(prediction: Prediction) -> Iterator[dict[str, Any]]:
    for rank, score in enumerate(prediction.top_k, start=1):
        row: dict[str, Any] = {
            "rank": rank,
            "index": score.index,
            "label": score.label,
            "prob": f"{score.probability:.6f}",
        }
        if rank == 1:
            row["group"] = prediction.group
        if (experts := prediction.experts) is not None:
            cls, dist = experts.cls[rank - 1], experts.dist[rank - 1]
            row["cls_label"], row["cls_prob"] = cls.label, f"{cls.probability:.6f}"
            row["dist_label"], row["dist_prob"] = dist.label, f"{dist.probability:.6f}"
            if rank == 1:
                row["agree"] = str(experts.agree).lower()
        yield row
