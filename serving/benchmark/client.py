"""A client that costs little beside the server: prebuilt bytes on kept connections, one thread.

A closed loop sends the next request when an answer has come. An open loop sends at times drawn
beforehand, however the server is doing, and counts from the drawn time: what a crowd sees.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import numpy as np

Result = TypeVar("Result")

# At the start of a line: Triton sends an Inference-Header-Content-Length too.
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
# Requests of an open loop that are under way at once; more than any server here queues.
MOST_OPEN = 2000
PATIENCE_S = 60.0
NO_ANSWER = 0


@dataclass(frozen=True, slots=True)
class Call:
    """One request: when it was due and answered (`time.perf_counter`), and the status."""

    start: float
    end: float
    status: int


@dataclass
class Calls:
    """What was sent in a window, and what it cost.

    Attributes:
        start: of the window, `time.perf_counter`.
        end: of the window.
        calls: all that were under way in it.
        client_cpu_s: the client's own processor time.
        server_cpu_s: the server's, of the whole window.
    """

    start: float
    end: float
    calls: list[Call] = field(default_factory=list)
    client_cpu_s: float = 0.0
    server_cpu_s: float = 0.0

    def images(self, *statuses: int) -> float:
        """Answers of these statuses (200 by default), each by the share of its time in here.

        Counting whole answers would count those at both ends by luck.
        """
        wanted = statuses or (200,)
        return sum(
            (min(c.end, self.end) - max(c.start, self.start)) / (c.end - c.start)
            for c in self.calls
            if c.status in wanted
        )

    def finished(self, *statuses: int) -> int:
        """Answers of these statuses (200 by default) that came within the window."""
        wanted = statuses or (200,)
        return sum(c.status in wanted and self.start <= c.end <= self.end for c in self.calls)

    def milliseconds(self, *statuses: int) -> list[float]:
        """Of every answer of these statuses (200 by default)."""
        wanted = statuses or (200,)
        return [1000 * (c.end - c.start) for c in self.calls if c.status in wanted]

    def statuses(self) -> dict[int, int]:
        """How many answers had which status; `NO_ANSWER` is none at all."""
        found = sorted({c.status for c in self.calls})
        return {status: sum(c.status == status for c in self.calls) for status in found}


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.open = False
        self._transport: Any = None
        self._buffer = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport, self.open = transport, True

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the event loop."""
        self.open = False
        self._give((NO_ANSWER, b"", b""))

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end])
        length = _LENGTH.search(head)
        if length is None:  # chunked answers are not read; no server here sends one
            self.close()
            return
        size = end + 4 + int(length[1])
        if len(self._buffer) >= size:
            body = bytes(self._buffer[end + 4 : size])
            del self._buffer[:size]
            self._give((int(head[9:12]), head, body))

    async def ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        """Status, head and body of the answer; `NO_ANSWER` if the connection ends or stalls."""
        if not self.open:
            return NO_ANSWER, b"", b""
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        timer = loop.call_later(PATIENCE_S, self.close)
        self._transport.write(request)
        try:
            return await self._answer
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the connection; who waits for an answer is told that there is none."""
        self._transport.abort()

    def _give(self, answer: tuple[int, bytes, bytes]) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)


async def connect(port: int) -> Connection:
    """A new connection to a server on this machine; a closed one if it takes none."""
    loop = asyncio.get_running_loop()
    try:
        _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
    except OSError:
        return Connection()
    return connection


def run(work: Callable[[], Awaitable[Result]]) -> Result:
    """Run asynchronous work on the fast event loop that the service has too."""
    import uvloop

    async def main() -> Result:
        return await work()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def ask_once(port: int, request: bytes) -> tuple[int, bytes, bytes]:
    """One answer on a connection of its own."""

    async def work() -> tuple[int, bytes, bytes]:
        connection = await connect(port)
        try:
            return await connection.ask(request)
        finally:
            if connection.open:
                connection.close()

    return run(work)


def closed_loop(
    port: int,
    requests: Sequence[bytes],
    *,
    concurrency: int,
    seconds: float,
    warm_up_s: float,
    server_cpu: Callable[[], float],
) -> Calls:
    """Keep so many requests under way.

    Args:
        port: of the server.
        requests: sent in turn.
        concurrency: connections.
        seconds: of the window.
        warm_up_s: before it, untimed.
        server_cpu: reads the server's processor time, seconds.
    """
    numbers = count()
    calls: list[Call] = []
    stop = False

    async def drive() -> None:
        connection = await connect(port)
        while not stop:
            start = time.perf_counter()
            status, _, _ = await connection.ask(requests[next(numbers) % len(requests)])
            calls.append(Call(start, time.perf_counter(), status))
            if not connection.open:
                await asyncio.sleep(0.01)  # a server that takes none must not be hammered
                connection = await connect(port)
        if connection.open:
            connection.close()

    async def work() -> Calls:
        nonlocal stop
        drivers = [asyncio.ensure_future(drive()) for _ in range(concurrency)]
        window = await _window(warm_up_s, seconds, server_cpu)
        stop = True
        await asyncio.gather(*drivers)  # what is under way counts by its share
        window.calls = _under_way(calls, window)
        return window

    return run(work)


def open_loop(
    port: int,
    requests: Sequence[bytes],
    *,
    rate: float,
    seconds: float,
    warm_up_s: float,
    server_cpu: Callable[[], float],
    seed: int = 0,
) -> Calls:
    """Send at Poisson times.

    Args:
        port: of the server.
        requests: sent in turn.
        rate: requests a second on average.
        seconds: of the window.
        warm_up_s: before it, untimed.
        server_cpu: reads the server's processor time, seconds.
        seed: of the times.
    """
    generator = np.random.default_rng(seed)
    total_s = warm_up_s + seconds
    gaps = generator.exponential(1 / rate, int(total_s * rate * 1.5) + 50)
    offsets = np.cumsum(gaps)
    calls: list[Call] = []
    free: list[Connection] = []

    async def send(due: float, request: bytes) -> None:
        # A server may have ended one that nobody used for some seconds.
        while free and not free[-1].open:
            free.pop()
        connection = free.pop() if free else await connect(port)
        status, _, _ = await connection.ask(request)
        calls.append(Call(due, time.perf_counter(), status))
        if connection.open:
            free.append(connection)

    async def drive(begin: float) -> None:
        under_way: set[asyncio.Future[None]] = set()
        for number, offset in enumerate(offsets[offsets < total_s]):
            due = begin + float(offset)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if len(under_way) < MOST_OPEN:
                task = asyncio.ensure_future(send(due, requests[number % len(requests)]))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            else:
                calls.append(Call(due, time.perf_counter(), NO_ANSWER))
        await asyncio.gather(*under_way)

    async def work() -> Calls:
        driver = asyncio.ensure_future(drive(time.perf_counter()))
        window = await _window(warm_up_s, seconds, server_cpu)
        await driver
        for connection in free:
            if connection.open:
                connection.close()
        window.calls = _under_way(calls, window)
        return window

    return run(work)


async def _window(warm_up_s: float, seconds: float, server_cpu: Callable[[], float]) -> Calls:
    """A window that begins after the warm-up; returns at its end, without its calls."""
    await asyncio.sleep(warm_up_s)
    start, own, server = time.perf_counter(), time.process_time(), server_cpu()
    await asyncio.sleep(seconds)
    end, own_end, server_end = time.perf_counter(), time.process_time(), server_cpu()
    return Calls(start, end, [], own_end - own, server_end - server)


def _under_way(calls: list[Call], window: Calls) -> list[Call]:
    return [call for call in calls if call.end > window.start and call.start < window.end]
