"""The run itself: servers up one by one, then turns, loads, a soak, and all of them down."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from deitlt.errors import DeitLTError
from serving.benchmark.bare import Bare, open_bare
from serving.benchmark.client import Calls, closed_loop
from serving.benchmark.conduct import Running, check_answers, look_at, start, start_again, stop
from serving.benchmark.loads import Load, Soak, soak, take_load
from serving.benchmark.servers import SERVERS, Setup
from serving.benchmark.windows import Series, Take, in_turns, take_round

PURE, TOGETHER = "pure", "together"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is done.

    Attributes:
        servers: keys of `SERVERS`.
        concurrency: requests under way in closed loops.
        rounds: windows of each server at each of them.
        seconds: of a window.
        warm_up_s: before each.
        max_steal: windows with more are dropped.
        shares: offered loads of the open loops, by capacity.
        load_rounds: windows of each.
        starts: cold starts of each server.
        idle_s: how long idling is watched.
        soak_minutes: of our server at `SOAK_SHARE`; 0 for none.
        busy: requests under way that keep every server busy, for what it can do.
    """

    servers: list[str]
    concurrency: tuple[int, ...]
    rounds: int
    seconds: float
    warm_up_s: float
    max_steal: float
    shares: tuple[float, ...]
    load_rounds: int
    starts: int
    idle_s: float
    soak_minutes: float
    busy: int


# Of what the server can do.
SOAK_SHARE = 0.7


@dataclass
class Findings:
    """What was found.

    Attributes:
        bare: how bare calls were made, for people.
        pure: the label of the runtime's row.
        together: the label of the row of bare calls with several images.
        servers: that were measured, by key.
        skipped: labels of the others, and why.
        series: by concurrency and key; `pure` is one more.
        loads: by key and share.
        soak: if there was one.
    """

    bare: str = ""
    pure: str = ""
    together: str = ""
    servers: dict[str, Running] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    series: dict[int, dict[str, Series]] = field(default_factory=dict)
    loads: dict[str, dict[float, list[Load]]] = field(default_factory=dict)
    soak: Soak | None = None

    def labels(self) -> dict[str, str]:
        """Rows for people."""
        servers = {key: running.server.label for key, running in self.servers.items()}
        return {PURE: self.pure, TOGETHER: self.together, **servers}


def measure(plan: Plan, setup: Setup, images: list[bytes], found: Findings) -> None:
    """All of it, noted in `found` as it comes; however this is left, no server is left behind.

    Raises:
        DeitLTError: the bundle, the device or an image cannot be used.
    """
    bare = open_bare(setup, images)
    found.bare, found.pure, found.together = bare.setting, bare.pure_label, bare.together_label
    try:
        _start_all(plan, setup, images, bare, found)
        for concurrency in plan.concurrency:
            _closed(plan, concurrency, bare, found)
        for key in found.servers:
            _open(plan, key, found)
        if plan.soak_minutes and "ours" in found.servers:
            ours = found.servers["ours"]
            say(f"soak for {plan.soak_minutes:g} minutes")
            with alone(ours):
                found.soak = soak(
                    ours.tree, ours.port, ours.requests, SOAK_SHARE, plan.soak_minutes,
                    plan.warm_up_s, plan.busy,
                )  # fmt: skip
    finally:
        for running in found.servers.values():
            stop(running)
    for running in found.servers.values():
        for _ in range(plan.starts - 1):
            say(f"start of {running.server.label}")
            start_again(running, setup)


def _start_all(plan: Plan, setup: Setup, images: list[bytes], bare: Bare, found: Findings) -> None:
    """Start one server after the other, look at it alone, and stop it where it is."""
    expected = bare.answers()
    for key in plan.servers:
        server = SERVERS[key]
        why = server.missing(setup)
        if why is None:
            say(f"start of {server.label}")
            running = None
            try:
                running = start(server, setup, images)
                check_answers(running, expected)
                look_at(running, plan.idle_s)
            except DeitLTError as error:
                why = str(error)
                if running is not None:
                    running.tree.stop()
            except BaseException:
                if running is not None:
                    running.tree.stop()
                raise
        if why is None:
            assert running is not None
            running.tree.pause()
            found.servers[key] = running
        else:
            found.skipped[server.label] = why
            say(f"{server.label} is skipped: {why}")


def _closed(plan: Plan, concurrency: int, bare: Bare, found: Findings) -> None:
    takes: dict[str, Take] = {PURE: bare.pure}
    if bare.together > 1:
        takes[TOGETHER] = bare.classify_together
    takes |= {key: partial(_ask, running) for key, running in found.servers.items()}
    series = found.series[concurrency] = {key: Series() for key in takes}
    for number, key in enumerate(in_turns(list(takes), plan.rounds)):
        say(f"{concurrency} under way, round {number // len(takes) + 1}, {key}")
        taken = take_round(bare.classify, takes[key], concurrency, plan.seconds, plan.warm_up_s)
        series[key].add(taken, plan.max_steal)


def _ask(running: Running, concurrency: int, seconds: float, warm_up_s: float) -> Calls:
    with alone(running):
        return closed_loop(
            running.port, running.requests, concurrency=concurrency, seconds=seconds,
            warm_up_s=warm_up_s, server_cpu=running.tree.cpu_s,
        )  # fmt: skip


def _open(plan: Plan, key: str, found: Findings) -> None:
    running = found.servers[key]
    with alone(running):
        for _ in range(plan.load_rounds):
            for share in plan.shares:
                say(f"{running.server.label}, {share:g} times capacity")
                window = take_load(
                    running.tree, running.port, running.requests, share, plan.seconds,
                    plan.warm_up_s, plan.busy,
                )  # fmt: skip
                found.loads.setdefault(key, {}).setdefault(share, []).append(window)


@contextmanager
def alone(running: Running) -> Iterator[None]:
    """Let one server run; all others stand still."""
    running.tree.resume()
    try:
        yield
    finally:
        running.tree.pause()


def say(what: str) -> None:
    """Say what is going on; on stderr, so that the tables can be kept by themselves."""
    print(f"measuring: {what}", file=sys.stderr, flush=True)
