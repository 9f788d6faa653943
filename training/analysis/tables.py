"""The CSV behind every plot.

Each function returns the rows of one file, the header first.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deitlt.csv_lines import csv_line
from deitlt.metrics import Accuracy, mean_of_groups
from deitlt.student import SIZES
from training.analysis.confusion import ConfusedPair
from training.analysis.curves import Curve, cosine_distance_curve, validation_curve
from training.analysis.study import Study
from training.analysis.teacher_entropy import Sureness

Rows = list[list[Any]]

GROUPS = ("head", "mid", "tail", "many", "medium", "few")


def csv_text(rows: Rows) -> str:
    """Rows as CSV with Unix line ends; floats with six digits."""
    return "".join(
        csv_line(f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row) for row in rows
    )


def accuracy_rows(studies: Sequence[Study]) -> Rows:
    """Accuracy of each head, overall and by group, with its 95 % interval."""
    rows: Rows = [["run", "head", "group", "accuracy", "low", "high", "images"]]
    for study in studies:
        for head, report in study.reports.items():
            figures: dict[str, Accuracy] = {"overall": report.overall, "balanced": report.balanced}
            figures |= {group: report.groups[group] for group in GROUPS}
            for group, accuracy in figures.items():
                low, high = accuracy.interval or ("", "")
                value = "" if accuracy.value is None else accuracy.value
                rows.append([study.name, head, group, value, low, high, accuracy.num_images])
            mean = mean_of_groups(report)
            mean_cell = "" if mean is None else mean
            rows.append([study.name, head, "head mid tail mean", mean_cell, "", "", ""])
    return rows


def distance_rows(studies: Sequence[Study]) -> Rows:
    """Mean attention distance of each head and block on tail images."""
    rows: Rows = [["run", "block", "head", "distance_px", "uniform_px", "tail_images"]]
    for study in studies:
        look = study.look
        for block, heads in enumerate(look.distances, 1):
            for head, distance in enumerate(heads, 1):
                rows.append(
                    [study.name, block, head, float(distance), look.uniform, int(look.tail.sum())]
                )
    return rows


def rank_rows(studies: Sequence[Study]) -> Rows:
    """Feature rank of each expert behind each block."""
    rows: Rows = [["run", "expert", "block", "rank", "width", "images", "tail_images"]]
    for study in studies:
        look = study.look
        for expert, ranks in zip(study.experts, look.ranks, strict=True):
            for block, rank in enumerate(ranks, 1):
                counts = [len(look.images), int(look.tail.sum())]
                rows.append([study.name, expert, block, int(rank), study_width(study), *counts])
    return rows


def study_width(study: Study) -> int:
    """Width `D` of a student."""
    return SIZES[study.card.architecture["size"]][0]


def rollout_rows(maps: Iterable[tuple[str, str, Any]]) -> Rows:
    """Cells of rollouts, each given as picture, expert and its `(G, G)` map."""
    rows: Rows = [["picture", "expert", "row", "column", "share"]]
    for picture, expert, grid in maps:
        for row, cells in enumerate(grid):
            rows += [[picture, expert, row, column, float(v)] for column, v in enumerate(cells)]
    return rows


def cosine_rows(studies: Sequence[Study]) -> Rows:
    """Cosine distance of CLS and DIST over training."""
    return _curve_rows((s.name, cosine_distance_curve(s.curves)) for s in studies)


def convergence_rows(curves: dict[str, dict[str, Curve]]) -> Rows:
    """Balanced accuracy on held-out images and training loss over training."""
    chosen = ((n, c) for n, own in curves.items() for c in (validation_curve(own), own.get("loss")))
    return _curve_rows(chosen)


def entropy_rows(answers: Sequence[Sureness]) -> Rows:
    """The teacher's entropy on each image and view."""
    rows: Rows = [["view", "image", "entropy_nats"]]
    for answer in answers:
        rows += [[answer.view, i, float(value)] for i, value in enumerate(answer.entropies)]
    return rows


def confusion_rows(study: Study) -> Rows:
    """Non-zero cells of the confusion matrix."""
    classes = study.card.classes
    rows: Rows = [["label", "predicted", "images"]]
    for i, j in zip(*np.nonzero(study.confusion), strict=True):
        rows.append([classes[i], classes[j], int(study.confusion[i, j])])
    return rows


def pair_rows(pairs: Sequence[ConfusedPair], classes: Sequence[str]) -> Rows:
    """The most confused pairs of classes."""
    rows: Rows = [["label", "predicted", "images", "share_of_label"]]
    return rows + [[classes[p.label], classes[p.taken_for], p.count, p.share] for p in pairs]


def unreadable_rows(unreadable: dict[Path, str]) -> Rows:
    """Files that were left out, and why."""
    return [["path", "reason"], *([str(path), reason] for path, reason in unreadable.items())]


def _curve_rows(curves: Iterable[tuple[str, Curve | None]]) -> Rows:
    rows: Rows = [["run", "figure", "epoch", "value"]]
    for run, curve in curves:
        if curve is not None:
            pairs = zip(curve.epochs, curve.values, strict=True)
            rows += [[run, curve.name, epoch, value] for epoch, value in pairs]
    return rows
