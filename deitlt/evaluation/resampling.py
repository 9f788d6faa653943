"""Intervals of figures that have no formula: macro-F1 and calibration errors, by bootstrap.

Legend: `N` images, `C` classes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deitlt.evaluation.answers import HeadAnswers
from deitlt.longtail import IntArray
from deitlt.metrics import NUM_BINS, Interval, count_answers, mean_f1, probability_bins

Floats = NDArray[np.float64]

NUM_RESAMPLES = 400
SEED = 0


@dataclass(frozen=True)
class Intervals:
    """95 % intervals of one head, and the calibration errors themselves.

    Attributes:
        macro_f1: interval of the mean F1 over the classes present.
        ece: calibration error of all images and of those of each group, with its interval; groups
            without images are left out.
    """

    macro_f1: Interval
    ece: dict[str, tuple[float, Interval]]


def intervals(labels: IntArray, head: HeadAnswers, groups: Mapping[str, list[int]]) -> Intervals:
    """Bootstrap intervals over images, drawn anew within each true class (Efron 1979).

    Within classes, because how many images a class has was chosen by who made the set. An interval
    reaches as far to both sides of the figure as the farther 95 % quantile of the resamples, since
    macro-F1 and calibration errors are biased on few images, in a resample as in the sample.

    An error of calibration is positive for calibrated answers too. So where those, being right as
    often as their confidence says, would show as much in one of forty draws, the interval begins
    at 0 (the consistency test of Bröcker and Smith 2007).

    In simulations of 10 to 300 classes the interval of macro-F1 held the truth in 90 to 97 % of 100
    draws, and in 86 % where classes of four images were nearly always right: unlike in
    `metrics.mean_recall`, a class whose few images are all right counts as certain here.

    Args:
        labels: true classes of the images, `(N,)`.
        head: the answers to them.
        groups: class indices by name of the group.
    """
    num_classes = 1 + max(int(labels.max()), int(head.predicted.max()))
    members = {"all": np.ones(len(labels), dtype=np.bool_)}
    members |= {name: np.isin(labels, classes) for name, classes in groups.items()}
    members = {name: inside for name, inside in members.items() if inside.any()}
    confidence, bins = head.confidence, probability_bins(head.confidence)
    drift = confidence - (head.predicted == labels)

    def errors(signed: Floats, cells: IntArray) -> list[float]:
        return [_error(signed[inside], cells[inside]) for inside in members.values()]

    def figures(chosen: IntArray) -> Floats:
        # The true classes of a resample are those of the sample: it is drawn within them.
        f1 = mean_f1(*count_answers(labels, head.predicted[chosen], num_classes))
        return np.array([f1, *errors(drift[chosen], bins[chosen])])

    generator = np.random.default_rng(SEED)
    value = figures(np.arange(len(labels)))
    drawn = np.stack([figures(chosen) for chosen in _resamples(labels, generator)])
    reach = np.abs(np.quantile(drawn, (0.025, 0.975), axis=0) - value).max(axis=0)
    low, high = np.maximum(value - reach, 0), np.minimum(value + reach, 1)
    calibrated = [
        errors(confidence - (generator.random(len(labels)) < confidence), bins)
        for _ in range(NUM_RESAMPLES)
    ]
    low[1:][value[1:] <= np.quantile(calibrated, 0.975, axis=0)] = 0
    ends = list(zip(low.tolist(), high.tolist(), strict=True))
    return Intervals(
        ends[0], dict(zip(members, zip(value[1:].tolist(), ends[1:], strict=True), strict=True))
    )


def _error(drift: Floats, bins: IntArray) -> float:
    """Calibration error from confidence minus correctness and the bin of each image."""
    return float(np.abs(np.bincount(bins, weights=drift, minlength=NUM_BINS)).sum() / len(drift))


def _resamples(labels: IntArray, generator: np.random.Generator) -> Iterator[IntArray]:
    """As many images of each class again, drawn with replacement; `(N,)`, class by class as given.

    Place i of a resample holds an image of the class of image i.
    """
    order = np.argsort(labels, kind="stable")
    _, of_class, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    first = (np.cumsum(sizes) - sizes)[of_class]
    num_same = sizes[of_class]
    for _ in range(NUM_RESAMPLES):
        yield order[first + (generator.random(len(labels)) * num_same).astype(np.int64)]
