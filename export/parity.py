"""Proof that an exported graph answers as the torch model does, on real images."""

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
BATCH_SIZES = (1, 3)


@dataclass(frozen=True, slots=True)
class Parity:
    """How close a graph is to torch.

    Attributes:
        num_images: real images compared, each at every batch size.
        batch_sizes: images a call.
        max_abs_diff: largest difference of any logit of any output.
        same_top1: share of images whose averaged top-1 class is the same, in [0, 1].
    """

    num_images: int
    batch_sizes: tuple[int, ...]
    max_abs_diff: float
    same_top1: float

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON types."""
        return asdict(self)


@torch.inference_mode()
def torch_outputs(model: DeiTLT, card: Card, pixels: Pixels, batch_size: int = 32) -> Outputs:
    """What the un-fused, un-folded student says of `(N, S, S, 3)` uint8 pixels: the oracle."""
    rows = []
    for start in range(0, len(pixels), batch_size):
        images = normalise(pixels[start : start + batch_size], card.preprocess)
        cls, dist = model(torch.from_numpy(images))
        rows.append((average_logits(cls, dist), cls, dist))
    return Outputs(*(torch.cat(parts).numpy() for parts in zip(*rows, strict=True)))


def runtime_outputs(runtime: Runtime, pixels: Pixels, batch_size: int) -> Outputs:
    """What a runtime says of `(N, S, S, 3)` uint8 pixels, asked `batch_size` at a time."""
    rows = [
        runtime.run(pixels[start : start + batch_size])
        for start in range(0, len(pixels), batch_size)
    ]
    return Outputs(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))


def check_parity(runtime: Runtime, expected: Outputs, pixels: Pixels) -> Parity:
    """Compare a runtime with torch's logits at every batch size.

    Raises:
        BundleError: a logit is off by more than `MAX_ABS_DIFF`, or a top-1 class differs.
    """
    worst, same = 0.0, 1.0
    for batch_size in BATCH_SIZES:
        actual = runtime_outputs(runtime, pixels, batch_size)
        differences = [np.abs(a - e).max() for a, e in zip(actual, expected, strict=True)]
        worst = float(np.max([worst, *differences]))  # Python's max would pass over a NaN
        agree = actual.logits.argmax(axis=1) == expected.logits.argmax(axis=1)
        same = min(same, float(agree.mean()))
    if not worst < MAX_ABS_DIFF or same < 1:
        raise BundleError(
            f"not written: the exported graph differs from torch on {len(pixels)} images, "
            f"max |logit difference| {worst:.1e} (limit {MAX_ABS_DIFF:.0e}), same top-1 {same:.3f}"
        )
    return Parity(len(pixels), BATCH_SIZES, worst, same)
