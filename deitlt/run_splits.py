"""The images of a training run, drawn from its data: what it learnt, held out, and is judged by.

Training draws them; whoever judges a model later draws them again, so that no figure is taken on
images that it has seen without a word of it.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deitlt import labelled
from deitlt.errors import DataError
from deitlt.labelled import LabelledImages, read_labelled
from deitlt.longtail import carve_validation, imbalance_factor, long_tailed_subset

# What `files_sha256` begins with; without it a hash is of an earlier version, over names alone.
FILES_HASH = "paths+sizes:"
# Fields of a recipe by which the images are drawn.
DRAWING = ("imbalance_factor", "subset_seed", "val_fraction", "split_seed")


class Trained(Protocol):
    """What a model says of its training, as the card of its weights does."""

    @property
    def classes(self) -> list[str]:
        """Names in the order of the outputs."""
        ...

    @property
    def recipe(self) -> dict[str, Any]:
        """Every field of the recipe; empty where it is not known."""
        ...

    @property
    def train_files_sha256(self) -> str:
        """Identity of the training files; empty where it is not known."""
        ...


@dataclass(frozen=True)
class Splits:
    """The images of a run.

    Attributes:
        train: what is trained on.
        val: held out to select the epoch; None selects the last.
    """

    train: LabelledImages
    val: LabelledImages | None

    @cached_property
    def train_sha256(self) -> str:
        """Identity of the images trained on; a look at a million files takes seconds, so once."""
        return files_sha256(self.train)

    def describe(self) -> str:
        """Counts for people, in the order of the classes."""
        counts = self.train.counts()
        total = counts if self.val is None else counts + self.val.counts()
        lines = [
            f"data: {len(counts)} classes, imbalance factor {imbalance_factor(counts):.3g}",
            f"  images       {len(self.train) + len(self.val or []):>7}: {_brief(total)}",
        ]
        if self.val is not None:
            lines.append(f"  trained on   {len(self.train):>7}: {_brief(counts)}")
            lines.append(f"  validation   {len(self.val):>7}: {_brief(self.val.counts())}")
        return "\n".join(lines)


def load_splits(
    source: Path, recipe: Mapping[str, Any], classes: list[str] | None = None
) -> Splits:
    """What a recipe trains on and holds out of a folder or CSV; the same images every time.

    First the long-tailed subset, if any, is drawn from the training images; then the held-out
    validation images are carved from what is left, unless the data has a `val` split of its own.
    A `test` split is touched by `training.evaluate` alone.

    Args:
        source: the data.
        recipe: its fields by name, of which those in `DRAWING` are read.
        classes: what the classes must be; None takes those of the data.

    Raises:
        DataError: the data cannot be used as it is.
    """
    named = read_labelled(source, classes)
    pool = named["train"] if "train" in named else named.get("all")
    if pool is None:
        raise DataError(f"{source}: has no training images")
    num_classes = len(pool.classes)
    factor, subset_seed, val_fraction, split_seed = (recipe[name] for name in DRAWING)
    if factor is not None:
        pool = pool.subset(long_tailed_subset(pool.labels, num_classes, factor, subset_seed))
    train, val = pool, named.get("val")
    if val is None and val_fraction > 0:
        kept, held_out = carve_validation(
            pool.labels, num_classes, val_fraction, split_seed, pool.groups
        )
        train = pool.subset(kept)
        val = pool.subset(held_out) if len(held_out) else None
    return Splits(train, val)


def files_sha256(images: LabelledImages) -> str:
    """Identity of a set of images: hash over class, path and size of each file, in any order.

    Paths count from the folder that all files share, so that data may be moved or copied as a
    whole. No file is opened: one that is replaced by another of the same size is not noticed.
    """
    files = [os.path.abspath(path) for path in images.paths]
    root = os.path.commonpath({os.path.dirname(file) for file in files})
    lines = sorted(
        f"{images.classes[label]}\0{file[len(root) :].lstrip(os.sep)}\0{_size(file)}"
        for file, label in zip(files, images.labels, strict=True)
    )
    text = "\n".join(lines).replace(os.sep, "/")
    return FILES_HASH + sha256(text.encode(errors="surrogateescape")).hexdigest()


def own_splits(data: Path, card: Trained) -> dict[str, LabelledImages]:
    """What the run trained on and held out, if this is the data it was trained on; else nothing."""
    if not card.recipe.keys() >= set(DRAWING):  # weights that were imported
        return {}
    try:
        splits = load_splits(data, card.recipe, card.classes)
    except DataError:  # data to evaluate on alone need not be fit to train on
        return {}
    if splits.train_sha256 != card.train_files_sha256:
        return {}
    return {"train": splits.train} | ({"val": splits.val} if splits.val is not None else {})


def pick_split(
    data: Path, split: str | None, card: Trained, *, keep_missing: bool = False
) -> tuple[str, LabelledImages]:
    """The images of a split and its name; by default test, else val, else all, else train.

    On the data of the run, train and val are what it trained on and held out. `keep_missing` keeps
    files that are not there, for who lists them.
    Warns on stderr of images that the run was trained on, or where its card is too old to tell.

    Raises:
        DataError: there is no such split.
    """
    own = own_splits(data, card)
    named = read_labelled(data, card.classes, keep_missing=keep_missing)
    name, images = labelled.pick_split(named | own, split, data)
    if card.train_files_sha256 and not card.train_files_sha256.startswith(FILES_HASH):
        print(
            f"warning: {data}: which of these images the run was trained on cannot be told; it is "
            "of an earlier version, which noted names alone",
            file=sys.stderr,
        )
    seen = set(own["train"].paths).intersection(images.paths) if own else ()
    if seen:
        print(
            f"warning: {data}: the run was trained on {len(seen)} of these {len(images)} images; "
            "figures on them say little of new ones",
            file=sys.stderr,
        )
    return name, images


def _size(file: str) -> int | None:
    try:
        return os.stat(file).st_size
    except OSError:  # who reads the image says what is wrong with it
        return None


def _brief(counts: np.ndarray) -> str:
    numbers = [str(count) for count in counts]
    return " ".join(numbers if len(numbers) <= 20 else [*numbers[:10], "...", *numbers[-5:]])
