"""What the figures should reach, and whether they do."""

from collections.abc import Sequence
from dataclasses import dataclass

from export.benchmark.results import StudentResult
from export.benchmark.rows import BASELINE, FLOAT32, INT8, ROWS

FLOAT32_BATCH_8 = 1.15
FLOAT32_BATCH_1 = 1.0
INT8_BATCH_8 = 2.0
BUNDLE_LOAD_S = 1.0
FP16_SHARE, FP16_BATCH = 0.6, 32


@dataclass(frozen=True)
class Target:
    """One target of one student.

    Attributes:
        student: its name.
        text: the target in words.
        met: whether it is; None where it was not measured.
        found: the figure, or why there is none.
    """

    student: str
    text: str
    met: bool | None
    found: str

    def __str__(self) -> str:
        verdict = {True: "met", False: "not met", None: "not measured"}[self.met]
        return f"{verdict:<12}  {self.text}: {self.found}  [{self.student}]"


def targets(results: Sequence[StudentResult], device: str) -> list[Target]:
    """All targets that a device has, of every student."""
    found = []
    for result in results:
        if device == "cuda":
            found.append(_fp16(result))
        else:
            found += [
                _ratio(result, FLOAT32, BASELINE, 8, FLOAT32_BATCH_8),
                _ratio(result, FLOAT32, BASELINE, 1, FLOAT32_BATCH_1),
                _ratio(result, INT8, FLOAT32, 8, INT8_BATCH_8),
            ]
        found.append(_bundle_load(result))
    return found


def _ratio(result: StudentResult, key: str, other: str, batch: int, wanted: float) -> Target:
    label, reference = ROWS[key].label, ROWS[other].label
    aim = f"at least {wanted:g} times as fast as" if wanted > 1 else "not slower than"
    text = f"{label} {aim} {reference}, batch {batch}"
    ratio = result.ratio(key, other, batch)
    if ratio is None:
        return Target(result.name, text, None, "these rows and this batch size did not run")
    return Target(result.name, text, ratio >= wanted, f"{ratio:.3f} times")


def _bundle_load(result: StudentResult) -> Target:
    text = f"a tiny student's bundle answers within {BUNDLE_LOAD_S:g} s of its load, without torch"
    load = result.bundle
    if result.size != "tiny" or load is None:
        why = "no bundle was loaded" if result.size == "tiny" else f"a {result.size} student"
        return Target(result.name, text, None, why)
    found = f"{load.load_s:.3f} s, and {load.import_s:.3f} s to import deitlt"
    if not load.torch_free:
        found += "; torch was loaded"
    return Target(result.name, text, load.torch_free and load.load_s < BUNDLE_LOAD_S, found)


def _fp16(result: StudentResult) -> Target:
    text = f"fp16, batch {FP16_BATCH}: at least {FP16_SHARE:.0%} of the bfloat16 matrix rate"
    shares = {
        row.key: result.share_of_floor(row, FP16_BATCH)
        for row in result.rows
        if ROWS[row.key].precision == "float16" and FP16_BATCH in row.timings
    }
    if not shares:
        return Target(result.name, text, None, "no fp16 row ran at this batch size")
    best = max(shares, key=lambda key: shares[key])
    return Target(
        result.name, text, shares[best] >= FP16_SHARE, f"{shares[best]:.1%}, {ROWS[best].label}"
    )
