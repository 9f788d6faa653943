"""How far the two experts' tokens point apart (figure 4a).

Legend: `N` images, `D` width.
"""

import numpy as np
from numpy.typing import NDArray


def cosine_distance(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """One minus the cosine of each pair of rows, `(N,)`, between 0 and 2.

    Args:
        first: `(N, D)`, no row of length 0.
        second: likewise.
    """
    one, other = first.astype(np.float64), second.astype(np.float64)
    products = (one * other).sum(axis=1)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    distances: NDArray[np.float64] = 1.0 - products / lengths
    return distances
