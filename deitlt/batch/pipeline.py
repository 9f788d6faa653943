"""Sources in, predictions out: in order, decoded on all cores, with a bounded number in work.

Sources are taken in blocks. A block's images are decoded into one array, by worker processes or
threads, and then classified by a thread of the inference stage; blocks further on are decoded
meanwhile. What is asked for first is yielded first, however long the input may be.
"""

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from math import ceil
from typing import Any, TypeVar

import numpy as np

from deitlt.batch.decode_worker import Readable
from deitlt.batch.decoding import DecodePool, Errors
from deitlt.batch.inference import Inference, Plan, choose_plan
from deitlt.classifier import Classifier
from deitlt.cores import usable_cores
from deitlt.errors import ImageError, UsageError
from deitlt.prediction import Options, Prediction
from deitlt.preprocess import Pixels

S = TypeVar("S", bound=Readable)
Result = Prediction | ImageError

# An input that ends before so many sources is decoded in threads: starting processes takes longer.
FEW_SOURCES = 64
# Sources that one worker gets at a time.
CHUNK = 8
# A block should take about so long: less, and handing it on costs; more, and cores wait at the end.
BLOCK_S = 0.2
LARGEST_BLOCK = 32


def predict_iter(
    classifier: Classifier,
    sources: Iterable[S],
    options: Options = Options(),
    *,
    num_workers: int | None = None,
    batch_size: int | None = None,
    first: int = 0,
) -> Generator[tuple[S, Result], None, None]:
    """Each source with its prediction or error, in order, with a bounded number in work.

    An error of `sources` itself is raised once all before it is yielded. Closing the iterator, or
    an exception, ends the workers.

    Args:
        classifier: on a CPU best loaded with `num_threads=1`, as images share the cores.
        sources: may be endless; no more are taken than are needed to keep the stages busy.
        options: what the predictions should hold.
        num_workers: decoding processes, and calls of the model at once on a CPU; 0 decodes in
            threads. By default as many as there are usable cores, threads for a short input.
        batch_size: images a call of the model; see `inference.choose_plan`.
        first: how many sources came before these in an earlier run. With the same batch size the
            batches are cut at the same places, so the numbers are the same to the last bit.

    Raises:
        UsageError: an argument is out of range.
    """
    if num_workers is not None and num_workers < 0:
        raise UsageError(f"{num_workers} workers; at least 0 are needed")
    if first < 0:
        raise UsageError(f"first is {first}; it must be at least 0")
    plan = choose_plan(classifier, batch_size, num_workers)
    return _stream(classifier, iter(sources), options, num_workers, plan, first)


def _stream(
    classifier: Classifier,
    sources: Iterator[S],
    options: Options,
    num_workers: int | None,
    plan: Plan,
    first: int,
) -> Generator[tuple[S, Result], None, None]:
    processes = num_workers != 0
    if num_workers is None:
        processes, sources = _is_long(sources)
    with _Stages(classifier, options, plan, num_workers or usable_cores(), processes) as stages:
        yield from stages.run(sources, first)


def _is_long(sources: Iterator[S]) -> tuple[bool, Iterator[S]]:
    """Whether there are `FEW_SOURCES` or more, and the sources again, with their error if any."""
    beginning: list[S] = []
    try:
        for source in islice(sources, FEW_SOURCES):
            beginning.append(source)
    except Exception as error:
        return False, chain(beginning, _failing(error))
    return len(beginning) == FEW_SOURCES, chain(beginning, sources)


def _failing(error: Exception) -> Iterator[Any]:
    yield from ()
    raise error


class _Stages:
    """The decoding and the inference stage of one run."""

    def __init__(
        self,
        classifier: Classifier,
        options: Options,
        plan: Plan,
        num_workers: int,
        processes: bool,
    ) -> None:
        self._side = classifier.bundle.preprocess.img_size
        self._batch, self._num_workers = plan.batch_size, num_workers
        self._decoding = DecodePool(
            classifier.bundle.preprocess, classifier.max_pixels, num_workers, processes=processes
        )
        self._inference = Inference(classifier, options, plan)
        self._threads = ThreadPoolExecutor(plan.num_threads, thread_name_prefix="deitlt-infer")
        self._threads_and_one = plan.num_threads + 1
        self._block_size = plan.batch_size  # always whole batches

    def __enter__(self) -> "_Stages":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._decoding.close()
        self._threads.shutdown(wait=True)

    def run(self, sources: Iterator[S], first: int) -> Iterator[tuple[S, Result]]:
        waiting: deque[tuple[list[S], Future[list[Result]]]] = deque()
        position, more = first, True
        failure: Exception | None = None
        while more or waiting:
            while more and len(waiting) < self._most_waiting():
                taken: list[S] = []
                try:
                    # The first block of a resumed run ends where it did in the run before.
                    for source in islice(sources, self._block_size - position % self._batch):
                        taken.append(source)
                except Exception as error:  # what was taken before it is still classified
                    failure, more = error, False
                more = more and bool(taken)
                if taken:
                    waiting.append((taken, self._begin(taken, position)))
                    position += len(taken)
            if waiting:
                block, future = waiting.popleft()
                yield from zip(block, future.result(), strict=True)
        if failure is not None:
            raise failure

    def _begin(self, block: list[S], position: int) -> "Future[list[Result]]":
        before = position % self._batch  # images of its first batch that came in an earlier run
        pixels = np.zeros((before + len(block), self._side, self._side, 3), np.uint8)
        mine = pixels[before:]
        decoded = [
            self._decoding.submit(block[i : i + CHUNK], mine[i : i + CHUNK])
            for i in range(0, len(block), CHUNK)
        ]
        return self._threads.submit(self._finish, pixels, before, decoded)

    def _finish(self, pixels: Pixels, before: int, decoded: "list[Future[Errors]]") -> list[Result]:
        errors = [error for future in decoded for error in future.result()]
        start = time.perf_counter()
        results = self._inference.classify(pixels, errors, before)
        seconds = max(1e-9, time.perf_counter() - start)
        wanted = min(LARGEST_BLOCK, BLOCK_S * len(pixels) / seconds)
        self._block_size = self._batch * max(1, int(wanted / self._batch))
        return results

    def _most_waiting(self) -> int:
        """Blocks in work: one a thread, one that is done, and two chunks for each worker."""
        return self._threads_and_one + ceil(2 * self._num_workers * CHUNK / self._block_size)
