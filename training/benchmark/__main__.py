"""`python -m training.benchmark`: how fast training is here, each figure against a baseline.

All images are made up and all baselines are measured in the same run, in turns with what is
compared with them. What a part has measured is said and written at once, so that a run may be
stopped. On a CPU everything shrinks: that shows that the program works, and little of how fast
training is.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from deitlt.cores import usable_cores
from deitlt.errors import UsageError
from deitlt.files import write_json
from deitlt.measuring import describe, hardware, versions
from deitlt.program import typed
from deitlt.student import Size
from training.benchmark.images import make_cifar_like, measure_decoding
from training.benchmark.measure import Row, matrix_rate
from training.benchmark.report import format_rows
from training.benchmark.student import measure_student
from training.benchmark.teacher import measure_teacher
from training.command_line import parse, run_program
from training.config import StudentRecipe
from training.engine.distributed import World, pick_device
from training.engine.run_setup import is_compiled
from training.recipes.students import cifar

PROGRAM = "training.benchmark"
PACKAGES = ("numpy", "pillow", "timm", "torch", "torchvision")


@dataclass(frozen=True, kw_only=True)
class BenchmarkCommand:
    """What the benchmark is told."""

    size: tuple[Size, ...] = ()
    """Students to train; by default base and small on a GPU, pico on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    quick: bool = False
    """Fewer repeats and shorter ones; on a CPU also smaller batches."""
    micro_batch_size: int | None = None
    """Images a forward pass of the student, ours and the baseline's; by default the recipe's."""
    at_once: int = 1
    """Micro-batches that our student takes in one forward pass."""
    compile: bool | None = None
    """Whether our student goes through torch.compile; by default on a GPU."""
    workers: Annotated[int | None, tyro.conf.arg(aliases=["-j"])] = None
    """Processes of the baseline and of the streaming path; all cores by default."""
    output: Path | None = None
    """JSON file for all figures, their samples, hardware and versions."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is done.

    Attributes:
        sizes: students.
        img_size: side of their input, px.
        patch_size: side of a patch, px.
        batch_size: images a step of the student.
        micro_batch_size: images that are mixed with each other, and of a forward pass.
        largest_class: images of the largest class; 5,000 is CIFAR-10-LT.
        steps: optimiser steps a sample.
        repeats: samples.
        matrix_side: of the matrices whose product is the yardstick.
        teacher_batch: images a step of the teacher.
        teacher_steps: steps a sample of the teacher.
        jpegs: large images.
        jpeg_batch: images a micro-batch of them.
    """

    sizes: tuple[Size, ...]
    img_size: int
    patch_size: int
    batch_size: int
    micro_batch_size: int
    largest_class: int
    steps: int
    repeats: int
    matrix_side: int
    teacher_batch: int
    teacher_steps: int
    jpegs: int
    jpeg_batch: int


# The work of the recipes themselves.
ON_GPU = Scale(
    sizes=("base", "small"),
    img_size=224,
    patch_size=16,
    batch_size=1024,
    micro_batch_size=128,
    largest_class=5000,
    steps=4,
    repeats=5,
    matrix_side=8192,
    teacher_batch=128,
    teacher_steps=20,
    jpegs=256,
    jpeg_batch=64,
)
# A thousandth of it.
ON_CPU = Scale(
    sizes=("pico",),
    img_size=64,
    patch_size=8,
    batch_size=64,
    micro_batch_size=32,
    largest_class=110,
    steps=2,
    repeats=3,
    matrix_side=1024,
    teacher_batch=32,
    teacher_steps=2,
    jpegs=48,
    jpeg_batch=8,
)
QUICK_ON_CPU = replace(
    ON_CPU,
    batch_size=16,
    micro_batch_size=8,
    largest_class=20,
    steps=1,
    repeats=2,
    matrix_side=512,
    teacher_batch=8,
    teacher_steps=1,
    jpegs=8,
)


