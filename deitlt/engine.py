"""A bounded queue and worker threads around a classifier: one image in, one answer or error out.

The service and batch prediction both submit here, so both give the same answers. On a CPU each
worker decodes and runs one image at a time: batching does not pay there, and a slow image delays
nobody else. On a GPU the workers' calls share runs, see `deitlt.batching`. Callers may bring
another classifier than the engine's own: several models then share one queue and one set of
threads, and a model can be replaced while images of the old one are in work.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Condition
from types import TracebackType
from typing import TypeVar

from deitlt.classifier import Classifier
from deitlt.errors import DeadlineExceeded, EngineClosed, Overloaded, UsageError
from deitlt.prediction import Options, Prediction, Timing
from deitlt.preprocess import ImageLike

Answer = TypeVar("Answer")
# What a worker does: fills in the timing, gives the answer or raises.
Task = Callable[[Timing], Answer]


class Engine:
    """Worker threads that share one classifier; use it as a context manager, or `close` it.

    As a context manager it finishes what it has taken, but when left by an exception (Ctrl-C) only
    what is begun: the other futures are cancelled.
    """

    def __init__(
        self, classifier: Classifier, *, num_workers: int | None = None, queue_size: int = 64
    ) -> None:
        """Start the workers.

        Args:
            classifier: load it with `num_threads=1`, as the workers fill the cores.
            num_workers: images in work at once; the number of usable cores by default.
            queue_size: images that may wait beyond those in work.

        Raises:
            UsageError: fewer than one worker or a negative queue.
        """
        self.classifier = classifier
        self.num_workers = usable_cores() if num_workers is None else num_workers
        if self.num_workers < 1:
            raise UsageError(f"{self.num_workers} workers; at least 1 is needed")
        if queue_size < 0:
            raise UsageError(f"queue size {queue_size} is negative")
        self.capacity = self.num_workers + queue_size
        self._pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="deitlt-engine")
        self._room = Condition()  # guards the two below, so admitting and closing never interleave
        self._num_free = self.capacity
        self._closed = False

    def submit(
        self,
        image: ImageLike,
        options: Options = Options(),
        *,
        deadline: float | None = None,
        wait: bool = False,
    ) -> Future[Prediction]:
        """Queue one image.

        Args:
            image: whatever `Classifier.predict` takes.
            options: what the answer should hold.
            deadline: `time.monotonic()` past which the image is not worth starting on.
            wait: block until there is room, instead of refusing.

        Returns:
            A future that gives the prediction, or raises `ImageError` or `DeadlineExceeded`.

        Raises:
            Overloaded: the queue is full and `wait` is off.
            EngineClosed: `close` was called.
        """
        with self._room:
            if wait:
                self._room.wait_for(lambda: self._num_free > 0 or self._closed)
            task = self._classify(image, options, self.classifier)
            return self._admit([task], deadline, None)[0]

    def submit_all(
        self,
        images: Sequence[ImageLike],
        options: Options = Options(),
        *,
        deadline: float | None = None,
        classifier: Classifier | None = None,
        timings: Sequence[Timing] | None = None,
    ) -> list[Future[Prediction]]:
        """Queue all of these images or none; otherwise like `submit` without `wait`.

        Args:
            images: whatever `Classifier.predict` takes.
            options: what the answers should hold.
            deadline: `time.monotonic()` past which an image is not worth starting on.
            classifier: which to ask; the engine's own by default.
            timings: one for each image, filled in before its future is done.

        Raises:
            UsageError: more images than the engine ever holds.
            Overloaded: the queue has no room for all of them now.
            EngineClosed: `close` was called.
        """
        asked = classifier or self.classifier
        tasks = [self._classify(image, options, asked) for image in images]
        return self.submit_tasks(tasks, deadline=deadline, timings=timings)

    def submit_tasks(
        self,
        tasks: Sequence[Task[Answer]],
        *,
        deadline: float | None = None,
        timings: Sequence[Timing] | None = None,
    ) -> list[Future[Answer]]:
        """Queue work of another kind than classifying an image; each task takes one place.

        Raises:
            UsageError: more tasks than the engine ever holds.
            Overloaded: the queue has no room for all of them now.
            EngineClosed: `close` was called.
        """
        if len(tasks) > self.capacity:
            raise UsageError(f"{len(tasks)} images at once; at most {self.capacity} are taken")
        with self._room:
            return self._admit(tasks, deadline, timings)

    @property
    def num_waiting(self) -> int:
        """Images taken and not finished, beyond those that the workers can have in work."""
        return max(0, self.capacity - self._num_free - self.num_workers)

    def close(self, *, cancel_waiting: bool = False) -> None:
        """Take no more images, finish those taken, and end the workers.

        Args:
            cancel_waiting: finish only the images in work; cancel the futures of the others.
        """
        with self._room:
            self._closed = True
            self._room.notify_all()
        self._pool.shutdown(wait=True, cancel_futures=cancel_waiting)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(cancel_waiting=kind is not None)

    def _classify(
        self, image: ImageLike, options: Options, classifier: Classifier
    ) -> Task[Prediction]:
        return lambda timing: classifier.predict_one(image, options, timing)

    def _admit(
        self,
        tasks: Sequence[Task[Answer]],
        deadline: float | None,
        timings: Sequence[Timing] | None,
    ) -> list[Future[Answer]]:
        """Take a slot a task and submit them; the caller holds `_room`."""
        if self._closed:
            raise EngineClosed("the engine is shutting down")
        if len(tasks) > self._num_free:
            raise Overloaded(
                f"{len(tasks)} more would exceed the {self.capacity} images that may wait; "
                "try again later"
            )
        self._num_free -= len(tasks)
        futures = []
        now = time.monotonic()
        for task, timing in zip(tasks, timings or [Timing() for _ in tasks], strict=True):
            # The pool's queue holds a cancelled item until a worker comes to it; in a box of ours
            # its image can be let go of at once.
            box = [task]
            future = self._pool.submit(self._run, box, timing, now, deadline)
            future.add_done_callback(partial(self._on_done, box))
            futures.append(future)
        return futures

    def _run(
        self, box: list[Task[Answer]], timing: Timing, taken: float, deadline: float | None
    ) -> Answer:
        task = box.pop()
        try:
            now = time.monotonic()
            timing.wait_s = now - taken
            if deadline is not None and now > deadline:
                raise DeadlineExceeded("the image waited in the queue past its deadline")
            return task(timing)
        finally:  # before the answer can be seen: who has it may submit again at once
            self._free_slot()

    def _on_done(self, box: list[Task[Answer]], future: Future[Answer]) -> None:
        if future.cancelled():  # it never ran
            box.clear()
            self._free_slot()

    def _free_slot(self) -> None:
        with self._room:
            self._num_free += 1
            assert self._num_free <= self.capacity
            self._room.notify()


def usable_cores() -> int:
    """Cores this process may use (an affinity mask counts, a container's CPU quota does not)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
