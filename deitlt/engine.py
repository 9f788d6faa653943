"""A bounded queue and worker threads around a classifier: one image in, one answer or error out.

On a CPU each worker decodes a few of the images that wait and runs them in one call of the model;
threads that do both hand nothing to each other. No image waits for others to come, and no worker
takes more than its share. On a GPU the workers' calls share runs, see `deitlt.batching`.

Callers may bring another classifier than the engine's own: several models then share one queue and
one set of threads, and a model can be replaced while images of the old one are in work.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import ceil
from threading import Condition
from types import TracebackType
from typing import Any, TypeVar

from deitlt.classifier import Classifier
from deitlt.cores import usable_cores
from deitlt.errors import DeadlineExceeded, EngineClosed, Overloaded, UsageError
from deitlt.prediction import Options, Prediction, Timing
from deitlt.preprocess import ImageLike

Answer = TypeVar("Answer")
# What a worker does: fills in the timing, gives the answer or raises.
Task = Callable[[Timing], Answer]


@dataclass(frozen=True, slots=True, eq=False)
class Classify:
    """The task of classifying an image."""

    image: ImageLike
    options: Options
    classifier: Classifier

    def __call__(self, timing: Timing) -> Prediction:
        """The answer; raises what `Classifier.predict_one` does."""
        return self.classifier.predict_one(self.image, self.options, timing)


@dataclass(slots=True, eq=False)
class _Item:
    """A task that was taken; it is let go of once it is done or cancelled, the future may stay."""

    task: Task[Any] | None
    future: Future[Any]
    timing: Timing
    taken: float
    deadline: float | None


class Engine:
    """Worker threads around one classifier or several; a context manager, or `close` it.

    As a context manager it finishes what it has taken, but when left by an exception (Ctrl-C) only
    what is begun: the other futures are cancelled.
    """

    def __init__(
        self,
        classifier: Classifier | None,
        *,
        num_workers: int | None = None,
        queue_size: int = 64,
        max_batch: int | Callable[[Classifier], int] = 1,
    ) -> None:
        """Start the workers.

        Args:
            classifier: load it with `num_threads=1`, as the workers fill the cores; None where
                whoever submits brings one each time.
            num_workers: calls of the model at once; the number of usable cores by default.
            queue_size: images that may wait beyond one for each worker.
            max_batch: most images that a worker takes at once, of any classifier or of the one
                that is given, see `batching.core_batch_size`.

        Raises:
            UsageError: fewer than one worker, a negative queue, or batches of no image.
        """
        self.classifier = classifier
        self.num_workers = usable_cores() if num_workers is None else num_workers
        if self.num_workers < 1:
            raise UsageError(f"{self.num_workers} workers; at least 1 is needed")
        if queue_size < 0:
            raise UsageError(f"queue size {queue_size} is negative")
        if isinstance(max_batch, int) and max_batch < 1:
            raise UsageError(f"batches of {max_batch} images; at least 1 is needed")
        self.capacity = self.num_workers + queue_size
        self._max_batch = max_batch
        self._pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="deitlt-engine")
        self._room = Condition()  # guards the three below: admitting and closing never interleave
        self._waiting: deque[_Item] = deque()
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
            UsageError: the engine has no classifier of its own.
            Overloaded: the queue is full and `wait` is off.
            EngineClosed: `close` was called.
        """
        with self._room:
            if wait:
                self._room.wait_for(lambda: self._num_free > 0 or self._closed)
            task = Classify(image, options, self._asked(None))
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
            UsageError: more images than the engine ever holds, or no classifier.
            Overloaded: the queue has no room for all of them now.
            EngineClosed: `close` was called.
        """
        asked = self._asked(classifier)
        tasks = [Classify(image, options, asked) for image in images]
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

    def refuse_if_full(self) -> None:
        """Refuse what cannot be taken now anyway, before there is any work on it.

        Raises:
            Overloaded: there is no room for a single image.
            EngineClosed: `close` was called.
        """
        with self._room:
            self._check_room(1)

    @property
    def num_waiting(self) -> int:
        """Images taken that no worker has come to."""
        return len(self._waiting)

    def close(self, *, cancel_waiting: bool = False) -> None:
        """Take no more images, finish those taken, and end the workers.

        Args:
            cancel_waiting: finish only the images in work; cancel the futures of the others.
        """
        with self._room:
            self._closed = True
            self._room.notify_all()
            given_up = list(self._waiting) if cancel_waiting else []
            if cancel_waiting:
                self._waiting.clear()
        for item in given_up:
            item.future.cancel()
        self._pool.shutdown(wait=True)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(cancel_waiting=kind is not None)

    def _asked(self, classifier: Classifier | None) -> Classifier:
        asked = classifier or self.classifier
        if asked is None:
            raise UsageError("this engine has no classifier of its own; name one")
        return asked

    def _admit(
        self,
        tasks: Sequence[Task[Answer]],
        deadline: float | None,
        timings: Sequence[Timing] | None,
    ) -> list[Future[Answer]]:
        """Take a slot a task and submit them; the caller holds `_room`."""
        self._check_room(len(tasks))
        self._num_free -= len(tasks)
        items = [
            _Item(task, Future(), timing, time.monotonic(), deadline)
            for task, timing in zip(tasks, timings or [Timing() for _ in tasks], strict=True)
        ]
        for item in items:
            item.future.add_done_callback(partial(self._on_done, item))
            self._waiting.append(item)
            self._pool.submit(self._work)
        return [item.future for item in items]

    def _check_room(self, number: int) -> None:
        if self._closed:
            raise EngineClosed("the engine is shutting down")
        if number > self._num_free:
            raise Overloaded(
                f"{number} more would exceed the {self.capacity} images that may wait; "
                "try again later"
            )

    def _work(self) -> None:
        """Do what waits first, together with more of its kind; nothing, if others were faster."""
        # A task goes at any moment, where who waits for it cancels.
        work = [(item, task) for item in self._take() if (task := item.task) or self._begin(item)]
        for (item, _), outcome in zip(work, self._outcomes(work), strict=True):
            if item.future.running():  # neither cancelled nor late
                self._finish(item, outcome)

    def _begin(self, item: _Item) -> bool:
        """Whether anyone still waits for an item whose turn has come."""
        if not item.future.set_running_or_notify_cancel():
            return False
        now = time.monotonic()
        item.timing.wait_s = now - item.taken
        if item.deadline is None or now <= item.deadline:
            return True
        self._finish(item, DeadlineExceeded("the image waited in the queue past its deadline"))
        return False

    def _outcomes(self, work: Sequence[tuple[_Item, Any]]) -> list[Any]:
        """What each item's task gives or raises; several are of one classifier."""
        try:
            if len(work) > 1:
                return [
                    *work[0][1].classifier.predict_together(
                        [task.image for _, task in work],
                        [task.options for _, task in work],
                        [item.timing for item, _ in work],
                        lambda number: self._begin(work[number][0]),
                    )
                ]
            return [task(item.timing) if self._begin(item) else None for item, task in work]
        except BaseException as error:  # whatever it is, who waits has to have it
            for item, _ in work:
                if not (item.future.running() or item.future.done()):
                    self._begin(item)
            return [error] * len(work)

    def _take(self) -> list[_Item]:
        """What one call of the model can do at once, and no more than this worker's share of it."""
        with self._room:
            if not self._waiting:
                return []
            taken = [self._waiting.popleft()]
            share = ceil((1 + len(self._waiting)) / self.num_workers)
            share = min(self._most_together(taken[0].task), share)
            while (
                self._waiting
                and len(taken) < share
                and _alike(taken[0].task, self._waiting[0].task)
            ):
                taken.append(self._waiting.popleft())
        return taken

    def _most_together(self, task: Task[Any] | None) -> int:
        if isinstance(self._max_batch, int):
            return self._max_batch
        return self._max_batch(task.classifier) if isinstance(task, Classify) else 1

    def _finish(self, item: _Item, outcome: Any) -> None:
        item.task = None
        self._free_slot()  # before the answer can be seen: who has it may submit again at once
        if isinstance(outcome, BaseException):
            item.future.set_exception(outcome)
        else:
            item.future.set_result(outcome)

    def _on_done(self, item: _Item, future: Future[Any]) -> None:
        if not future.cancelled():
            return
        item.task = None  # its image is let go of at once
        with self._room, suppress(ValueError):  # a worker has it, and will see
            self._waiting.remove(item)
            future.set_running_or_notify_cancel()  # who waits for several learns it so
        self._free_slot()

    def _free_slot(self) -> None:
        with self._room:
            self._num_free += 1
            assert self._num_free <= self.capacity
            self._room.notify()


def _alike(one: Task[Any] | None, other: Task[Any] | None) -> bool:
    """Whether two tasks are for the same classifier, which can do them together."""
    return (
        isinstance(one, Classify)
        and isinstance(other, Classify)
        and one.classifier is other.classifier
    )
