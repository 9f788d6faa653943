"""Ways take turns, each from a cold start to its steady pace, of which a stretch is timed."""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from statistics import median

from export.batch_benchmark.ways import Way, tree_cpu_s


@dataclass
class Pace:
    """How fast a way was, a figure a round.

    Attributes:
        images_per_s: by the clock.
        cpu_ms: processor time an image, of all processes and threads, ms.
    """

    images_per_s: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Images a second, the median over rounds."""
        return median(self.images_per_s)

    @property
    def cpu(self) -> float:
        """Processor time of an image, ms, the median over rounds."""
        return median(self.cpu_ms)

    def times(self, other: "Pace") -> float:
        """How many times as fast as another: the median over rounds."""
        pairs = zip(self.images_per_s, other.images_per_s, strict=True)
        return median(mine / its for mine, its in pairs)

    def cpu_times(self, other: "Pace") -> float | None:
        """The other's processor time by this one's: what `times` is on cores that do no more.

        None where a turn was too short for the system's clock of it.
        """
        if 0 in self.cpu_ms:
            return None
        pairs = zip(self.cpu_ms, other.cpu_ms, strict=True)
        return median(its / mine for mine, its in pairs)


def take_turns(
    ways: Mapping[str, Way], *, rounds: int, warm_up: int, images: int
) -> dict[str, Pace]:
    """Time ways in rounds; every other round goes through them backwards.

    Args:
        ways: what to time, by name.
        rounds: how often each has its turn.
        warm_up: images before the time starts: more than a way has in work at once.
        images: images that are timed.
    """
    paces = {name: Pace() for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            rate, cpu_ms = _stretch(ways[name], warm_up, images)
            paces[name].images_per_s.append(rate)
            paces[name].cpu_ms.append(cpu_ms)
    return paces


def _stretch(way: Way, warm_up: int, images: int) -> tuple[float, float]:
    with closing(way()) as running:  # type: ignore[type-var]  # each is a generator
        _advance(running, warm_up)
        start, cpu_start = time.perf_counter(), tree_cpu_s()
        done = _advance(running, images)
        cpu_s, seconds = tree_cpu_s() - cpu_start, time.perf_counter() - start
    return done / seconds, 1000 * cpu_s / done


def _advance(running: Iterator[int], images: int) -> int:
    done = 0
    while done < images:
        done += next(running)
    return done
