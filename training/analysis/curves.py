"""The learning curves of a run, from its results.csv."""

import csv
from dataclasses import dataclass
from pathlib import Path

from deitlt.errors import DataError
from training.engine.checkpoint import RESULTS

# What stands for a run's accuracy on held-out images: the first of these that it has.
VALIDATION = ("val_average_balanced", "val_teacher_balanced", "val_cls_balanced")


@dataclass(frozen=True)
class Curve:
    """One figure of a run over its epochs.

    Attributes:
        name: column of results.csv.
        epochs: counted from 1; only those that have the figure.
        values: the figure at each.
    """

    name: str
    epochs: list[int]
    values: list[float]


def read_curves(run: Path) -> dict[str, Curve]:
    """The curves of a run folder by column; empty where it has no epoch in a results.csv.

    Raises:
        DataError: results.csv is damaged.
    """
    file = run / RESULTS
    if not file.is_file():
        return {}
    points: dict[str, list[tuple[int, float]]] = {}
    try:
        with file.open(newline="", encoding="utf-8") as rows:
            table = csv.DictReader(rows)
            if "epoch" not in (table.fieldnames or ()):
                raise KeyError("epoch")
            for row in table:
                epoch = int(row.pop("epoch"))
                for name, text in row.items():
                    if text:
                        points.setdefault(name, []).append((epoch, float(text)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: damaged; it should have a row of numbers an epoch") from error
    return {
        name: Curve(name, [epoch for epoch, _ in pairs], [value for _, value in pairs])
        for name, pairs in points.items()
    }


def validation_curve(curves: dict[str, Curve]) -> Curve | None:
    """Balanced accuracy of a run's answer on held-out images; None where it held out none."""
    return next((curves[name] for name in VALIDATION if name in curves), None)


def cosine_distance_curve(curves: dict[str, Curve]) -> Curve | None:
    """Mean cosine distance of CLS and DIST on training batches; None without two experts."""
    cosine = curves.get("cls_dist_cosine")
    if cosine is None:
        return None
    return Curve("cls_dist_cosine_distance", cosine.epochs, [1 - value for value in cosine.values])
