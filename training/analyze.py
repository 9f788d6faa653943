"""`python -m training.analyze RUN [MORE_RUNS...] --data DATA --output FOLDER`: what it learned.

Writes a folder with `report.html`, which holds all pictures itself, and beside it each plot as PNG
and its figures as CSV: the paper's analyses of the student in the first RUN, compared with those of
further students. Further RUNS may be teachers or unfinished; they add their learning curves.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

from deitlt.errors import CheckpointError, UsageError
from deitlt.files import new_folder, write_text
from deitlt.measuring import describe, hardware, versions
from deitlt.program import typed
from deitlt.weights import weight_file
from training.analysis import sections
from training.analysis.curves import read_curves
from training.analysis.gallery import gallery, spread_over_tail
from training.analysis.page import Panel, page
from training.analysis.pictures import DARK, LIGHT, draw, require_matplotlib
from training.analysis.sections import Section
from training.analysis.study import Study, load_run, study
from training.analysis.teacher_views import ask_teacher
from training.command_line import parse, run_program
from training.config import StudentRecipe
from training.engine.distributed import pick_device
from training.run_data import own_splits, pick_split, recipe_of
from training.teachers.labelling import Teacher, load_teacher

PROGRAM = "training.analyze"
PAGE = "report.html"
PACKAGES = ("numpy", "torch", "timm", "matplotlib")


@dataclass(frozen=True, kw_only=True)
class AnalyzeCommand:
    """What `analyze` is told."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folder of a student; further students to compare it with; any runs for their curves."""
    data: Path
    """Folder or CSV of labelled images, in the classes of the student."""
    output: Path
    """Folder to write."""
    teacher: Path | None = None
    """Run folder of the teacher: how sure it is of clean, strong and mixed images."""
    images: int = 1000
    """Images, evenly from all classes, on which attention and features are looked at. Ranks are
    free of it when the tail alone gives a few times the student's width."""
    pictures: tuple[Path, ...] = ()
    """Image files to show the experts' attention on; by default some of the tail."""
    split: Literal["train", "val", "test", "all"] | None = None
    """Which images: by default test, else val, else all. On the data of the run, train and val are
    what it trained on and held out."""
    overwrite: bool = False
    """Replace a report that is in --output."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write a report; returns 0, or 2 with one line on what was wrong."""
    return run_program(PROGRAM, argv, _main, interrupted="interrupted; nothing was written")


def _main(argv: list[str]) -> None:
    command: AnalyzeCommand = parse(PROGRAM, AnalyzeCommand, argv)
    _check(command)
    analyze(command, typed(PROGRAM, argv))


def _check(command: AnalyzeCommand) -> None:
    """Refuse what is wrong before any time is spent."""
    if not command.runs:
        raise UsageError("name the run folder of a student")
    if command.images < 1:
        raise UsageError(f"--images must be at least 1, not {command.images}")
    require_matplotlib()
    output = command.output
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        if not command.overwrite:
            raise UsageError(f"{output}: exists already; pass --overwrite to replace it")
        if not (output / PAGE).is_file():
            raise UsageError(f"{output}: is no report of this program; name another --output")
    for picture in command.pictures:
        if not picture.is_file():
            raise UsageError(f"{picture}: there is no such picture")
    for run in command.runs[1:]:
        if not is_student(run) and not read_curves(run):
            raise CheckpointError(f"{run}: has neither a student nor a results.csv")


