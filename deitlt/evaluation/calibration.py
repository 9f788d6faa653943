"""Whether probabilities come true: reliability bins, calibration errors, and classes one by one.

Legend: `N` images, `C` classes, `B` bins.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deitlt.longtail import IntArray
from deitlt.metrics import NUM_BINS, probability_bins

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """Images by the confidence of their answers, in bins of equal width over [0, 1].

    Attributes:
        num_images: in each bin, `(B,)`.
        num_correct: of them answered right, `(B,)`.
        confidence: their mean confidence, `(B,)`; NaN in an empty bin.
    """

    num_images: IntArray
    num_correct: IntArray
    confidence: Floats

    @property
    def accuracy(self) -> Floats:
        """Share of right answers in each bin, `(B,)`; NaN in an empty bin."""
        return _share(self.num_correct, self.num_images)


def reliability(
    confidence: Floats, correct: NDArray[np.bool_], num_bins: int = NUM_BINS
) -> Reliability:
    """The bins of a reliability diagram (DeGroot and Fienberg 1983).

    Args:
        confidence: probability of the class that was answered, `(N,)`.
        correct: whether the answer was right, `(N,)`.
        num_bins: how many bins.
    """
    bins = probability_bins(confidence, num_bins)
    size = np.bincount(bins, minlength=num_bins).astype(np.int64)
    hits = np.bincount(bins[correct], minlength=num_bins).astype(np.int64)
    total = np.bincount(bins, weights=confidence, minlength=num_bins)
    return Reliability(size, hits, _share(total, size))


def equal_mass_error(
    confidence: Floats, correct: NDArray[np.bool_], num_bins: int = NUM_BINS
) -> float:
    """Calibration error over bins that hold equally many images (Nixon et al. 2019).

    Most answers of a trained model are near certain, so that bins of equal width put nearly all
    images in one. The sizes of these bins differ by at most one; equal confidences may fall on
    both sides of an edge, in the order of the images.
    """
    order = np.argsort(confidence, kind="stable")
    signed = confidence[order] - correct[order]
    parts = np.array_split(signed, num_bins)
    return float(sum(abs(part.sum()) for part in parts) / len(signed))


class ClassBins:
    """How the probabilities of every class fit what came true, gathered image by image.

    `B` numbers a class are kept, whatever the number of images.
    """

    def __init__(self, num_classes: int, num_bins: int = NUM_BINS) -> None:
        self._signed = np.zeros((num_classes, num_bins))
        self._num_images = 0
        self._classes = np.arange(num_classes)

    def add(self, label: int, probabilities: Floats) -> None:
        """Take in the probabilities `(C,)` of an image of class `label`."""
        bins = probability_bins(probabilities, self._signed.shape[1])
        self._signed[self._classes, bins] += probabilities
        self._signed[label, bins[label]] -= 1
        self._num_images += 1

    def errors(self) -> Floats:
        """Calibration error of each class, `(C,)` (Kull et al. 2019).

        Of class c: the gap between its mean probability and the share of images that are of it, in
        each bin of equal width of its probability, weighted by bin size.
        """
        errors: Floats = np.abs(self._signed).sum(axis=1) / self._num_images
        return errors


def _share(part: Floats | IntArray, size: IntArray) -> Floats:
    share: Floats = np.full(len(size), np.nan)
    np.divide(part, size, out=share, where=size > 0)
    return share
