"""All rows of one student: write the files, open them, let them take turns."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from export.benchmark.artefacts import Subject, write, write_minimal_bundle
from export.benchmark.flops import plain_flops, pruned_flops
from export.benchmark.fresh import load_bundle, run_row
from export.benchmark.measure import WARM_UPS, Yardstick, take_turns
from export.benchmark.operators import kernel_shares, operator_shares
from export.benchmark.results import RowResult, StudentResult
from export.benchmark.rows import (
    FLOAT32,
    FLOAT32_FILE,
    INT8,
    ROWS,
    Row,
    missing,
    provider,
)
from export.benchmark.runners import Images, Opening, Runner, open_runner
from export.benchmark.students import Student, batches, judge

PRODUCT = "matrix product"
PROFILE_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a student is measured.

    Attributes:
        rows: keys of what to run.
        batch_sizes: images a call.
        device: cpu or cuda.
        threads: inside a call.
        rounds: turns of each row.
        turn_s: length of a turn.
        loads: fresh processes that load the bundle.
        profile: also say where the time goes.
        left_out: rows that were not asked for, and why, by key.
    """

    rows: Sequence[str]
    batch_sizes: tuple[int, ...]
    device: str
    threads: int
    rounds: int
    turn_s: float
    loads: int
    profile: bool
    left_out: dict[str, str]


def measure_student(
    student: Student, plan: Plan, yardstick: Yardstick, folder: Path
) -> StudentResult:
    """All figures of a student; files are written into `folder`."""
    config = student.model.config
    result = StudentResult(
        name=student.name,
        size=config.size,
        images=student.images,
        plain_flops=plain_flops(config),
        flops=pruned_flops(config),
        yardstick=yardstick,
        skipped={ROWS[key].label: why for key, why in plan.left_out.items()},
    )
    stacks = _save_images(student, plan, folder)
    subject = Subject(student.model, student.card, student.calibration, plan.device, folder)
    openings: dict[str, Opening] = {}
    runners: dict[str, Runner] = {}
    for row in (ROWS[key] for key in plan.rows):
        why = missing(row, plan.device)
        if why is None:
            _say(f"{student.name}: {row.label}")
            try:
                opening = _opening(row, plan, folder)
                note = write(subject, row.file)
                fresh = run_row(opening, _stack(folder, row), max(plan.batch_sizes))
                runner = open_runner(opening)
                rightness = judge(student, runner, stacks[row.takes], max(plan.batch_sizes))
            # Exporters and runtimes raise what they like; whatever it was stands in the table.
            except Exception as error:
                why = f"it failed: {_first_line(error)}"
            else:
                openings[row.key], runners[row.key] = opening, runner
                size = (folder / row.file).stat().st_size
                result.rows.append(RowResult(row.key, size, note, fresh, rightness))
        if why is not None:
            result.skipped[row.label] = why
    _time(result, runners, stacks, plan)
    if (folder / FLOAT32_FILE).exists():
        bundle = write_minimal_bundle(subject, folder / "bundle")
        result.bundle = load_bundle(
            bundle.path, _image_file(student, folder), plan.threads, plan.loads
        )
    if plan.profile:
        _profile(result, openings, runners, stacks, plan)
    return result


def _time(
    result: StudentResult, runners: dict[str, Runner], stacks: dict[str, Images], plan: Plan
) -> None:
    for size in plan.batch_sizes:
        _say(f"{result.name}: batch {size}")
        calls: dict[str, Any] = {PRODUCT: result.yardstick.call}
        for key, runner in runners.items():
            calls[key] = runner.prepare(batches(stacks[ROWS[key].takes], size)[0])
        timings = take_turns(
            calls, size, rounds=plan.rounds, turn_s=plan.turn_s, warm_ups=WARM_UPS[plan.device]
        )
        result.products[size] = timings[PRODUCT]
        for row in result.rows:
            row.timings[size] = timings[row.key]


def _profile(
    result: StudentResult,
    openings: dict[str, Opening],
    runners: dict[str, Runner],
    stacks: dict[str, Images],
    plan: Plan,
) -> None:
    if plan.device == "cuda":
        for key in (key for key in runners if ROWS[key].how == "bound"):
            images = batches(stacks[ROWS[key].takes], max(plan.batch_sizes))[0]
            result.operators[ROWS[key].label] = kernel_shares(runners[key].prepare(images))
        return
    for key in (FLOAT32, INT8):
        if key in openings:
            images = batches(stacks[ROWS[key].takes], PROFILE_BATCH)[0]
            result.operators[ROWS[key].label] = operator_shares(openings[key], images)


def _opening(row: Row, plan: Plan, folder: Path) -> Opening:
    return Opening(
        how=row.how,
        path=str(folder / row.file),
        device=plan.device,
        threads=plan.threads,
        provider=provider(plan.device),
        graph=row.graph,
    )


def _save_images(student: Student, plan: Plan, folder: Path) -> dict[str, Images]:
    """The images as rows take them, also as files for fresh processes."""
    stacks: dict[str, Images] = {"pixels": student.pixels, "normalised": student.normalised()}
    for name, stack in stacks.items():
        np.save(folder / f"{name}.npy", batches(stack, max(plan.batch_sizes))[0])
    return stacks


def _stack(folder: Path, row: Row) -> Path:
    return folder / f"{row.takes}.npy"


def _image_file(student: Student, folder: Path) -> Path:
    path = folder / "image.jpg"
    Image.fromarray(student.pixels[0]).save(path, quality=95)
    return path


def _say(what: str) -> None:
    """Say what is going on; on stderr, so that the table can be kept by itself."""
    print(f"measuring: {what}", file=sys.stderr, flush=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
