"""What both training programs do before the first step."""

import os
import shutil
import sys
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from deitlt.errors import UsageError
from deitlt.run_splits import Splits, load_splits
from deitlt.weights import Card, Kind
from training.command_line import Command
from training.config import Recipe
from training.data import EvaluationImages
from training.engine.checkpoint import RunFolder
from training.engine.distributed import World, speaks


def is_compiled(wanted: bool | None, device: torch.device) -> bool:
    """Whether a student goes through torch.compile; by default on a GPU, if that can be.

    Raises:
        UsageError: it is wanted, and what builds its kernels is not here.
    """
    if wanted is False or (wanted is None and device.type != "cuda"):
        return False
    missing = _missing_to_compile(device)
    if missing and wanted:
        raise UsageError(f"--compile True needs {missing}; install it, or leave the option out")
    if missing and speaks():
        print(f"warning: not compiled, and so slower: {missing} is not here", file=sys.stderr)
    return not missing


def _missing_to_compile(device: torch.device) -> str:
    """What builds a GPU's launchers or a CPU's kernels and is not here; empty if all is."""
    if device.type == "cuda":
        variable, names, kind = "CC", ["gcc", "clang"], "a C compiler (gcc or clang)"
    else:
        variable, names, kind = "CXX", ["g++"], "a C++ compiler (g++)"
    if not os.environ.get(variable) and not any(map(shutil.which, names)):
        return kind
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Python's C header (Python.h; python3-dev)"
    return ""


def say_notes(notes: list[str]) -> None:
    """Print what a user may not have meant; of many processes the first does."""
    for note in notes if speaks() else ():
        print(f"note: {note}", flush=True)


@dataclass(frozen=True)
class Prepared:
    """A run before its first step.

    Attributes:
        recipe: what to do.
        splits: images trained on and held out.
        run: the run folder, checked but not yet claimed.
        world: the processes that train.
    """

    recipe: Recipe
    splits: Splits
    run: RunFolder
    world: World

    def validation_images(self) -> EvaluationImages | None:
        """The held-out images, decoded, where there are any and this process scores them."""
        if self.splits.val is None or not self.world.leads:
            return None
        return EvaluationImages(self.splits.val, self.recipe.preprocess(), self.world.device)

    def card(
        self, kind: Kind, architecture: dict[str, Any], epoch: int, figures: dict[str, Any]
    ) -> Card:
        """The card of weights taken now."""
        return Card(
            kind=kind,
            architecture=architecture,
            classes=self.splits.train.classes,
            train_counts=self.splits.train.counts().tolist(),
            train_files_sha256=self.splits.train_sha256,
            preprocess=self.recipe.preprocess(),
            recipe=asdict(self.recipe),
            epoch=epoch,
            validation=figures,
        )

    def claim(self, *, resume: bool) -> None:
        """Take the run folder: from here on a former run in it is gone, unless it is resumed."""
        self.world.barrier()  # every process has checked the folder as it was
        with self.world.leading() as leading:
            if leading:
                self.run.start(self.recipe, resume=resume)


def prepare(command: Command, recipe: Recipe, world: World) -> Prepared:
    """Read the data and check the run folder; nothing is decoded or written yet.

    Raises:
        DeitLTError: data or folder cannot be used.
    """
    if command.workers is not None and command.workers < 0:
        raise UsageError(f"--workers must not be negative, not {command.workers}")
    splits = load_splits(command.data, asdict(recipe))
    if world.leads:
        print(splits.describe(), flush=True)
    say_notes(recipe.notes())
    if splits.val is not None and recipe.val_fraction == 0:
        say_notes(["the epoch is selected all the same: the data has a val split of its own"])
    run = RunFolder(command.output)
    run.check(recipe, resume=command.resume, overwrite=command.overwrite)
    return Prepared(recipe, splits, run, world)
