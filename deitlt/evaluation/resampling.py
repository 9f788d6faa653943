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
    """Basic bootstrap intervals over images, drawn anew within each true class (Efron 1979).

    Within classes, because how many images a class has was chosen by who made the set. The ends are
    mirrored at the figure, since resampling overstates a calibration error as much as the sample
    does; where that would leave the figure itself outside, the interval is stretched to it. Unlike
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
    drift = head.confidence - (head.predicted == labels)
    bins = probability_bins(head.confidence)

    def figures(chosen: IntArray) -> NDArray[np.float64]:
        # The true classes of a resample are those of the sample: it is drawn within them.
        f1 = mean_f1(*count_answers(labels, head.predicted[chosen], num_classes))
        signed, cells = drift[chosen], bins[chosen]
        errors = [_error(signed[inside], cells[inside]) for inside in members.values()]
        return np.array([f1, *errors])

    value = figures(np.arange(len(labels)))
    drawn = np.stack([figures(chosen) for chosen in _resamples(labels)])
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    low, high = np.minimum(2 * value - high, value), np.maximum(2 * value - low, value)
    ends = [(float(a), float(b)) for a, b in zip(low.clip(0), high.clip(max=1), strict=True)]
    named = zip(members, value[1:], ends[1:], strict=True)
    return Intervals(ends[0], {name: (float(error), interval) for name, error, interval in named})


def _error(drift: NDArray[np.float64], bins: IntArray) -> float:
    """Calibration error from confidence minus correctness and the bin of each image."""
    return float(np.abs(np.bincount(bins, weights=drift, minlength=NUM_BINS)).sum() / len(drift))


def _resamples(labels: IntArray) -> Iterator[IntArray]:
    """As many images of each class again, drawn with replacement; `(N,)`, class by class as given.

    Place i of a resample holds an image of the class of image i.
    """
    generator = np.random.default_rng(SEED)
    order = np.argsort(labels, kind="stable")
    _, of_class, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    first = (np.cumsum(sizes) - sizes)[of_class]
    num_same = sizes[of_class]
    for _ in range(NUM_RESAMPLES):
        yield order[first + (generator.random(len(labels)) * num_same).astype(np.int64)]
