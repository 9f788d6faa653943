"""How many directions a token's features need: the paper's feature rank (figures 4c and S.4).

Legend: `N` images, `T` of them of tail classes, `D` width.
"""

import numpy as np
from numpy.typing import NDArray

# Share of the tail's squared length that the directions may miss.
TOLERANCE = 0.01


def feature_rank(
    features: NDArray[np.float32], tail: NDArray[np.bool_], tolerance: float = TOLERANCE
) -> int:
    """Smallest k such that the k main directions of all features rebuild those of the tail.

    Columns are centred over all images; the directions are the right singular vectors of all
    features; the tail's rows are projected on the first k of them. The answer is at most
    min(N, D), so it needs images enough: a few times D to be free of them.

    Args:
        features: `(N, D)`.
        tail: which rows are of tail classes, `(N,)`; at least one.
        tolerance: largest squared error, as a share of the tail's squared length.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    rare = centred[tail]
    energy = (rare @ directions.T) ** 2
    whole = float((rare**2).sum())
    if whole == 0.0:
        return 0
    missed = whole - np.cumsum(energy.sum(axis=0))
    # What rounding leaves of a perfect fit must not count as a miss.
    return int(np.argmax(missed <= max(tolerance, 1e-12) * whole)) + 1
