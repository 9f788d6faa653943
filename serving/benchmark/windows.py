"""Windows that take turns, and the ratios taken from them.

A window of a server stands between two of the baseline, half as long each: whatever slows the
machine down slows both. Every other round goes through the servers backwards. A window in which
the hypervisor gave too much of the processor to others is dropped, and counted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any, NamedTuple

import numpy as np

from deitlt.measuring import Steal
from serving.benchmark.client import Calls

# Windows of a server at so many requests under way, for so many seconds after a warm-up.
Take = Callable[[int, float, float], Calls]


class Spread(NamedTuple):
    """A median with the smallest and the largest of so many rounds."""

    median: float
    low: float
    high: float
    num: int

    @classmethod
    def of(cls, values: list[float]) -> "Spread | None":
        """None of nothing."""
        return cls(median(values), min(values), max(values), len(values)) if values else None

    def overlaps(self, other: "Spread") -> bool:
        """Whether a value could belong to both."""
        return self.low <= other.high and other.low <= self.high

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}-{self.high:.3f}] n={self.num}"


@dataclass(frozen=True)
class Round:
    """A server's window between two of the baseline.

    Attributes:
        before: of the baseline.
        target: of the server.
        after: of the baseline.
        steal: the largest share of the three; None where the system does not say.
    """

    before: Calls
    target: Calls
    after: Calls
    steal: float | None

    @property
    def wall_ratio(self) -> float:
        """Images a second by those of the baseline."""
        return _rate(self.target) / mean(map(_rate, (self.before, self.after)))

    @property
    def cpu_ratio(self) -> float:
        """Processor time of an image in the baseline by that in the server."""
        own = self.target.server_cpu_s
        bare = self.before.server_cpu_s + self.after.server_cpu_s
        images = self.before.images() + self.after.images()
        return bare / images * self.target.images() / own if own else 0.0

    @property
    def overhead_ms(self) -> float:
        """Median answer less the baseline's median."""
        bare = self.before.milliseconds() + self.after.milliseconds()
        return median(self.target.milliseconds()) - median(bare)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "wall_ratio": self.wall_ratio,
            "cpu_ratio": self.cpu_ratio,
            "overhead_ms": self.overhead_ms,
            "steal": self.steal,
            "images": self.target.images(),
            "seconds": self.target.end - self.target.start,
            "bare": [
                {"images": calls.images(), "seconds": calls.end - calls.start}
                for calls in (self.before, self.after)
            ],
            "server_cpu_s": self.target.server_cpu_s,
            "client_cpu_s": self.target.client_cpu_s,
            "statuses": self.target.statuses(),
            "latency_ms": percentiles(self.target.milliseconds()),
            "bare_latency_ms": percentiles(self.before.milliseconds() + self.after.milliseconds()),
        }


@dataclass
class Series:
    """All rounds of a server at one concurrency.

    Attributes:
        kept: rounds that count.
        dropped: those with too much steal.
        failed: why rounds could not be used, if any.
    """

    kept: list[Round] = field(default_factory=list)
    dropped: list[Round] = field(default_factory=list)
    failed: int = 0

    def add(self, taken: Round, max_steal: float) -> None:
        """Keep a round, or drop it for its steal or for having no answer to measure."""
        if not taken.target.images() or not taken.before.images() or not taken.after.images():
            self.failed += 1
        elif taken.steal is not None and taken.steal > max_steal:
            self.dropped.append(taken)
        else:
            self.kept.append(taken)

    @property
    def wall(self) -> Spread | None:
        """Of the wall ratios."""
        return Spread.of([taken.wall_ratio for taken in self.kept])

    @property
    def cpu(self) -> Spread | None:
        """Of the ratios of processor time."""
        return Spread.of([taken.cpu_ratio for taken in self.kept])

    @property
    def overhead_ms(self) -> Spread | None:
        """Of the medians' differences."""
        return Spread.of([taken.overhead_ms for taken in self.kept])

    def latency_ms(self, share: float) -> float | None:
        """A percentile over all answers that count."""
        times = [ms for taken in self.kept for ms in taken.target.milliseconds()]
        return float(np.percentile(times, 100 * share)) if times else None

    @property
    def client_ms(self) -> float | None:
        """The client's own processor time of an answer."""
        images = sum(taken.target.finished() for taken in self.kept)
        spent = sum(taken.target.client_cpu_s for taken in self.kept)
        return 1000 * spent / images if images else None

    @property
    def num_failed(self) -> int:
        """Answers other than 200."""
        return sum(
            number
            for taken in (*self.kept, *self.dropped)
            for status, number in taken.target.statuses().items()
            if status != 200
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "wall_ratio": _fields(self.wall),
            "cpu_ratio": _fields(self.cpu),
            "overhead_ms": _fields(self.overhead_ms),
            "client_cpu_ms": self.client_ms,
            "rounds": [taken.to_dict() for taken in self.kept],
            "dropped": [taken.to_dict() for taken in self.dropped],
            "without_answers": self.failed,
        }


def take_round(
    bare: Take, target: Take, concurrency: int, seconds: float, warm_up_s: float
) -> Round:
    """Baseline, server, baseline."""
    steals: list[float] = []

    def window(take: Take, share: float) -> Calls:
        steal = Steal()
        calls = take(concurrency, share * seconds, warm_up_s)
        if (stolen := steal.share()) is not None:
            steals.append(stolen)
        return calls

    before, between, after = window(bare, 0.5), window(target, 1.0), window(bare, 0.5)
    return Round(before, between, after, max(steals) if steals else None)


def in_turns(keys: list[str], rounds: int) -> Iterator[str]:
    """Keys, round by round, every other round backwards."""
    for number in range(rounds):
        yield from keys[:: -1 if number % 2 else 1]


def percentiles(times_ms: list[float]) -> dict[str, float]:
    """Median and 99th percentile; empty of nothing."""
    if not times_ms:
        return {}
    return {
        name: float(np.percentile(times_ms, share)) for name, share in (("p50", 50), ("p99", 99))
    }


def _rate(calls: Calls) -> float:
    return calls.images() / (calls.end - calls.start)


def _fields(spread: Spread | None) -> dict[str, float] | None:
    return spread._asdict() if spread else None
