"""Whether memory stays flat, however many rows a run has."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from deitlt.batch.pipeline import predict_iter
from deitlt.batch.sources import Source
from deitlt.classifier import Classifier
from export.batch_benchmark.ways import descendants

MIB = 2**20
SAMPLES = 10
# What the last half of a run may need beyond the first, as a share: allocators are not exact.
ALLOWED = 0.05


@dataclass(frozen=True)
class Memory:
    """Resident memory of a run's processes together, as it went on.

    Attributes:
        rows: images finished at each sample.
        mib: memory then.
        seconds: of the whole run.
    """

    rows: list[int]
    mib: list[float]
    seconds: float

    @property
    def flat(self) -> bool:
        """Whether the second half never needed noticeably more than the first."""
        half = len(self.mib) // 2
        return max(self.mib[half:]) <= (1 + ALLOWED) * max(self.mib[:half])


def watch(classifier: Classifier, paths: Sequence[Path], num_rows: int, workers: int) -> Memory:
    """Classify the pictures over and over, `num_rows` in all, and keep nothing."""
    sources = (Source(path, path.name) for path in islice(cycle(paths), num_rows))
    step = max(1, num_rows // SAMPLES)
    rows, mib, start = list[int](), list[float](), time.perf_counter()
    with closing(predict_iter(classifier, sources, num_workers=workers)) as results:
        for number, _ in enumerate(results, start=1):
            if number % step == 0:
                rows.append(number)
                mib.append(_resident_mib())
    return Memory(rows, mib, time.perf_counter() - start)


def _resident_mib() -> float:
    total = 0
    for pid in ("self", *descendants()):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
    return total / MIB
