"""Decoding on all cores: in worker processes that may die, or in threads.

Pixels come back through a pipe. That costs 44 us of processor time an image of 224 px, against 5 us
through shared memory and 55 us pickled (best of 5 runs, two cores of an AMD EPYC, Python 3.11); an
image of 500 x 375 px takes 3,000 us to decode and resize there. For a hundredth of that, a pipe
works on every system and leaves nothing behind, whoever is killed.

Legend: `B` images, `S` image side.
"""

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import IO, Any

from deitlt.batch.decode_worker import READY, Readable, decode_source
from deitlt.errors import DecodeFailed, ImageError, RuntimeUnavailable, UsageError
from deitlt.preprocess import Pixels, PreprocessSpec

Errors = list[ImageError | None]
# A worker has nothing to multiply: threads of NumPy's libraries would only cost it memory.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# Of a source by itself: what killed one worker may have killed an idle one too, the next one asked.
ALONE_TRIES = 2
# Of one worker, where something kills them as they start.
START_TRIES = 5


class DecodePool:
    """So many chunks of sources at once, each in a thread or in a process behind one.

    A process that dies (a crash in a codec, the system short of memory, kill -9) is replaced, and
    the sources it had are decoded once more, one at a time: who kills more of them gets an error.
    """

    def __init__(
        self, spec: PreprocessSpec, max_pixels: int, num_workers: int, *, processes: bool
    ) -> None:
        """Prepare the pool; processes are started when there is work for them."""
        self._spec, self._max_pixels, self._processes = spec, max_pixels, processes
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="deitlt-decode")
        self._idle: deque[_Worker] = deque()
        self._lock = Lock()  # guards the two below: no process starts unseen once closed
        self._workers: set[_Worker] = set()
        self._closed = False

    def submit(self, sources: Sequence[Readable], out: Pixels) -> "Future[Errors]":
        """Decode sources into `out`, `(B, S, S, 3)`.

        Returns:
            A future of an error for each source, None where its pixels are in `out`. It raises
            `UsageError` for sources that another process cannot have, and `RuntimeUnavailable`
            where no process can be started.
        """
        work = self._in_process if self._processes else self._here
        return self._threads.submit(work, sources, out)

    def close(self) -> None:
        """Drop what waits, end what is in work, and leave no process behind."""
        with self._lock:
            self._closed = True
            workers = list(self._workers)
        for worker in workers:
            worker.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def _here(self, sources: Sequence[Readable], out: Pixels) -> Errors:
        errors: Errors = []
        for i, source in enumerate(sources):
            if self._closed:
                raise _Died
            result = decode_source(source, self._spec, self._max_pixels)
            errors.append(result if isinstance(result, ImageError) else None)
            if not isinstance(result, ImageError):
                out[i] = result
        return errors

    def _in_process(self, sources: Sequence[Readable], out: Pixels) -> Errors:
        try:
            return self._ask(sources, out)
        except _Died:
            return [self._alone(source, out[i : i + 1]) for i, source in enumerate(sources)]

    def _alone(self, source: Readable, out: Pixels) -> ImageError | None:
        for _ in range(ALONE_TRIES):
            try:
                return self._ask([source], out)[0]
            except _Died:
                if self._closed:
                    raise
        return DecodeFailed("the process that decoded the image died of it")

    def _ask(self, sources: Sequence[Readable], out: Pixels) -> Errors:
        try:
            worker = self._idle.popleft()
        except IndexError:
            worker = self._start()
        try:
            errors = worker.decode(sources, out)
        except BaseException:
            with self._lock:
                self._workers.discard(worker)
            worker.kill()
            worker.close()
            raise
        self._idle.append(worker)
        return errors

    def _start(self) -> "_Worker":
        """A new worker; one that something kills before it is up is replaced."""
        for _ in range(START_TRIES):
            with self._lock:
                if self._closed:
                    raise _Died
                worker = _Worker()
                self._workers.add(worker)
            try:
                worker.greet(self._spec, self._max_pixels)
            except _Died:
                with self._lock:
                    self._workers.discard(worker)
                worker.kill()
                worker.close()
            else:
                return worker
        raise RuntimeUnavailable(_no_process(f"{START_TRIES} were killed before they were up"))


class _Died(Exception):
    """A worker process ended before it had answered."""


class _Worker:
    """A process of `decode_worker`. One thread at a time asks it; any may kill it."""

    def __init__(self) -> None:
        # Its modules come from where this process has them, and not (-P) from the folder it is in,
        # where a numpy.py may lie.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        command = [sys.executable, "-P", "-m", "deitlt.batch.decode_worker"]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | ONE_THREAD | {"PYTHONPATH": path},
                start_new_session=True,  # out of reach of the terminal's Ctrl-C
            )
        except (OSError, ValueError) as error:
            raise RuntimeUnavailable(_no_process(error)) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout

    def greet(self, spec: PreprocessSpec, max_pixels: int) -> None:
        """Wait until it is up, and say how images are prepared.

        Raises:
            RuntimeUnavailable: it ended of itself.
            _Died: it was killed.
        """
        if self._answers.read(len(READY)) != READY:
            status = self._process.wait()
            if status < 0:
                raise _Died
            raise RuntimeUnavailable(_no_process(f"it ended with status {status}"))
        self._send((spec, max_pixels))

    def decode(self, sources: Sequence[Readable], out: Pixels) -> Errors:
        """As `DecodePool.submit`; raises `_Died` if it ended over it."""
        self._send(list(sources))
        try:
            errors = pickle.load(self._answers)
        except (EOFError, OSError, pickle.UnpicklingError) as broken:
            raise _Died from broken
        if isinstance(errors, str):
            raise UsageError(_not_here(errors))
        for i, error in enumerate(errors):
            if error is None and not self._fill(out[i]):
                raise _Died
        return list(errors)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def close(self) -> None:
        """Wait for the end of one that was killed, and close its pipes."""
        self._process.wait()
        self._answers.close()
        with suppress(OSError):  # what it had not read yet cannot be flushed any more
            self._requests.close()

    def _send(self, message: Any) -> None:
        try:
            data = pickle.dumps(message, protocol=5)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise UsageError(_not_here(error)) from error
        try:
            self._requests.write(data)
            self._requests.flush()
        except OSError as error:
            raise _Died from error

    def _fill(self, out: Pixels) -> bool:
        view, filled = out.data.cast("B"), 0
        while filled < len(view):
            count = self._answers.readinto(view[filled:])  # type: ignore[attr-defined]
            if not count:
                return False
            filled += count
        return True


def _not_here(reason: object) -> str:
    return (
        f"these images cannot be given to another process ({reason}); "
        "define their class in a module, or use 0 workers"
    )


def _no_process(reason: object) -> str:
    return f"no process to decode images in ({reason}); use 0 workers to decode in this one"
