"""Servers under a crowd: open loops below, at and far above what they can do, and for long.

A load's window stands between two closed loops, which say what the server can do just then.
"""

from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

from deitlt.measuring import Steal
from serving.benchmark.client import Calls, closed_loop, open_loop
from serving.benchmark.trees import Tree
from serving.benchmark.windows import Spread, percentiles

REFUSED = (429, 503)
SAMPLES = 60


@dataclass(frozen=True)
class Load:
    """One window of an open loop.

    Attributes:
        share: requests a second by what the server can do.
        before: closed loop.
        crowd: the open loop.
        after: closed loop.
        steal: the largest share of the three.
    """

    share: float
    before: Calls
    crowd: Calls
    after: Calls
    steal: float | None

    @property
    def goodput(self) -> float:
        """Answers a second by what the closed loops on both sides get.

        Whole answers: while a queue fills, the time that they take says nothing of the rate.
        """
        peak = mean(_rate(calls) for calls in (self.before, self.after))
        rate = self.crowd.finished() / (self.crowd.end - self.crowd.start)
        return rate / peak if peak else 0.0

    @property
    def refused(self) -> float:
        """Share of the answers that refuse."""
        return self.crowd.finished(*REFUSED) / max(1, sum(self.crowd.statuses().values()))

    @property
    def num_failed(self) -> int:
        """Answers that neither are right nor refuse."""
        statuses = self.crowd.statuses().items()
        return sum(number for status, number in statuses if status not in (200, *REFUSED))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "share": self.share,
            "goodput": self.goodput,
            "refused": self.refused,
            "statuses": self.crowd.statuses(),
            "latency_ms": percentiles(self.crowd.milliseconds()),
            "refusal_ms": percentiles(self.crowd.milliseconds(*REFUSED)),
            "steal": self.steal,
        }


def take_load(
    tree: Tree, port: int, requests: list[bytes], share: float, seconds: float, warm_up_s: float,
    busy: int,
) -> Load:  # fmt: skip
    """One window at a share of what the server can do with `busy` requests under way."""

    def peak() -> Calls:
        return closed_loop(
            port, requests, concurrency=busy, seconds=seconds / 2, warm_up_s=warm_up_s,
            server_cpu=tree.cpu_s,
        )  # fmt: skip

    steal = Steal()
    before = peak()
    crowd = open_loop(
        port, requests, rate=max(1.0, share * _rate(before)), seconds=seconds,
        warm_up_s=warm_up_s, server_cpu=tree.cpu_s,
    )  # fmt: skip
    return Load(share, before, crowd, peak(), steal.share())


@dataclass(frozen=True)
class Soak:
    """A long open loop.

    Attributes:
        minutes: how long.
        crowds: its parts, one after the other.
        memory_mib: resident and proportional memory after each part.
    """

    minutes: float
    crowds: list[Calls]
    memory_mib: list[tuple[float, float]]

    @property
    def statuses(self) -> dict[int, int]:
        """How many answers had which status."""
        found: dict[int, int] = {}
        for calls in self.crowds:
            for status, number in calls.statuses().items():
                found[status] = found.get(status, 0) + number
        return found

    @property
    def slope_mib_per_hour(self) -> float:
        """Of resident memory, by least squares over the second half.

        Proportional memory also falls and rises with other programs that share a library.
        """
        half = self.memory_mib[len(self.memory_mib) // 2 :]
        hours = np.arange(len(half)) * self.minutes / 60 / len(self.memory_mib)
        if len(half) < 2:
            return 0.0
        return float(np.polyfit(hours, [rss for rss, _ in half], 1)[0])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "minutes": self.minutes,
            "statuses": self.statuses,
            "memory_mib": self.memory_mib,
            "slope_mib_per_hour": self.slope_mib_per_hour,
            "latency_ms": percentiles([ms for c in self.crowds for ms in c.milliseconds()]),
        }


def soak(
    tree: Tree, port: int, requests: list[bytes], share: float, minutes: float, warm_up_s: float,
    busy: int,
) -> Soak:  # fmt: skip
    """Load a server for minutes and look at its memory meanwhile."""
    peak = closed_loop(
        port, requests, concurrency=busy, seconds=max(1.0, min(6.0, 6 * minutes)),
        warm_up_s=warm_up_s, server_cpu=tree.cpu_s,
    )  # fmt: skip
    crowds, memory = [], []
    for number in range(SAMPLES):
        crowds.append(
            open_loop(
                port, requests, rate=max(1.0, share * _rate(peak)), seconds=60 * minutes / SAMPLES,
                warm_up_s=0.0, server_cpu=tree.cpu_s, seed=number,
            )
        )  # fmt: skip
        memory.append(tree.memory_mib())
    return Soak(minutes, crowds, memory)


def spread_of_goodput(loads: list[Load], max_steal: float) -> Spread | None:
    """Over the windows that count."""
    return Spread.of([load.goodput for load in undisturbed(loads, max_steal)])


def undisturbed(loads: list[Load], max_steal: float) -> list[Load]:
    """Windows without too much steal."""
    return [load for load in loads if load.steal is None or load.steal <= max_steal]


def _rate(calls: Calls) -> float:
    return calls.images() / (calls.end - calls.start)
