"""How the benchmark measures: timing, rows with their baselines, and what the work amounts to.

Legend: `N` tokens, `D` width, `S` image side, `P` patch side, `C` classes.
"""

import gc
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, TypeVar

import torch

from deitlt.student import SIZES, StudentConfig

T = TypeVar("T")

# A backward pass multiplies twice for each product of the forward pass: by the weights for the
# gradient of the inputs, by the inputs for that of the weights.
FORWARDS_PER_STEP = 3
GIB = 1 << 30


@dataclass(frozen=True)
class Target:
    """What a figure should reach.

    Attributes:
        text: in words.
        met: whether it does; None where this machine cannot tell.
    """

    text: str
    met: bool | None

    def __str__(self) -> str:
        verdict = {True: "met", False: "not met", None: "needs a GPU"}[self.met]
        return f"{self.text}: {verdict}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A figure of the table.

    Attributes:
        part: of the benchmark.
        name: what was measured.
        unit: of the samples.
        samples: one a repeat.
        baseline: what the figure is compared with, measured in the same run; None for a baseline.
        baseline_value: its figure, in the same unit.
        target: what the figure or its ratio should reach.
        note: what else a reader must know.
    """

    part: str
    name: str
    unit: str
    samples: list[float]
    baseline: str | None = None
    baseline_value: float | None = None
    target: Target | None = None
    note: str = ""

    def against(self, baseline: "Row") -> "Row":
        """This figure compared with another."""
        return replace(self, baseline=baseline.name, baseline_value=baseline.value)

    @property
    def value(self) -> float:
        """Median of the samples."""
        return median(self.samples)

    @property
    def spread(self) -> float:
        """Largest less smallest sample, as a share of the median."""
        return (max(self.samples) - min(self.samples)) / self.value if self.value else 0.0

    @property
    def ratio(self) -> float | None:
        """The figure over that of its baseline."""
        return self.value / self.baseline_value if self.baseline_value else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "part": self.part,
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "spread": self.spread,
            "samples": self.samples,
            "baseline": self.baseline,
            "baseline_value": self.baseline_value,
            "ratio": self.ratio,
            "target": self.target.text if self.target else None,
            "target_met": self.target.met if self.target else None,
            "note": self.note,
        }


def timed(device: torch.device, run: Callable[[], T]) -> tuple[float, T]:
    """Seconds that `run` keeps the device, from an idle one until all it started is done."""
    if device.type != "cuda":
        start = time.perf_counter()
        result = run()
        return time.perf_counter() - start, result
    torch.cuda.synchronize(device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    result = run()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1000, result


class PeakMemory:
    """The most memory that was in use since this was made, beyond what was in use then.

    On a GPU that is what torch allocated. A CPU has only the largest resident set of the whole
    process since its start.

    Attributes:
        unit: of the figure.
        of_this_alone: whether it is that of a part of the process, to be compared with another.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.of_this_alone = device.type == "cuda"
        self.unit = "GiB" if self.of_this_alone else "GiB, all of it"
        self._before = 0
        if self.of_this_alone:
            gc.collect()  # what was measured before may hold memory in circles
            self._before = torch.cuda.memory_allocated(device)
        self.forget()

    def forget(self) -> None:
        """Leave out what was in use until now and is no more."""
        if self.of_this_alone:
            torch.cuda.reset_peak_memory_stats(self._device)

    def __call__(self) -> float:
        """The peak until now, GiB."""
        if self.of_this_alone:
            return (torch.cuda.max_memory_allocated(self._device) - self._before) / GIB
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / GIB if sys.platform == "darwin" else peak * 1024 / GIB


def matrix_rate(device: torch.device, side: int, repeats: int) -> Row:
    """The rate of a large product of random matrices, TFLOP/s: what no model exceeds.

    The best of several, because a yardstick is what the device can do. On random data: zeros draw
    less power and run faster.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    products = 10 if device.type == "cuda" else 1

    def multiply() -> None:
        for _ in range(products):
            torch.mm(left, right, out=out)

    multiply()
    rates = [2 * side**3 * products / timed(device, multiply)[0] / 1e12 for _ in range(repeats)]
    kind = str(dtype).removeprefix("torch.")
    return Row(
        part="device",
        name=f"matrix product, {kind}, {side} x {side}",
        unit="TFLOP/s",
        samples=[max(rates)],
        note=f"yardstick: best of {repeats}, median {median(rates):.4g}",
    )


def forward_flops(config: StudentConfig) -> int:
    """Floating-point operations of one image through a DeiT-LT student.

    A product of (a, b) and (b, c) is 2abc; all else is left out. Of each block:

        24 N D^2 = 2 N D (3 D + D + 4 D + 4 D)    queries, keys and values; projection; MLP
         4 N^2 D = 2 N^2 D (1 + 1)                queries by keys; weights by values

    The patch embedding adds 2 (N - 2) 3 P^2 D and both heads 4 D C.
    """
    assert config.distilled, "a plain transformer has one token and one head less"
    width, depth, _ = SIZES[config.size]
    patches = (config.img_size // config.patch_size) ** 2
    tokens = patches + 2
    embedding = 2 * patches * 3 * config.patch_size**2 * width
    block = 24 * tokens * width**2 + 4 * tokens**2 * width
    heads = 2 * 2 * width * config.num_classes
    return embedding + depth * block + heads


def training_flops(config: StudentConfig) -> int:
    """Model FLOPs of training on one image, by the usual convention of three forward passes.

    The teacher is not in it, nor is what an implementation computes twice. The gradient of the
    pixels, which nobody needs, is: some 0.3 % of the base student at 224 px.
    """
    return FORWARDS_PER_STEP * forward_flops(config)
