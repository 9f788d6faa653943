"""SIGTERM and Ctrl-C end a run between two steps, with a resume point; nothing is lost."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from types import FrameType

import torch

from training.engine.distributed import World

# torchrun passes Ctrl-C on to processes that the terminal has told of it already; within this time,
# s, a second one is no sign of impatience.
ECHO_S = 0.5

# Processes agree about so often, s, whether to stop: torchrun and Slurm wait 30 s for the resume
# point before they kill, whatever a step takes.
AGREE_S = 5.0


class Stopped(Exception):
    """A run ended early because it was asked to; its resume point is written.

    Attributes:
        signal_number: what asked.
    """

    def __init__(self, signal_number: int, where: str) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} {where}; continue with --resume")
        self.signal_number = signal_number


class StopRequest:
    """Whether the run was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._asked = 0.0

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def _ask(self, signal_number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal_number is None:
            self._asked = now
        elif signal_number == signal.SIGINT and now - self._asked >= ECHO_S:
            raise KeyboardInterrupt  # asked twice: do not wait for the step
        self.signal_number = signal_number


class Pace:
    """The steps after which all processes meet, the same ones in each, about `AGREE_S` apart.

    From one meeting to the next they are as many as, in the mean of all processes, take that long;
    from one on they at most double. For one process alone every step is due.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._steps = self._left = 1
        self._since = time.monotonic()

    def due(self) -> bool:
        """Whether to meet after this step; to be asked after each."""
        if self._world.size == 1:
            return True
        self._left -= 1
        if self._left:
            return False
        # Before the meeting, where the host waits for a GPU: that time is of the next steps.
        now = time.monotonic()
        elapsed = torch.tensor(now - self._since, device=self._world.device)
        took = float(self._world.total(elapsed)) / self._world.size
        self._since = now
        fit = int(self._steps * AGREE_S / took) if took else 2 * self._steps
        self._steps = self._left = min(max(1, fit), 2 * self._steps)
        return True


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Listen to SIGTERM and Ctrl-C for the time of the block; the main thread only."""
    request = StopRequest()
    former = {s: signal.signal(s, request._ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for signal_number, handler in former.items():
            signal.signal(signal_number, handler)


def outlive_requests(_: int) -> None:
    """What a worker process begins with: it ends when the training process ends it.

    torchrun, Slurm and terminals signal all processes of a run, and the step that is still to be
    finished needs the workers; that one of them is gone would be an error in the middle of it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
