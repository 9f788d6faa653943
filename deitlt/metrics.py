"""Accuracy of a long-tailed classifier: overall, balanced, per group and per class, with intervals.

Legend: `N` images, `C` classes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deitlt.csv_lines import csv_line
from deitlt.longtail import all_groups, head_mid_tail

Interval = tuple[float, float]

Z_95 = 1.959963984540054

# Below this many images a class's accuracy has an interval too wide to claim anything.
MIN_CLAIMABLE_IMAGES = 5

# Bins of a calibration error.
NUM_BINS = 15


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A share of right answers in [0, 1] with its 95 % interval and the images it rests on."""

    value: float | None
    interval: Interval | None
    num_images: int


@dataclass(frozen=True, slots=True)
class Report:
    """What one head achieves on one labelled set; every share is in [0, 1].

    Attributes:
        overall: share of all images that are right (Wilson interval).
        balanced: mean recall over the classes present in the labels (scikit-learn's rule).
        macro_f1: mean F1 over the same classes.
        groups: mean recall of the classes of a group, for both groupings (`longtail`).
        per_class: recall of each class, `C` entries (Wilson interval).
        ece: expected calibration error of the top-1 probability, 15 bins of equal width.
    """

    overall: Accuracy
    balanced: Accuracy
    macro_f1: float
    groups: dict[str, Accuracy]
    per_class: list[Accuracy]
    ece: float

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return asdict(self)


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities


def best_classes(scores: NDArray[Any], number: int) -> list[NDArray[np.int64]]:
    """The classes with the best scores of each row of `(B, C)`, the best first.

    Equal scores come in class order, and where a row has NaN the order is nobody's.

    Args:
        scores: `(B, C)`.
        number: how many classes, at least 1; more than there are gives all.
    """
    number = min(number, scores.shape[1])
    # Only what reaches the last place is sorted, which of thousands of classes is far less work.
    last = -np.partition(-scores, number - 1, axis=1)[:, number - 1]
    rows = []
    for row, least in zip(scores, last, strict=True):
        reach = np.flatnonzero(~(row < least))  # with NaN this is true of all
        rows.append(reach[np.argsort(-row[reach], kind="stable")[:number]])
    return rows


def confusion_matrix(
    labels: ArrayLike, predicted: ArrayLike, num_classes: int
) -> NDArray[np.int64]:
    """Image counts `(C, C)`, rows the true class, columns the predicted one."""
    cells = np.asarray(labels, dtype=np.int64) * num_classes + np.asarray(predicted, dtype=np.int64)
    counts = np.bincount(cells, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def wilson_interval(share: float, trials: float) -> Interval:
    """Wilson's 95 % score interval of a share of `trials`, which must be positive."""
    z2 = Z_95 * Z_95
    centre = share + z2 / (2 * trials)
    margin = Z_95 * sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    scale = 1 + z2 / trials
    low, high = (centre - margin) / scale, (centre + margin) / scale
    # At shares of 0 and 1 an end is the share itself, but for rounding.
    return max(0.0, min(share, low)), min(1.0, max(share, high))


def mean_recall(hits: NDArray[np.int64], totals: NDArray[np.int64]) -> Accuracy:
    """Mean recall over the classes that have images, with a 95 % interval.

    Wilson's interval at the effective number of images, m (1 - m) / variance of the mean (Korn and
    Graubard 1998, for survey shares), where every class's recall is taken as (k + 2) / (n + 4)
    (Agresti and Coull 1998), m being their mean. So it stays honest where a tail class has a
    handful of images and all are right, which a bootstrap would call certain.
    """
    present = totals > 0
    hits, totals = hits[present], totals[present]
    if not len(totals):
        return Accuracy(None, None, 0)
    recall = (hits + 2) / (totals + 4)
    variance = float((recall * (1 - recall) / totals).sum()) / len(totals) ** 2
    effective = float(recall.mean() * (1 - recall.mean())) / variance
    value = float((hits / totals).mean())
    return Accuracy(value, wilson_interval(value, effective), int(totals.sum()))


def probability_bins(
    probability: NDArray[np.float64], num_bins: int = NUM_BINS
) -> NDArray[np.int64]:
    """Which of the bins of equal width a probability lies in; certainty belongs to the last."""
    return np.minimum((probability * num_bins).astype(np.int64), num_bins - 1)


def expected_calibration_error(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], num_bins: int = NUM_BINS
) -> float:
    """Mean gap between confidence and accuracy, weighted by bin size (Guo et al. 2017)."""
    bins = probability_bins(confidence, num_bins)
    size = np.bincount(bins, minlength=num_bins)
    gap = np.abs(
        np.bincount(bins, weights=confidence, minlength=num_bins)
        - np.bincount(bins, weights=correct.astype(np.float64), minlength=num_bins)
    )
    return float(gap.sum() / size.sum())


