"""Proof that an exported artefact answers as the torch model does, on real images."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from deitlt.errors import BundleError
from deitlt.preprocess import Pixels, normalise
from deitlt.runtimes import Outputs, Runtime
from deitlt.student import DeiTLT, average_logits
from deitlt.weights import Card

MAX_ABS_DIFF = 1e-4
# Small and odd batches, for graphs that only work with the batch they were traced with.
BATCH_SIZES = (1, 3)


@dataclass(frozen=True, slots=True)
class Parity:
    """How close an artefact is to torch.

    Attributes:
        num_images: real images compared.
        max_abs_diff: largest difference of any logit of any output.
        same_top1: share of images whose averaged top-1 class is the same, in [0, 1].
    """

    num_images: int
    max_abs_diff: float
    same_top1: float

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON types."""
        return asdict(self)


class PlainStudent:
    """The un-fused, un-folded student as a runtime: the oracle of every comparison."""

    provider = "PyTorch cpu"

    def __init__(self, model: DeiTLT, card: Card) -> None:
        self.model, self.card = model, card

    @torch.inference_mode()
    def run(self, pixels: Pixels) -> Outputs:
        """Logits of `(B, S, S, 3)` uint8 pixels."""
        images = torch.from_numpy(normalise(pixels, self.card.preprocess))
        tokens = self.model.tokens(images)
        cls, dist = self.model.classify(tokens)
        parts = (average_logits(cls, dist), cls, dist, tokens[:, 0], tokens[:, 1])
        return Outputs(*(part.numpy() for part in parts))


def answers(runtime: Runtime, batches: Iterable[Pixels]) -> Outputs:
    """What a runtime says of all batches of `(B, S, S, 3)` uint8 pixels, one after the other."""
    rows = [runtime.run(pixels).heads() for pixels in batches]
    return Outputs(**{name: np.concatenate([row[name] for row in rows]) for name in rows[0]})


def compare(actual: Outputs, expected: Outputs) -> Parity:
    """How close answers are to torch's; heads that an artefact leaves out are not compared."""
    wanted = expected.heads()
    # np.max, because Python's max may pass over a NaN.
    worst = float(np.max([np.abs(a - wanted[name]).max() for name, a in actual.heads().items()]))
    same = actual.logits.argmax(axis=1) == expected.logits.argmax(axis=1)
    return Parity(len(same), worst, float(same.mean()))


def check_exact(name: str, parity: Parity) -> None:
    """Refuse a float32 artefact that differs from torch by more than rounding.

    Raises:
        BundleError: a logit is off by more than `MAX_ABS_DIFF`, or a top-1 class differs.
    """
    if not parity.max_abs_diff < MAX_ABS_DIFF or parity.same_top1 < 1:
        raise BundleError(
            f"not written: {name} differs from torch on {parity.num_images} images, max |logit "
            f"difference| {parity.max_abs_diff:.1e} (limit {MAX_ABS_DIFF:.0e}), "
            f"same top-1 {parity.same_top1:.3f}"
        )


def check_batch_sizes(name: str, runtime: Runtime, pixels: Pixels, expected: Outputs) -> None:
    """Refuse a float32 artefact that answers otherwise when asked in small batches.

    Raises:
        BundleError: see `check_exact`.
    """
    for size in BATCH_SIZES:
        batches = (pixels[start : start + size] for start in range(0, len(pixels), size))
        check_exact(f"{name}, {size} at a time,", compare(answers(runtime, batches), expected))
