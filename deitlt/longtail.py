"""Long-tailed class distributions: counts, subsets, weights and the two ways to group classes.

Legend: `C` classes, `N` images.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deitlt.errors import DataError
from deitlt.grouped_split import hold_out_groups

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
Groups = dict[str, list[int]]

# Class ranks at which the paper cuts head | mid | tail (official code; training counts descending).
PAPER_CUTS = {10: (3, 7), 100: (36, 71), 1000: (390, 835), 8142: (842, 4543)}

# Above this ratio of largest to smallest class a set is not "balanced up to collection accidents".
BALANCED_RATIO = 1.5


def class_counts(labels: ArrayLike, num_classes: int) -> IntArray:
    """Images of each class, `(C,)`."""
    return np.bincount(np.asarray(labels, dtype=np.int64), minlength=num_classes).astype(np.int64)


def imbalance_factor(counts: ArrayLike) -> float:
    """Largest class over smallest class (100 for the paper's hardest CIFAR sets, not 0.01)."""
    array = np.asarray(counts)
    return float(array.max() / array.min())


def exponential_counts(max_count: int, num_classes: int, factor: float) -> IntArray:
    """Class counts `(C,)` of the exponential profile: `int(max_count * factor^(-i / (C - 1)))`.

    Source: LDAM-DRW's CIFAR subsets, which DeiT-LT and its teachers share.

    Raises:
        DataError: `factor` is below 1, or there are fewer than two classes.
    """
    if factor < 1:
        raise DataError(
            f"imbalance factor {factor:g} is below 1: it is largest over smallest class, e.g. 100"
        )
    if num_classes < 2:
        raise DataError("a long-tailed subset needs at least two classes")
    share = 1.0 / factor
    counts = [int(max_count * share ** (i / (num_classes - 1.0))) for i in range(num_classes)]
    return np.array(counts, dtype=np.int64)


def long_tailed_subset(
    labels: ArrayLike, num_classes: int, factor: float, seed: int = 0
) -> IntArray:
    """Indices of an exponential long-tailed subset of a balanced set, class by class.

    Reproduces LDAM-DRW's draw: NumPy's legacy generator with `seed`, then for each class in
    ascending order an in-place shuffle of its ascending indices, of which the first n_i are kept.
    With `seed=0` teacher and student of the official repositories share this very subset.

    Deviation: the largest class gets the size of the *smallest* class of the set instead of
    N / C, so that a set which is balanced but for a few images works; equal on balanced sets.

    Raises:
        DataError: the set is not balanced, or the profile leaves a class empty.
    """
    label_array = np.asarray(labels, dtype=np.int64)
    available = class_counts(label_array, num_classes)
    if available.min() == 0 or imbalance_factor(available) > BALANCED_RATIO:
        raise DataError(
            "--imbalance-factor needs a balanced set, but its classes have "
            f"{available.min()} to {available.max()} images; leave it out to use the set as it is"
        )
    counts = exponential_counts(int(available.min()), num_classes, factor)
    if counts.min() == 0:
        raise DataError(
            f"imbalance factor {factor:g} leaves a class without images: "
            f"the largest class has only {counts.max()}"
        )
    generator = np.random.RandomState(seed)
    chosen = []
    for label, count in enumerate(counts):
        indices = np.flatnonzero(label_array == label)
        generator.shuffle(indices)
        chosen.append(indices[:count])
    return np.concatenate(chosen)


def carve_validation(
    labels: ArrayLike,
    num_classes: int,
    fraction: float,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> tuple[IntArray, IntArray]:
    """Ascending indices `(train, validation)`: a stratified share of each class held out.

    Each class gives `round(fraction * n)` images, but at least one and never its last one, so a
    class of a single image stays wholly in training.

    With `groups`, one name an image, no group is on both sides. The shares are then as near to that
    as whole groups get them (`grouped_split.hold_out_groups`), so a class of few groups may give
    none; never does one give its last image.

    Raises:
        DataError: `fraction` is outside [0, 0.5].
    """
    if not 0 <= fraction <= 0.5:
        raise DataError(f"validation fraction {fraction:g} is outside 0 to 0.5")
    label_array = np.asarray(labels, dtype=np.int64)
    counts = class_counts(label_array, num_classes)
    wanted = [
        max(1, round(fraction * count)) if fraction > 0 and count > 1 else 0
        for count in counts.tolist()
    ]
    if groups is not None:
        held_out = hold_out_groups(label_array, groups, np.array(wanted, dtype=np.int64), seed)
    else:
        held_out = np.zeros(len(label_array), dtype=np.bool_)
        generator = np.random.RandomState(seed)
        for label, number in enumerate(wanted):
            indices = np.flatnonzero(label_array == label)
            if number:
                generator.shuffle(indices)
                held_out[indices[:number]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def effective_number_weights(counts: ArrayLike, beta: float = 0.9999) -> FloatArray:
    """Class weights `(C,)` of deferred re-weighting, with mean 1.

    w_c = (1 - beta) / (1 - beta^n_c), scaled so that they sum to C: Cui et al. 2019, as the
    official DeiT-LT code does. Deviation from the paper: its un-normalised weight would shrink the
    distillation loss a hundredfold.
    """
    array = np.asarray(counts, dtype=np.float64)
    assert array.min() >= 1, "every class needs a training image"
    weights = (1.0 - beta) / (1.0 - np.power(beta, array))
    normalised: FloatArray = weights / weights.sum() * len(weights)
    return normalised


def head_mid_tail(counts: ArrayLike) -> Groups:
    """The paper's groups: classes by rank of training count, cut where the paper cuts.

    For class numbers the paper does not have, the cuts stand at 30 % and 70 % of the ranks (the
    proportions of CIFAR-10-LT). Ties keep class order, so the groups are the same everywhere.
    """
    array = np.asarray(counts)
    num_classes = len(array)
    order = np.argsort(-array, kind="stable")
    cuts = PAPER_CUTS.get(num_classes, (round(0.3 * num_classes), round(0.7 * num_classes)))
    edges = (0, *cuts, num_classes)
    names = ("head", "mid", "tail")
    return {
        name: sorted(int(c) for c in order[low:high])
        for name, (low, high) in zip(names, pairwise(edges), strict=True)
    }


def many_medium_few(counts: ArrayLike, many: int = 100, few: int = 20) -> Groups:
    """Groups by training count: many > 100, medium 20 to 100, few < 20 (OLTR's thresholds)."""
    array = np.asarray(counts)
    return {
        "many": [int(c) for c in np.flatnonzero(array > many)],
        "medium": [int(c) for c in np.flatnonzero((array >= few) & (array <= many))],
        "few": [int(c) for c in np.flatnonzero(array < few)],
    }


def all_groups(counts: Sequence[int] | IntArray) -> Groups:
    """Both groupings side by side, under their own names."""
    return {**head_mid_tail(counts), **many_medium_few(counts)}
