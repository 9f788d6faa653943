"""How sure a teacher is of clean and of strange images (figure 3).

Legend: `N` images, `C` classes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deitlt.metrics import softmax


@dataclass(frozen=True)
class Sureness:
    """What a teacher says of one kind of view of the images.

    Attributes:
        view: the kind.
        entropies: of its answers, nats, `(N,)`.
        right: share it gives the image's own label; of a mixed image that of the larger part.
    """

    view: str
    entropies: NDArray[np.float64]
    right: float


def entropy(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Entropy of the softmax of logits `(N, C)`, nats, `(N,)`: between 0 and log C."""
    probabilities = softmax(logits)
    # x log x goes to 0 with x.
    safe = np.where(probabilities > 0, probabilities, 1.0)
    entropies: NDArray[np.float64] = -(probabilities * np.log(safe)).sum(axis=1)
    return entropies


def sureness(view: str, logits: NDArray[Any], labels: NDArray[np.int64]) -> Sureness:
    """A teacher's entropies and share of right labels from its logits `(N, C)`."""
    return Sureness(view, entropy(logits), float((logits.argmax(axis=1) == labels).mean()))
