"""How times are taken: rows take turns, and what is said of them comes from the same rounds."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np
import torch

from deitlt.cores import usable_cores

# Calls of a turn, whatever the time that is left in it.
MAX_CALLS = 200
# What a CUDA graph takes until it is captured and replayed.
WARM_UPS = {"cpu": 2, "cuda": 5}
# Names under which thread counts of NumPy's matrix library are set.
NUMPY_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Timing:
    """Times of one row at one batch size.

    Attributes:
        batch_size: images a call.
        rounds_ms: of each round, the time of every call.
        cpu_ms: the same of the processor's time, all threads of this process together. It does not
            grow where other processes take turns on the cores, as the time itself does.
    """

    batch_size: int
    rounds_ms: list[list[float]]
    cpu_ms: list[list[float]]

    @cached_property
    def calls_ms(self) -> list[float]:
        """All calls."""
        return [call for calls in self.rounds_ms for call in calls]

    @property
    def p50_ms(self) -> float:
        """Median call."""
        return median(self.calls_ms)

    @property
    def lower_quartile_ms(self) -> float:
        """A quarter of the calls took less: near what an undisturbed one takes."""
        return float(np.percentile(self.calls_ms, 25))

    @property
    def p99_ms(self) -> float:
        """99 % of the calls took less; of fewer than 100 calls, close to the longest."""
        return float(np.percentile(self.calls_ms, 99))

    @property
    def images_per_s(self) -> float:
        """At the median call."""
        return 1000 * self.batch_size / self.p50_ms

    def times_as_fast_as(self, other: "Timing") -> float:
        """Median over rounds of the other's median call by this one's in the same round.

        What slows a machine down for a while slows both, and so leaves a round's ratio alone.
        """
        return _paired(other.rounds_ms, self.rounds_ms)

    def cpu_ratio(self, other: "Timing") -> float | None:
        """`times_as_fast_as` by the processor's time; None where its clock is too coarse."""
        if min(map(median, self.cpu_ms)) == 0:
            return None
        return _paired(other.cpu_ms, self.cpu_ms)

    @property
    def p50_cpu_ms(self) -> float:
        """Processor's time of the median call."""
        return median(call for calls in self.cpu_ms for call in calls)


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    batch_size: int,
    *,
    rounds: int,
    turn_s: float,
    warm_ups: int,
) -> dict[str, Timing]:
    """Time calls in rounds; every other round goes through them backwards.

    Args:
        calls: what to time, by name.
        batch_size: images of each.
        rounds: how often each has its turn.
        turn_s: how long a turn lasts; at least one call, at most `MAX_CALLS`.
        warm_ups: untimed calls of each before the first round.
    """
    per_turn = {}
    for name, call in calls.items():
        for _ in range(warm_ups):
            last_s = _seconds(call)
        per_turn[name] = max(1, min(MAX_CALLS, int(turn_s / last_s)))
    timings = {name: Timing(batch_size, [], []) for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            call = calls[name]
            if per_turn[name] > 1:
                call()  # brings its weights back into the caches; little against longer calls
            pairs = [_milliseconds(call) for _ in range(per_turn[name])]
            timings[name].rounds_ms.append([wall for wall, _ in pairs])
            timings[name].cpu_ms.append([cpu for _, cpu in pairs])
    return timings


@dataclass(frozen=True)
class Yardstick:
    """A large product of random matrices, the fastest thing that a device does with numbers.

    Attributes:
        name: of the product, for people.
        flops: operations of a call.
        call: one product.
    """

    name: str
    flops: int
    call: Callable[[], object]

    def share_of_floor(self, product: Timing, row: Timing, flops: int) -> float:
        """Time that `flops` an image take at the product's best rate, by the row's median.

        The best, because a floor is what the device can do, not what it did on average.
        """
        floor_ms = flops * row.batch_size / self.flops * min(product.calls_ms)
        return floor_ms / row.p50_ms


def pick_yardstick(device: str, side: int, threads: int) -> Yardstick:
    """The fastest of the libraries at hand; torch in bfloat16 on a GPU."""
    flops = 2 * side**3
    if device == "cuda":
        left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
        out = torch.empty_like(left)

        def multiply() -> None:
            torch.mm(left, right, out=out)
            torch.cuda.synchronize()

        return Yardstick(f"bfloat16 matrix product, {side} x {side}, torch", flops, multiply)
    ways = _cpu_products(side, threads)
    # The first call of each starts its threads.
    best_s = {name: min([_seconds(call) for _ in range(4)][1:]) for name, call in ways.items()}
    name = min(best_s, key=lambda way: best_s[way])
    return Yardstick(f"float32 matrix product, {side} x {side}, {name}", flops, ways[name])


def _cpu_products(side: int, threads: int) -> dict[str, Callable[[], object]]:
    import onnx
    import onnxruntime

    left, right = (torch.randn(side, side) for _ in range(2))
    a, b = left.numpy(), right.numpy()
    ways: dict[str, Callable[[], object]] = {"torch": lambda: torch.mm(left, right)}
    set_threads = (os.environ[name] for name in NUMPY_THREADS if name in os.environ)
    if next(set_threads, str(usable_cores())) == str(threads):
        ways["NumPy"] = lambda: a @ b
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["a", "b"], ["c"])],
        "product",
        [onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [side, side])],
        [onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [side, side])],
        [onnx.numpy_helper.from_array(b, "b")],
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session: Any = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    ways["ONNX Runtime"] = lambda: session.run(None, {"a": a})
    return ways


def _paired(theirs: list[list[float]], ours: list[list[float]]) -> float:
    return median(median(a) / median(b) for a, b in zip(theirs, ours, strict=True))


def _milliseconds(call: Callable[[], object]) -> tuple[float, float]:
    """On the clock, and of the processor's time."""
    start, cpu_start = time.perf_counter(), time.process_time()
    call()
    end, cpu_end = time.perf_counter(), time.process_time()
    return 1000 * (end - start), 1000 * (cpu_end - cpu_start)


def _seconds(call: Callable[[], object]) -> float:
    return _milliseconds(call)[0] / 1000