def analyze(command: AnalyzeCommand, words: str) -> None:
    """Look at the runs as told and write the report.

    Args:
        command: what to do.
        words: the command as it was typed, for the report.

    Raises:
        DeitLTError: one of its kinds; nothing is written then.
    """
    device = pick_device(command.device)
    names = _names(command.runs)
    teacher = _load_teacher(command, device)  # before any time is spent
    students = list(command.runs[:1])
    students += [run for run in command.runs[1:] if is_student(run)]
    studies = [_study(run, names[run], command, device) for run in students]
    curves = {names[run]: read_curves(folder_of(run)) for run in command.runs}
    parts = [
        sections.accuracy(studies),
        _rollouts(studies[0], command, device),
        sections.mean_rollout(studies[0]),
        sections.attention_distance(studies),
        sections.feature_rank(studies),
        sections.divergence(studies),
        _teacher(teacher, studies[0], command, device),
        sections.convergence({n: c for n, c in curves.items() if c}),
        sections.confusion(studies[0]),
        sections.counts_accuracy(studies[0]),
        sections.unreadable(studies),
    ]
    first = studies[0]
    others = [name for run, name in names.items() if run != command.runs[0]]
    beside = f", beside {', '.join(others)}" if others else ""
    summary = (
        f"{first.name}{beside}, on {len(first.images)} {first.split} images of "
        f"{len(first.card.classes)} classes; {first.name} after {first.card.epoch} epochs on "
        f"{sum(first.card.train_counts)} training images, {max(first.card.train_counts)} of the "
        f"most frequent class and {min(first.card.train_counts)} of the rarest."
    )
    about = {
        "time": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "command": words,
        "hardware": hardware(
            torch.cuda.get_device_properties(device) if device.type == "cuda" else None
        ),
        "versions": versions(PACKAGES),
    }
    with new_folder(command.output, overwrite=command.overwrite) as folder:
        panels = [_write(part, folder) for part in parts if part is not None]
        write_text(
            folder / PAGE, page("What the experts learned", summary, panels, describe(about))
        )
    for part in parts:
        if part is not None and part.found:
            print(f"{part.title}: {part.found}")
    print(f"report in {command.output / PAGE}")


def is_student(run: Path) -> bool:
    """Whether a run folder or weight file holds a student."""
    return weight_file(run, "student").is_file()


def folder_of(run: Path) -> Path:
    """The run folder that a path, perhaps of its weight file, stands for."""
    return run if run.is_dir() else run.parent


def _names(runs: Sequence[Path]) -> dict[Path, str]:
    """What to call the runs: their folders, or where two are called the same, their paths."""
    short = [folder_of(run.resolve()).name for run in runs]
    return {
        run: name if short.count(name) == 1 else str(run)
        for run, name in zip(runs, short, strict=True)
    }


def _study(run: Path, name: str, command: AnalyzeCommand, device: torch.device) -> Study:
    card = load_run(run)[1]
    split, images = pick_split(command.data, command.split, card)
    return study(run, name, split, images, command.images, device)


def _rollouts(first: Study, command: AnalyzeCommand, device: torch.device) -> Section:
    paths = list(command.pictures) or spread_over_tail(first.look)
    return sections.rollout_gallery(first, gallery(command.runs[0], first, paths, device))


def _load_teacher(command: AnalyzeCommand, device: torch.device) -> Teacher | None:
    """The teacher on the device, if one was named and it knows the classes of the student."""
    if command.teacher is None:
        return None
    teacher = load_teacher(command.teacher)
    if teacher.card.classes != load_run(command.runs[0])[1].classes:
        raise CheckpointError(
            f"{command.teacher}: has other classes than the student, or in another order; "
            "name the teacher it was distilled from"
        )
    return teacher.to(device)


def _teacher(
    teacher: Teacher | None, first: Study, command: AnalyzeCommand, device: torch.device
) -> Section | None:
    """The teacher on what the student was trained on, or else on what it is judged by."""
    if teacher is None:
        return None
    trained = own_splits(command.data, first.card).get("train")
    images = first.images if trained is None else trained
    which = f"{first.split} images" if trained is None else "images the student was trained on"
    if len(images) > command.images:
        chosen = np.random.RandomState(0).permutation(len(images))[: command.images]
        images = images.subset(np.sort(chosen))
    recipe = recipe_of(first.card)
    assert recipe is None or isinstance(recipe, StudentRecipe), "the card is a student's"
    answers = ask_teacher(teacher, images, first.card.preprocess, recipe, device)
    return sections.teacher_entropy(answers, which, len(first.card.classes))


def _write(section: Section, folder: Path) -> Panel:
    """Write a section's CSVs and PNG; its part of the page."""
    for name, text in section.files.items():
        write_text(folder / f"{name}.csv", text)
    pictures = None
    if section.plot is not None:
        light, dark = (draw(section.plot, section.height_in, theme) for theme in (LIGHT, DARK))
        (folder / f"{section.name}.png").write_bytes(light)
        pictures = light, dark
    return Panel(section.name, section.title, section.what, section.found, pictures, section.table)


if __name__ == "__main__":
    sys.exit(main())
