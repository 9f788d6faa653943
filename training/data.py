"""The images of a run: splits, long-tailed subsets, and what is evaluated.

Legend: `B` images, `S` image side.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deitlt.errors import DataError
from deitlt.labelled import LabelledImages, read_labelled
from deitlt.longtail import carve_validation, imbalance_factor, long_tailed_subset
from deitlt.preprocess import PreprocessSpec, load_batches
from training.config import Recipe

# Prepared sets up to this size stay in memory, so that they are decoded once.
CACHE_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}
EVALUATION_BATCH = 256
# What `files_sha256` begins with; without it a hash is of an earlier version, over names alone.
FILES_HASH = "paths+sizes:"


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


def load_splits(source: Path, recipe: Recipe, classes: list[str] | None = None) -> Splits:
    """What a recipe trains on and holds out of a folder or CSV; the same images every time.

    First the long-tailed subset, if any, is drawn from the training images; then the held-out
    validation images are carved from what is left, unless the data has a `val` split of its own.
    A `test` split is touched by `training.evaluate` alone.

    Raises:
        DataError: the data cannot be used as it is.
    """
    named = read_labelled(source, classes)
    pool = named["train"] if "train" in named else named.get("all")
    if pool is None:
        raise DataError(f"{source}: has no training images")
    num_classes = len(pool.classes)
    if (pool.counts() == 0).any():
        empty = pool.classes[int(np.flatnonzero(pool.counts() == 0)[0])]
        raise DataError(f"{source}: class {empty!r} has no training images")
    if recipe.imbalance_factor is not None:
        pool = pool.subset(
            long_tailed_subset(
                pool.labels, num_classes, recipe.imbalance_factor, recipe.subset_seed
            )
        )
    train, val = pool, named.get("val")
    if val is None and recipe.val_fraction > 0:
        kept, held_out = carve_validation(
            pool.labels, num_classes, recipe.val_fraction, recipe.split_seed, pool.groups
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


class EvaluationImages:
    """Labelled images as deployment will see them; sets up to `CACHE_BYTES` are decoded once.

    Decoded pixels live on the device as uint8 and are normalised there, with the very arithmetic
    of `deitlt.preprocess.normalise`.
    """

    def __init__(self, images: LabelledImages, spec: PreprocessSpec, device: torch.device) -> None:
        self.labels = images.labels
        self._paths = images.paths
        self._spec = spec
        self._device = device
        self._cache: list[Tensor] | None = None
        if len(images) * spec.img_size**2 * 3 <= CACHE_BYTES[device.type]:
            self._cache = list(self._load())

    def __iter__(self) -> Iterator[Tensor]:
        """Normalised `(B, 3, S, S)` batches in order, on the device."""
        mean, std = (
            torch.tensor(channel, device=self._device).view(3, 1, 1)
            for channel in (self._spec.mean, self._spec.std)
        )
        for pixels in self._cache or self._load():
            yield (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std

    def _load(self) -> Iterator[Tensor]:
        for pixels in load_batches(self._paths, self._spec, EVALUATION_BATCH):
            yield torch.from_numpy(pixels).to(self._device)


def _size(file: str) -> int | None:
    try:
        return os.stat(file).st_size
    except OSError:  # who reads the image says what is wrong with it
        return None


def _brief(counts: np.ndarray) -> str:
    numbers = [str(count) for count in counts]
    return " ".join(numbers if len(numbers) <= 20 else [*numbers[:10], "...", *numbers[-5:]])
