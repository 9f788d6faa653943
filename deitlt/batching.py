"""A runtime whose concurrent calls share one run of the model, as a GPU wants it.

Nobody waits for others to come: a call that finds the model free runs at once, and what has come by
the time it is done goes together into the next run. The batch so follows the load by itself, from
one image to `max_batch`, and no window has to be tuned.
"""

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock

import numpy as np

from deitlt.bundle import Bundle
from deitlt.errors import DeviceLost
from deitlt.preprocess import Pixels
from deitlt.runtimes import CPU_PROVIDER, Outputs, Runtime

logger = logging.getLogger("deitlt.runtimes")

# Patches of a call's images on a core of a CPU. More fill its matrix products better, and too many
# leave its cache. Processor time of an image by images a call, one image taking 1.00, on two cores
# of an AMD EPYC with two calls at once (export/RESULTS.md):
#
#                                       2     4     8    16
#     S, 224 px, 196 patches, float32  0.96  0.97  1.03  1.16      int8  0.97  1.02  1.12  1.26
#     Ti, 224 px, 196 patches          0.96  0.95  0.96  1.02            0.99  0.98  0.97  1.07
#     S, 32 px, 64 patches             0.87  0.81  0.79  0.81            0.95  0.93  0.93  1.00
#     pico, 16 px, 16 patches          0.70  0.56  0.49  0.45
PATCHES_OF_A_CALL = 512


def core_batch_size(runtime: Runtime, bundle: Bundle) -> int:
    """Images of one call that suit a core of a CPU.

    More than one for ONNX Runtime alone, whose answers do not depend on how many there are (seen in
    every bit, float32 and int8, on x86-64).
    """
    if runtime.provider != CPU_PROVIDER:
        return 1
    return max(1, PATCHES_OF_A_CALL // bundle.num_patches)


class _Call:
    """One caller's images; its turn is to lead the next run, or what another's run gave it."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels
        self.turn: Future[Outputs | None] = Future()


class BatchingRuntime:
    """Makes one call of a runtime out of those that threads make at the same time.

    Attributes:
        lost: the runtime's device can no longer be used by this process, and all calls fail.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        max_batch: int,
        pad: bool = False,
        observe: Callable[[int], None] = lambda number: None,
    ) -> None:
        """Wrap a runtime.

        Args:
            runtime: what runs the model.
            max_batch: most images in a shared run; a single call with more runs by itself. With 1
                nothing is shared and calls run side by side.
            pad: fill every run up to a power of two, so that a GPU meets few shapes.
            observe: told the number of images of each run.
        """
        self._runtime = runtime
        self._max_batch = max_batch
        self._pad = pad
        self._observe = observe
        self.lost = False
        self._lock = Lock()  # guards the two below
        self._running = False
        self._waiting: deque[_Call] = deque()

    @property
    def provider(self) -> str:
        """Where the wrapped runtime runs."""
        return self._runtime.provider

    def warm_up(self, img_size: int) -> None:
        """Run every batch size once, so that no request pays for the first run of its shape.

        Args:
            img_size: side of the model's images, pixels.
        """
        sizes = {
            min(1 << power, self._max_batch) for power in range(self._max_batch.bit_length() + 1)
        }
        for size in sorted(sizes):
            self._runtime.run(np.zeros((size, img_size, img_size, 3), np.uint8))

    def run(self, pixels: Pixels) -> Outputs:
        """Logits of `(B, S, S, 3)` uint8 pixels, run together with those of other callers."""
        if self._max_batch == 1:
            return self._run(pixels)
        call = _Call(pixels)
        with self._lock:
            free = not self._running
            self._running = True
            if not free:
                self._waiting.append(call)
        if not free and (outputs := call.turn.result()) is not None:
            return outputs
        return self._lead(call)

    def _lead(self, call: _Call) -> Outputs:
        """Run a call with those that wait, then give the lead to one that has come meanwhile."""
        others = self._join(call)
        try:
            own, *theirs = self._run_all([call.pixels, *(other.pixels for other in others)])
            for other, outcome in zip(others, theirs, strict=True):
                if isinstance(outcome, Exception):
                    other.turn.set_exception(outcome)
                else:
                    other.turn.set_result(outcome)
        finally:
            with self._lock:
                following = self._waiting.popleft() if self._waiting else None
                self._running = following is not None
            if following is not None:
                following.turn.set_result(None)
        if isinstance(own, Exception):
            raise own
        return own

    def _join(self, call: _Call) -> list[_Call]:
        """Those that have waited longest, as many as fit in with this call."""
        others: list[_Call] = []
        number = len(call.pixels)
        with self._lock:
            while self._waiting and number + len(self._waiting[0].pixels) <= self._max_batch:
                others.append(self._waiting.popleft())
                number += len(others[-1].pixels)
        return others

    def _run_all(self, parts: list[Pixels]) -> list[Outputs | Exception]:
        """Every part's outputs of one run; if that fails, of a run of its own, or its error."""
        try:
            outputs = self._run(np.concatenate(parts) if len(parts) > 1 else parts[0])
        except Exception as error:
            # Too much for the memory, or one caller's doing: the others need not share it.
            if len(parts) == 1 or isinstance(error, DeviceLost):
                return [error] * len(parts)
            return [outcome for part in parts for outcome in self._run_all([part])]
        stops = np.cumsum([len(part) for part in parts])
        return [
            outputs.rows(stop - len(part), stop) for part, stop in zip(parts, stops, strict=True)
        ]

    def _run(self, pixels: Pixels) -> Outputs:
        """The outputs of these pixels, and behind them of those that filled the run up."""
        number = len(pixels)
        size = min(1 << (number - 1).bit_length(), self._max_batch)
        if self._pad and number < size:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], size - number, axis=0)])
        try:
            outputs = self._runtime.run(pixels)
        except DeviceLost as error:
            if not self.lost:
                logger.critical("%s", error)
            self.lost = True
            raise
        self._observe(number)
        return outputs
