"""What was found: figures of each row in JSON types, from which table and file are both written."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from export.benchmark.fresh import BundleLoad, Fresh
from export.benchmark.measure import Timing, Yardstick
from export.benchmark.rows import BASELINE, ROWS
from export.benchmark.students import Rightness

MB = 10**6


@dataclass
class RowResult:
    """One row of one student.

    Attributes:
        key: of `rows.ROWS`.
        file_bytes: size of what it opens.
        note: on the file.
        fresh: load time and memory.
        rightness: its answers.
        timings: by batch size.
    """

    key: str
    file_bytes: int
    note: str
    fresh: Fresh
    rightness: Rightness
    timings: dict[int, Timing] = field(default_factory=dict)


@dataclass
class StudentResult:
    """All rows of one student.

    Attributes:
        name: of the student, for people.
        size: tiny, small, base or other.
        images: what accuracy is on, for people.
        plain_flops: operations of an image through the model as trained.
        flops: through ours, the floor of every row.
        yardstick: the matrix product.
        products: its times, by batch size of the rows it took turns with.
        rows: those that ran.
        skipped: why others did not, by label.
        bundle: load of a bundle; None if it was not measured.
        operators: where time goes, by row and operator, shares of all; empty without --profile.
    """

    name: str
    size: str
    images: str
    plain_flops: int
    flops: int
    yardstick: Yardstick
    products: dict[int, Timing] = field(default_factory=dict)
    rows: list[RowResult] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    bundle: BundleLoad | None = None
    operators: dict[str, dict[str, float]] = field(default_factory=dict)

    def row(self, key: str) -> RowResult | None:
        """The row of this key, if it ran."""
        return next((row for row in self.rows if row.key == key), None)

    def ratio(self, key: str, other: str, batch_size: int) -> float | None:
        """How many times as fast one row is as another; None where one was not measured."""
        ours, theirs = self.row(key), self.row(other)
        if ours is None or theirs is None or batch_size not in ours.timings:
            return None
        return ours.timings[batch_size].times_as_fast_as(theirs.timings[batch_size])

    def _cpu_ratio(self, row: RowResult, batch_size: int) -> float | None:
        plain = self.row(BASELINE)
        return row.timings[batch_size].cpu_ratio(plain.timings[batch_size]) if plain else None

    def share_of_floor(self, row: RowResult, batch_size: int) -> float:
        """Least time that the work can take, by the row's time."""
        product, timing = self.products[batch_size], row.timings[batch_size]
        return self.yardstick.share_of_floor(product, timing, self.flops)

    def to_dict(self) -> dict[str, Any]:
        """Every figure of the table and the times behind it, in JSON types."""
        return {
            "student": self.name,
            "size": self.size,
            "images": self.images,
            "plain_gflop": self.plain_flops / 1e9,
            "gflop": self.flops / 1e9,
            "yardstick": {
                "name": self.yardstick.name,
                "tflop_per_s": {
                    str(size): self.yardstick.flops / min(product.calls_ms) / 1e9
                    for size, product in self.products.items()
                },
                "rounds_ms": {str(s): product.rounds_ms for s, product in self.products.items()},
            },
            "rows": [self._row_dict(row) for row in self.rows],
            "skipped": self.skipped,
            "bundle": asdict(self.bundle) if self.bundle else None,
            "operators": self.operators,
        }

    def _row_dict(self, row: RowResult) -> dict[str, Any]:
        return {
            "key": row.key,
            "label": ROWS[row.key].label,
            "file": Path(ROWS[row.key].file).name,
            "file_mb": row.file_bytes / MB,
            "note": row.note,
            **asdict(row.fresh),
            **asdict(row.rightness),
            "batches": {
                str(size): {
                    "images_per_s": timing.images_per_s,
                    "p50_ms": timing.p50_ms,
                    "lower_quartile_ms": timing.lower_quartile_ms,
                    "p99_ms": timing.p99_ms,
                    "num_calls": len(timing.calls_ms),
                    "ratio": self.ratio(row.key, BASELINE, size),
                    "cpu_ms": timing.p50_cpu_ms,
                    "cpu_ratio": self._cpu_ratio(row, size),
                    "share_of_floor": self.share_of_floor(row, size),
                    "rounds_ms": timing.rounds_ms,
                }
                for size, timing in row.timings.items()
            },
        }
