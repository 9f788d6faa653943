"""A bounded queue and worker threads around a classifier: one image in, one answer or error out.

The service and batch prediction both submit here, so both give the same answers. On a CPU each
worker decodes and runs one image at a time: batching does not pay there, and a slow image delays
nobody else.
"""

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore

from deitlt.classifier import Classifier, ImageLike, Options, Prediction
from deitlt.errors import DeadlineExceeded, EngineClosed, ImageError, Overloaded, UsageError


class Engine:
    """Worker threads that share one classifier; use it as a context manager, or `close` it."""

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
        self._slots = BoundedSemaphore(self.capacity)
        self._pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="deitlt-engine")
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
        if self._closed:
            raise EngineClosed("the engine is shutting down")
        if not self._slots.acquire(blocking=wait):
            raise Overloaded(f"{self.capacity} images are waiting already; try again later")
        try:
            future = self._pool.submit(self._run, image, options, deadline)
        except RuntimeError as error:  # closed between the check and here
            self._slots.release()
            raise EngineClosed("the engine is shutting down") from error
        future.add_done_callback(lambda _: self._slots.release())
        return future

    def close(self) -> None:
        """Take no more images, finish those taken, and end the workers."""
        self._closed = True
        self._pool.shutdown(wait=True)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, image: ImageLike, options: Options, deadline: float | None) -> Prediction:
        if deadline is not None and time.monotonic() > deadline:
            raise DeadlineExceeded("the image waited in the queue past its deadline")
        result = self.classifier.predict_each([image], options)[0]
        if isinstance(result, ImageError):
            raise result
        return result


def usable_cores() -> int:
    """Cores this process may use (an affinity mask counts, a container's CPU quota does not)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
