"""`python -m training.analyze RUN [MORE_RUNS...] --data DATA --output FOLDER`: what it learned.

Writes a folder with `report.html`, which holds all pictures itself, and beside it each plot as PNG
and its figures as CSV: the paper's analyses of the student in the first RUN, compared with those of
further students. Further RUNS may be teachers or unfinished; they add their learning curves. A RUN
is a run folder, a weight file, or a bundle that was exported with its weights.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from deitlt.errors import CheckpointError, DataError, UsageError
from deitlt.files import new_folder, refuse_mount, restore_stranded, write_text
from deitlt.labelled import LabelledImages
from deitlt.longtail import head_mid_tail
from deitlt.measuring import describe, hardware, versions
from deitlt.preprocess import decode_file
from deitlt.program import sigterm_raises, typed
from deitlt.run_splits import own_splits, pick_split
from training.analysis import sections
from training.analysis.curves import read_curves
from training.analysis.gallery import gallery, spread_over_tail
from training.analysis.omissions import left_out, unreadable
from training.analysis.page import Panel, page
from training.analysis.pictures import DARK, LIGHT, draw, require_matplotlib
from training.analysis.runs import check_runs, folder_of, is_student, load_run, name_runs
from training.analysis.sections import Section
from training.analysis.study import Study, of_tail, study
from training.analysis.teacher_views import ask_teacher
from training.command_line import parse, run_program
from training.config import StudentRecipe
from training.engine.distributed import pick_device
from training.run_data import recipe_of
from training.teachers.labelling import Teacher, load_teacher

PROGRAM = "training.analyze"
PAGE = "report.html"
PACKAGES = ("numpy", "torch", "timm", "matplotlib")
# Sections that show the first of several students alone.
OF_THE_FIRST = {"rollout", "rollout_mean", "confusion", "counts_accuracy"}


@dataclass(frozen=True, kw_only=True)
class AnalyzeCommand:
    """What `analyze` is told."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folder of a student, or a bundle exported with --weights; further students to compare it
    with; any runs for their curves."""
    data: Path
    """Folder or CSV of labelled images, in the classes of the student."""
    output: Path
    """Folder to write."""
    teacher: Path | None = None
    """Run folder of the first student's teacher: how sure it is of clean, strong and mixed
    images."""
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
    with sigterm_raises():
        analyze(command, typed(PROGRAM, argv))


def _check(command: AnalyzeCommand) -> None:
    """Refuse what is wrong before any time is spent."""
    if command.images < 1:
        raise UsageError(f"--images must be at least 1, not {command.images}")
    require_matplotlib()
    check_runs(command.runs)
    _check_output(command.output, overwrite=command.overwrite)
    for picture in command.pictures:
        if not picture.is_file():
            raise UsageError(f"{picture}: there is no such picture")
        decode_file(picture)


def _check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds something else, or that cannot be written."""
    if output.is_file():
        raise UsageError(f"{output}: is a file; name a folder for the report")
    refuse_mount(output)
    restore_stranded(output)
    if output.exists() and any(output.iterdir()):
        if not (output / PAGE).is_file():
            raise UsageError(f"{output}: is no report of this program; name another --output")
        if not overwrite:
            raise UsageError(f"{output}: holds a report already; pass --overwrite to replace it")
    there = next(folder for folder in output.absolute().parents if folder.exists())
    if not there.is_dir():
        raise UsageError(f"{there}: is a file; name a folder for the report that can be made")
    try:
        with TemporaryDirectory(prefix=f".{output.name}.", dir=there):
            pass
    except OSError as error:
        raise UsageError(f"{there}: cannot be written to ({error.strerror})") from error


def analyze(command: AnalyzeCommand, words: str) -> None:
    """Look at the runs as told and write the report.

    Args:
        command: what to do.
        words: the command as it was typed, for the report.

    Raises:
        DeitLTError: one of its kinds; nothing is written then.
    """
    device = pick_device(command.device)
    names = name_runs(command.runs)
    students = [command.runs[0], *filter(is_student, command.runs[1:])]
    # What can be wrong is read before any time is spent.
    teacher = _load_teacher(command, device)
    judged = [(run, *_images(run, command)) for run in students]
    curves = {names[run]: read_curves(folder_of(run)) for run in command.runs}
    studies = [
        study(run, names[run], split, images, command.images, device)
        for run, split, images in judged
    ]
    first = studies[0]
    not_asked: dict[Path, str] = {}
    parts = [
        sections.accuracy(studies),
        _rollouts(first, command, device),
        sections.mean_rollout(first),
        sections.attention_distance(studies),
        sections.feature_rank(studies),
        sections.divergence(studies),
        _teacher(teacher, first, command, device, not_asked),
        sections.convergence({n: c for n, c in curves.items() if c}),
        sections.confusion(first),
        sections.counts_accuracy(first),
        unreadable(studies, not_asked),
        left_out(studies, teacher=teacher is not None),
    ]
    shown = [part for part in parts if part is not None]
    if len(studies) > 1:
        shown = [_titled(part, first.name) if part.name in OF_THE_FIRST else part for part in shown]
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
    try:
        with new_folder(command.output, overwrite=command.overwrite) as folder:
            with tqdm(shown, desc="drawing", unit="section", disable=None) as bar:
                panels = [_write(part, folder) for part in bar]
            write_text(
                folder / PAGE, page("What the experts learned", summary, panels, describe(about))
            )
    except OSError as error:
        raise UsageError(
            f"{command.output}: cannot be written ({error.strerror}); what was there is as it was"
        ) from error
    for part in shown:
        if part.found:
            print(f"{part.title}: {part.found}")
    print(f"report in {command.output / PAGE}")


def _images(run: Path, command: AnalyzeCommand) -> tuple[str, LabelledImages]:
    """The split that a run is judged by, and its images.

    Raises:
        DataError: there is none, or none of its images is of a tail class.
    """
    card = load_run(run)[1]
    split, images = pick_split(command.data, command.split, card)
    if not of_tail(images, card).any():
        rare = ", ".join(card.classes[i] for i in head_mid_tail(card.train_counts)["tail"][:10])
        raise DataError(
            f"{command.data}: no image of a tail class ({rare}) is among its {split} images"
        )
    return split, images


def _titled(section: Section, name: str) -> Section:
    return replace(section, title=f"{section.title} ({name})")


def _rollouts(first: Study, command: AnalyzeCommand, device: torch.device) -> Section:
    paths = list(command.pictures) or spread_over_tail(first.look)
    return sections.rollout_gallery(first, gallery(command.runs[0], first, paths, device))


def _load_teacher(command: AnalyzeCommand, device: torch.device) -> Teacher | None:
    """The teacher on the device, if one was named and it knows the classes of the student."""
    if command.teacher is None:
        return None
    card = load_run(command.runs[0])[1]
    # As the student asked it: some give the teacher images in its own normalisation.
    renormalise = card.recipe.get("renormalise", False)
    teacher = load_teacher(command.teacher, card.preprocess if renormalise else None)
    if teacher.card.classes != card.classes:
        raise CheckpointError(
            f"{command.teacher}: has other classes than the student, or in another order; "
            "name the teacher it was distilled from"
        )
    return teacher.to(device)


def _teacher(
    teacher: Teacher | None,
    first: Study,
    command: AnalyzeCommand,
    device: torch.device,
    unreadable: dict[Path, str],
) -> Section | None:
    """The teacher on what the student was trained on, or else on what it is judged by.

    `unreadable` gets the images that cannot be read, and why.
    """
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
    answers = ask_teacher(teacher, images, first.card.preprocess, recipe, device, unreadable)
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