def pick_scale(command: BenchmarkCommand, device_type: str) -> Scale:
    """How much is done on a kind of device, as far as the command leaves it open."""
    if device_type == "cuda":
        scale = replace(ON_GPU, steps=2, repeats=3) if command.quick else ON_GPU
    else:
        scale = QUICK_ON_CPU if command.quick else ON_CPU
    if command.size:
        scale = replace(scale, sizes=command.size)
    if command.micro_batch_size is not None:
        scale = replace(scale, micro_batch_size=command.micro_batch_size)
    return scale


def student_recipe(scale: Scale, size: Size, at_once: int = 1) -> StudentRecipe:
    """The recipe `cifar` at a scale, with so many micro-batches a forward pass.

    Raises:
        UsageError: micro-batches do not divide the batch.
    """
    return replace(
        cifar(),
        size=size,
        img_size=scale.img_size,
        patch_size=scale.patch_size,
        batch_size=scale.batch_size,
        micro_batch_size=scale.micro_batch_size,
        at_once=at_once,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; returns 0, also where targets are missed, or 2 with one line on what was wrong."""
    return run_program(PROGRAM, argv, _main, interrupted="interrupted; parts above are whole")


def _main(argv: list[str]) -> None:
    command: BenchmarkCommand = parse(PROGRAM, BenchmarkCommand, argv)
    benchmark(command, typed(PROGRAM, argv))


def benchmark(command: BenchmarkCommand, command_line: str) -> list[Row]:
    """Measure, print the table and write the JSON file, if one is asked for, part by part.

    Raises:
        DeitLTError: one of its kinds; the text is for the user.
    """
    if command.output is not None and not command.output.absolute().parent.is_dir():
        raise UsageError(f"--output {command.output}: there is no such folder to write it in")
    if command.workers is not None and command.workers < 1:
        raise UsageError(f"--workers must be positive, not {command.workers}")
    device = pick_device(command.device)
    scale = pick_scale(command, device.type)
    world = World(device)
    world.set_deterministic(False)
    about: dict[str, Any] = {
        "command": command_line,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(
            torch.cuda.get_device_properties(device) if device.type == "cuda" else None
        ),
        "versions": {**versions(PACKAGES), "cuda": torch.version.cuda},
    }
    print(describe(about), flush=True)
    rows: list[Row] = []
    for part in _measure(command, scale, world):
        rows += part
        for row in part:
            print(f"  {row.name}: {row.value:.4g} {row.unit}", file=sys.stderr, flush=True)
        if command.output is not None:
            report = about | {"scale": asdict(scale), "rows": [row.to_dict() for row in rows]}
            write_json(command.output, report)
    print(format_rows(rows))
    return rows


def _measure(command: BenchmarkCommand, scale: Scale, world: World) -> Iterator[list[Row]]:
    """The rows of one part after the other, what takes least time first."""
    workers = command.workers or usable_cores()
    compiled = is_compiled(command.compile, world.device)
    recipes = [student_recipe(scale, size, command.at_once) for size in scale.sizes]
    matrix = matrix_rate(world.device, scale.matrix_side, 5 * scale.repeats)
    yield [matrix]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic = make_cifar_like(folder, scale.largest_class)
        _announce("teacher")
        yield measure_teacher(
            synthetic,
            world,
            batch_size=scale.teacher_batch,
            steps=scale.teacher_steps,
            repeats=scale.repeats,
        )
        for recipe in recipes:
            _announce(f"student {recipe.size}")
            yield measure_student(
                recipe,
                synthetic,
                world,
                matrix=matrix,
                steps=scale.steps,
                repeats=scale.repeats,
                workers=workers,
                compiled=compiled,
            )
        _announce("streaming")
        yield measure_decoding(
            folder,
            num_images=scale.jpegs,
            batch=scale.jpeg_batch,
            workers=workers,
            repeats=scale.repeats,
            device=world.device,
        )


def _announce(part: str) -> None:
    """Say what is going on; on stderr, so that the table can be kept by itself."""
    print(f"measuring: {part}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
