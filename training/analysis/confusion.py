"""Which classes are taken for which.

Legend: `C` classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ConfusedPair:
    """Images of one class that were taken for another.

    Attributes:
        label: index of the true class.
        taken_for: index of the answered class.
        count: images.
        share: of the images of the true class.
    """

    label: int
    taken_for: int
    count: int
    share: float


def most_confused(confusion: NDArray[np.int64], limit: int) -> list[ConfusedPair]:
    """The most frequent mistakes, worst first; of equals the lower classes first.

    Args:
        confusion: image counts `(C, C)`, rows the true class.
        limit: pairs at most.
    """
    totals = confusion.sum(axis=1)
    labels, answers = np.nonzero(confusion)
    wrong = labels != answers
    labels, answers = labels[wrong], answers[wrong]
    counts = confusion[labels, answers]
    return [
        ConfusedPair(int(i), int(j), int(n), float(n / totals[i]))
        for i, j, n in (
            (labels[k], answers[k], counts[k]) for k in np.argsort(-counts, kind="stable")[:limit]
        )
    ]


def merged(confusion: NDArray[np.int64], num_bins: int) -> NDArray[np.int64]:
    """Image counts with neighbouring classes taken together, `(num_bins, num_bins)`.

    Bins have equally many classes but for one.

    Args:
        confusion: image counts `(C, C)`, in the order in which classes are to be neighbours.
        num_bins: at most `C`.
    """
    starts = np.arange(num_bins) * len(confusion) // num_bins
    rows = np.add.reduceat(confusion, starts, axis=0)
    columns: NDArray[np.int64] = np.add.reduceat(rows, starts, axis=1)
    return columns
