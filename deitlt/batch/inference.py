"""The inference stage: how many calls of the model at once, how many images each, what fits.

On a CPU as many threads as cores call a session with one thread inside, a few images at a time, see
`deitlt.batching`: threads inside a call wait for each other. On a GPU one call at a time runs a
large batch, see `find_batch_size`.

Legend: `B` images, `S` image side.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Semaphore

import numpy as np

from deitlt.batching import core_batch_size
from deitlt.classifier import Classifier
from deitlt.cores import usable_cores
from deitlt.errors import ImageError, RuntimeUnavailable, UsageError
from deitlt.prediction import Options, Prediction
from deitlt.preprocess import Pixels
from deitlt.runtimes import Outputs, Runtime

# Of a model that runs on all cores inside one call.
WIDE_BATCH = 8
# Requests under way to a server, which puts them together as it sees fit.
REMOTE_CALLS = 8
# Where the search for a GPU's batch size ends, and what a doubling must gain to go on.
LARGEST_BATCH = 256
WORTH_DOUBLING = 1.05
SEARCH_CALLS = 3
# What ONNX Runtime and PyTorch say when a device's memory does not suffice.
OUT_OF_MEMORY = (
    "failed to allocate memory",  # ONNX Runtime's arena
    "is smaller than requested bytes",  # the same under a limit
    "out of memory",  # cudaMalloc, PyTorch
    "status_alloc_failed",  # cuBLAS, cuDNN
    "bad allocation",
    "bad_alloc",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How the model is called.

    Attributes:
        batch_size: images of one call. Batches are cut at its multiples, counted from the very
            first source, so that a resumed run makes the same ones.
        at_once: calls at the same time.
        num_threads: threads that call it and turn scores into predictions.
    """

    batch_size: int
    at_once: int
    num_threads: int


def choose_plan(
    classifier: Classifier, batch_size: int | None = None, num_workers: int | None = None
) -> Plan:
    """What suits the runtime, or the batch size asked for.

    Args:
        classifier: on a CPU best loaded with `num_threads=1`.
        batch_size: images of one call; by default what suits a core of a CPU, and on a GPU found by
            trying.
        num_workers: calls at once on a CPU; the number of usable cores by default.

    Raises:
        UsageError: a batch of less than one image.
    """
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch size {batch_size}; at least 1 image is needed")
    runtime, threads = classifier.runtime, num_workers or usable_cores()
    provider = runtime.provider.lower()
    if "cuda" in provider:
        size = batch_size or find_batch_size(runtime, classifier.bundle.preprocess.img_size)
        # While one thread makes predictions of a batch, the other runs the next.
        return Plan(size, at_once=1, num_threads=2)
    if "triton" in provider:
        return Plan(batch_size or 1, at_once=REMOTE_CALLS, num_threads=REMOTE_CALLS)
    if getattr(runtime, "num_threads", 1) == 1:
        size = batch_size or core_batch_size(runtime, classifier.bundle)
        return Plan(size, at_once=threads, num_threads=threads)
    return Plan(batch_size or WIDE_BATCH, at_once=1, num_threads=2)


def find_batch_size(runtime: Runtime, img_size: int, largest: int = LARGEST_BATCH) -> int:
    """The smallest power of two beyond which more images a call gain little, or do not fit.

    Blank images are timed, so the size does not depend on the input.
    """
    best, best_rate, size = 1, 0.0, 1
    while size <= largest:
        pixels = np.zeros((size, img_size, img_size, 3), np.uint8)
        try:
            runtime.run(pixels)  # the first call of a shape sets its memory up
            start = time.perf_counter()
            for _ in range(SEARCH_CALLS):
                runtime.run(pixels)
        except Exception as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            break
        rate = size * SEARCH_CALLS / max(time.perf_counter() - start, 1e-9)
        if rate < best_rate * WORTH_DOUBLING:
            break
        best, best_rate, size = size, rate, 2 * size
    return best


def is_out_of_memory(error: Exception) -> bool:
    """Whether a runtime failed for want of memory; each has an exception of its own for it."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)


class Inference:
    """Runs a classifier's model on blocks of decoded images. Safe to call from many threads."""

    def __init__(self, classifier: Classifier, options: Options, plan: Plan) -> None:
        self._classifier, self._options, self._plan = classifier, options, plan
        self._turns = Semaphore(plan.at_once)
        self._limit = plan.batch_size  # lower once the device has run out of memory

    def classify(
        self, pixels: Pixels, errors: Sequence[ImageError | None], before: int = 0
    ) -> list[Prediction | ImageError]:
        """What each image of a block gets.

        Args:
            pixels: `(B, S, S, 3)` uint8, beginning at a multiple of the batch size. An image
                without pixels keeps its blank place in its batch, as its neighbours' last digits
                depend on the batch's shape.
            errors: of each image, None where it has pixels.
            before: blank places at the start that are of no image in `errors`.
        """
        good = [i for i, error in enumerate(errors, start=before) if error is None]
        if not good:
            return [error for error in errors if error is not None]
        size = self._plan.batch_size
        starts = sorted({i - i % size for i in good})
        parts = [self._run(pixels[start : start + size]) for start in starts]
        offsets = {start: size * number for number, start in enumerate(starts)}
        rows = [offsets[i - i % size] + i % size for i in good]
        predictions = iter(self._classifier.to_predictions(_select(parts, rows), self._options))
        return [next(predictions) if error is None else error for error in errors]

    def _run(self, pixels: Pixels) -> Outputs:
        """One batch, in halves where it does not fit into memory."""
        limit = self._limit
        if len(pixels) > limit:
            parts = [self._run(pixels[i : i + limit]) for i in range(0, len(pixels), limit)]
            return _select(parts, None)
        try:
            with self._turns:
                return self._classifier.runtime.run(pixels)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(pixels) == 1:
                raise RuntimeUnavailable(
                    "out of memory with one image at a time; free memory, use another variant "
                    "or another device"
                ) from error
        self._limit = min(self._limit, len(pixels) // 2)
        return self._run(pixels)


def _select(parts: Sequence[Outputs], rows: Sequence[int] | None) -> Outputs:
    """Outputs of several calls as one, and of that the given rows."""
    joined = {}
    for name in parts[0]._fields:
        arrays = [array for part in parts if (array := getattr(part, name)) is not None]
        if arrays:
            whole = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
            joined[name] = whole if rows is None or len(rows) == len(whole) else whole[rows]
    return Outputs(**joined)
