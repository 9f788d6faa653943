"""Proof that an exported artefact answers as the torch model does, on real images."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from deitlt.errors import BundleError
from deitlt.preprocess import Pixels, normalise
from deitlt.runtimes import Outputs, Rollout, Runtime
from deitlt.student import DeiTLT, average_logits
from deitlt.weights import Card
from export.fuse import FusedStudent

MAX_ABS_DIFF = 1e-4
# What a linear layer and `@` are to PyTorch.
PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, F.linear)
# Small and odd batches, for graphs that only work with the batch they were traced with.
BATCH_SIZES = (1, 3)


@dataclass(frozen=True, slots=True)
class Parity:
    """How close an artefact is to torch.

    Attributes:
        num_images: real images compared.
        max_abs_diff: largest difference of any number of any output compared.
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

    @torch.inference_mode()
    def rollouts(self, pixels: Pixels) -> Rollout:
        """Attention rollout of CLS and DIST over the patches, `(B, 2, G, G)`, block after block.

        Per block half the mean attention of the heads and half the identity, rows made to sum to
        one, multiplied from the first block to the last (Abnar and Zuidema 2020).
        """
        attentions: list[torch.Tensor] = []

        def note(attention: Any, inputs: tuple[torch.Tensor], _: torch.Tensor) -> None:
            (rows,) = inputs
            qkv = attention.qkv(rows).unflatten(-1, (3, attention.num_heads, -1))
            queries, keys, _ = qkv.permute(2, 0, 3, 1, 4)
            scores = attention.scale * queries @ keys.transpose(-2, -1)
            attentions.append(scores.softmax(dim=-1).mean(dim=1))

        hooks = [block.attn.register_forward_hook(note) for block in self.model.blocks]
        try:
            self.run(pixels)
        finally:
            for hook in hooks:
                hook.remove()
        identity = torch.eye(attentions[0].shape[-1])
        rolled = identity
        for attention in attentions:
            mixed = attention + identity
            rolled = mixed / mixed.sum(dim=-1, keepdim=True) @ rolled
        side = self.card.preprocess.img_size // self.model.patch_embed.patch_size[0]
        return rolled[:, :2, 2:].reshape(-1, 2, side, side).numpy()


class FusedRuntime:
    """A fused student in PyTorch on the CPU, in arithmetic of its own precision.

    ONNX Runtime casts float16 graphs to float32 on a CPU, where nothing overflows that would on a
    GPU. PyTorch rounds what each operator gives to float16, as a GPU does; products of matrices are
    summed in float32 and then rounded.
    """

    provider = "PyTorch cpu"

    def __init__(self, fused: FusedStudent) -> None:
        self.fused = fused

    @torch.inference_mode()
    def run(self, pixels: Pixels) -> Outputs:
        """Logits and features of `(B, S, S, 3)` uint8 pixels."""
        with _RoundedProducts():
            return Outputs(*(part.numpy() for part in self.fused(torch.from_numpy(pixels))))


class _RoundedProducts(TorchFunctionMode):
    """Has matrix products of float16 computed in float32 and rounded, as a GPU does.

    PyTorch's own on a CPU sum in float16 or float32, by the processor, and take 3 to 40 times as
    long.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS and args[0].dtype == torch.float16:
            return func(*(part if part is None else part.float() for part in args)).half()
        return func(*args, **(kwargs or {}))


def answers(
    runtime: Runtime,
    batches: Iterable[Pixels],
    kept: Callable[[Outputs], Mapping[str, NDArray[np.float32]]] = Outputs.heads,
) -> Outputs:
    """What a runtime says of all batches of `(B, S, S, 3)` uint8 pixels, one after the other.

    Args:
        runtime: what to ask.
        batches: one after the other.
        kept: which outputs; features of many images take much memory.
    """
    rows = [kept(runtime.run(pixels)) for pixels in batches]
    return Outputs(**{name: np.concatenate([row[name] for row in rows]) for name in rows[0]})


def compare(actual: Outputs, expected: Outputs) -> Parity:
    """How close answers are to torch's, by the outputs that both have."""
    given, wanted = actual.parts(), expected.parts()
    # np.max, because Python's max may pass over a NaN.
    differences = [np.abs(given[name] - wanted[name]).max() for name in given if name in wanted]
    worst = float(np.max(differences))
    same = actual.logits.argmax(axis=1) == expected.logits.argmax(axis=1)
    return Parity(len(same), worst, float(same.mean()))


def worse(parities: Sequence[Parity]) -> Parity:
    """The worst figures of several runs of one artefact on the same images."""
    # np.max, because Python's max may pass over a NaN.
    worst = float(np.max([parity.max_abs_diff for parity in parities]))
    return replace(
        parities[0], max_abs_diff=worst, same_top1=min(parity.same_top1 for parity in parities)
    )


def check_exact(name: str, parity: Parity) -> None:
    """Refuse a float32 artefact that differs from torch by more than rounding.

    So another top-1 class is refused, too, where torch prefers its own by `2 MAX_ABS_DIFF` or more:
    logits that are each off by less than half of that do not change places. Nearer ones are tied up
    to rounding, and which comes first is no fault of the artefact; `same_top1` tells how often.

    Raises:
        BundleError: an output is off by `MAX_ABS_DIFF` or more.
    """
    if not parity.max_abs_diff < MAX_ABS_DIFF:
        raise BundleError(
            f"not written: {name} differs from torch on {parity.num_images} images, max "
            f"|difference| {parity.max_abs_diff:.1e} (limit {MAX_ABS_DIFF:.0e}), "
            f"same top-1 {parity.same_top1:.3f}"
        )


def check_rollouts(name: str, runtime: Runtime, pixels: Pixels, expected: Rollout) -> None:
    """Refuse an artefact whose rollouts are not torch's.

    Args:
        name: of the artefact, for the error.
        runtime: what runs it.
        pixels: `(B, S, S, 3)`.
        expected: `PlainStudent.rollouts` of them.

    Raises:
        BundleError: a share is off by more than `MAX_ABS_DIFF` of the largest.
    """
    actual = np.stack(list(runtime.run(pixels).rollouts().values()), axis=1)
    worst = float(np.abs(actual - expected).max() / expected.max())
    if not worst < MAX_ABS_DIFF:
        raise BundleError(f"not written: {name}: its rollouts differ from torch's by {worst:.1e}")


def check_batch_sizes(name: str, runtime: Runtime, pixels: Pixels, expected: Outputs) -> None:
    """Refuse a float32 artefact that answers otherwise when asked in small batches.

    The experts' features are compared here, too.

    Raises:
        BundleError: see `check_exact`.
    """
    for size in BATCH_SIZES:
        batches = (pixels[start : start + size] for start in range(0, len(pixels), size))
        found = answers(runtime, batches, Outputs.parts)
        check_exact(f"{name}, {size} at a time,", compare(found, expected))
