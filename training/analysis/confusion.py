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
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    totals = confusion.sum(axis=1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = [divmod(int(cell), len(confusion)) for cell in order]
    return [
        ConfusedPair(i, j, int(wrong[i, j]), float(wrong[i, j] / totals[i]))
        for i, j in pairs
        if wrong[i, j] > 0
    ]
