"""Which class is taken for which: counts of the pairs that occur, so that 8,142 classes fit too.

Legend: `N` images, `C` classes, `P` pairs of a true and an answered class that occur.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deitlt.longtail import IntArray


@dataclass(frozen=True)
class Confusion:
    """Images of each pair of true and answered class, sorted by true class and then by answer.

    Attributes:
        true: class of the images, `(P,)`.
        predicted: class answered, `(P,)`.
        num_images: how often, `(P,)`; never 0.
        num_classes: `C`.
    """

    true: IntArray
    predicted: IntArray
    num_images: IntArray
    num_classes: int

    @property
    def totals(self) -> IntArray:
        """Images of each true class, `(C,)`."""
        sums = np.bincount(self.true, weights=self.num_images, minlength=self.num_classes)
        return sums.astype(np.int64)

    def errors(self) -> "Confusion":
        """The pairs of two different classes, most frequent first, then by class indices."""
        wrong = np.flatnonzero(self.true != self.predicted)
        order = wrong[np.argsort(-self.num_images[wrong], kind="stable")]
        return Confusion(
            self.true[order], self.predicted[order], self.num_images[order], self.num_classes
        )

    def blocks(self, block_of: IntArray, num_blocks: int) -> IntArray:
        """Images by block of true and of answered class, `(num_blocks, num_blocks)`.

        Args:
            block_of: the block of each class, `(C,)`; a block may be a single class.
            num_blocks: how many there are.
        """
        counts = np.zeros((num_blocks, num_blocks), dtype=np.int64)
        np.add.at(counts, (block_of[self.true], block_of[self.predicted]), self.num_images)
        return counts


def count_pairs(labels: ArrayLike, predicted: ArrayLike, num_classes: int) -> Confusion:
    """The pairs that occur among true classes `(N,)` and answers `(N,)`."""
    true, named = np.asarray(labels, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    cells, num_images = np.unique(true * num_classes + named, return_counts=True)
    return Confusion(
        cells // num_classes, cells % num_classes, num_images.astype(np.int64), num_classes
    )


def rank_blocks(train_counts: Sequence[int], num_blocks: int) -> IntArray:
    """The block of each class, `(C,)`: classes by falling training count, cut into equal parts.

    With as many blocks as classes it is the rank of each class; ties keep class order.
    """
    order = np.argsort(-np.asarray(train_counts), kind="stable")
    blocks: NDArray[np.int64] = np.empty(len(order), dtype=np.int64)
    blocks[order] = np.arange(len(order)) * num_blocks // len(order)
    return blocks