def report(labels: ArrayLike, logits: NDArray[Any], train_counts: Sequence[int]) -> Report:
    """All figures for one head.

    Args:
        labels: true classes, `(N,)`.
        logits: scores, `(N, C)`; ties go to the lower class index.
        train_counts: training images of each class, `(C,)`; they define the groups.
    """
    assert logits.shape[1] == len(train_counts)
    return report_answers(labels, logits.argmax(axis=1), softmax(logits).max(axis=1), train_counts)


def report_answers(
    labels: ArrayLike,
    predicted: ArrayLike,
    confidence: NDArray[np.float64],
    train_counts: Sequence[int],
) -> Report:
    """All figures for one head from its answers alone, in memory that grows with N and with C.

    Args:
        labels: true classes, `(N,)`.
        predicted: classes answered, `(N,)`.
        confidence: probability of each answer, `(N,)`.
        train_counts: training images of each class, `(C,)`; they define the groups.
    """
    hits, totals, answers = count_answers(labels, predicted, len(train_counts))
    assert totals.sum() == len(confidence) > 0
    return Report(
        overall=share_of(int(hits.sum()), int(totals.sum())),
        balanced=mean_recall(hits, totals),
        macro_f1=mean_f1(hits, totals, answers),
        groups={
            name: mean_recall(hits[classes], totals[classes])
            for name, classes in all_groups(train_counts).items()
        },
        per_class=[share_of(int(k), int(n)) for k, n in zip(hits, totals, strict=True)],
        ece=expected_calibration_error(confidence, np.equal(predicted, labels)),
    )


def count_answers(
    labels: ArrayLike, predicted: ArrayLike, num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of each class its right answers, its images, and the answers that name it; each `(C,)`."""
    true, named = np.asarray(labels, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    hits, totals, answers = (
        np.bincount(classes, minlength=num_classes)
        for classes in (true[true == named], true, named)
    )
    return hits, totals, answers


def f1_scores(
    hits: NDArray[np.int64], totals: NDArray[np.int64], answers: NDArray[np.int64]
) -> NDArray[np.float64]:
    """F1 of each class, `(C,)`; 0 for one without images and answers."""
    scores: NDArray[np.float64] = 2 * hits / np.maximum(totals + answers, 1)
    return scores


def mean_f1(
    hits: NDArray[np.int64], totals: NDArray[np.int64], answers: NDArray[np.int64]
) -> float:
    """Mean F1 over the classes present in the labels."""
    return float(f1_scores(hits, totals, answers)[totals > 0].mean())


def format_table(reports: dict[str, Report]) -> str:
    """A table in %, one line a head: overall, both groupings, the mean of head, mid and tail."""
    columns = ("overall", "head", "mid", "tail", "h/m/t mean", "many", "medium", "few")
    lines = [f"{'':<10}" + "".join(f"{name:>12}" for name in columns)]
    for head, figures in reports.items():
        groups = figures.groups
        values = [
            figures.overall.value,
            *(groups[name].value for name in ("head", "mid", "tail")),
            mean_of_groups(figures),
            *(groups[name].value for name in ("many", "medium", "few")),
        ]
        cells = ("-" if value is None else f"{100 * value:.1f}" for value in values)
        lines.append(f"{head:<10}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def per_class_csv(
    classes: Sequence[str], train_counts: Sequence[int], reports: dict[str, Report]
) -> str:
    """A CSV with one row a class: training images, group, images judged on, recall of each head."""
    groups = head_mid_tail(train_counts)
    group_of = {index: name for name, members in groups.items() for index in members}
    lines = [csv_line(["index", "label", "train_images", "group", "images", *reports])]
    for index, label in enumerate(classes):
        recalls = [figures.per_class[index] for figures in reports.values()]
        cells = ["" if recall.value is None else f"{recall.value:.4f}" for recall in recalls]
        row = [index, label, train_counts[index], group_of[index], recalls[0].num_images]
        lines.append(csv_line([*row, *cells]))
    return "".join(lines)


def mean_of_groups(figures: Report) -> float | None:
    """Mean of head, mid and tail accuracy, each group counting the same; None without images."""
    values = [figures.groups[name].value for name in ("head", "mid", "tail")]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def share_of(successes: int, trials: int) -> Accuracy:
    """A share with its Wilson interval; without a value where there are no trials."""
    if not trials:
        return Accuracy(None, None, 0)
    share = successes / trials
    return Accuracy(share, wilson_interval(share, trials), trials)
