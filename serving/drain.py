"""How a worker ends: from SIGTERM on it is not ready, refuses new work and finishes the old.

On SIGTERM uvicorn closes its listening socket at once, but BentoML's supervisor holds the same
socket open until the worker is gone: whoever connects in between would wait for an answer that
nobody gives. So the signal comes here first. uvicorn hears of it once nothing is in work, and until
then new requests are answered, with 503.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger("deitlt.serving")

# Answers that nobody reads are given up so many seconds after the last deadline.
SPARE_S = 5.0
POLL_S = 0.05
PARENT_POLL_S = 1.0


class Drain:
    """Whether the worker is ending, and what keeps it from that."""

    def __init__(self) -> None:
        self.begun = False
        self._num_in_work = 0
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around a request: the worker does not end before it is answered."""
        self._num_in_work += 1
        try:
            yield
        finally:
            self._num_in_work -= 1

    def watch(self, drain_s: float, timeout_s: float) -> None:
        """Take SIGTERM from uvicorn and look after the supervisor, while the event loop runs.

        Only in the main thread of a process, where signals arrive; a test that runs the service on
        another thread ends it in its own way.

        Args:
            drain_s: seconds for which new requests are refused, at least; load balancers learn in
                them that the worker is not ready.
            timeout_s: the longest that a request takes.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        uvicorn_handler = signal.getsignal(signal.SIGTERM)

        def on_sigterm(number: int, frame: FrameType | None) -> None:
            self.begun = True
            loop.call_soon_threadsafe(self._wake.set)

        async def end() -> None:
            await self._wake.wait()
            await asyncio.sleep(drain_s)
            await self._until_idle(timeout_s)
            if callable(uvicorn_handler):
                uvicorn_handler(signal.SIGTERM, None)
                await asyncio.sleep(SPARE_S)  # rarely to its end: the loop stops before
                uvicorn_handler(signal.SIGINT, None)  # a second signal: wait for no connection

        signal.signal(signal.SIGTERM, on_sigterm)
        self._tasks = [asyncio.create_task(end()), asyncio.create_task(_end_with_parent())]

    async def _until_idle(self, timeout_s: float) -> None:
        end = asyncio.get_running_loop().time() + timeout_s
        while self._num_in_work and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(POLL_S)


async def _end_with_parent() -> None:
    """Send ourselves SIGTERM when the supervisor is gone.

    A killed supervisor cannot stop its workers. They would go on serving, with nobody to start them
    again, and keep the port from the next supervisor.
    """
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(PARENT_POLL_S)
    logger.error("the supervisor, process %d, is gone; ending", parent)
    os.kill(os.getpid(), signal.SIGTERM)
