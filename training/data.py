"""Training data: splits, long-tailed subsets, decoded images, loaders.

Legend: `B` images, `S` image side.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from deitlt.engine import usable_cores
from deitlt.errors import DataError
from deitlt.labelled import LabelledImages, read_labelled
from deitlt.longtail import carve_validation, imbalance_factor, long_tailed_subset
from deitlt.preprocess import Pixels, PreprocessSpec, decode_file, load_batches, normalise
from training.config import Recipe
from training.seeding import Stream, generator, seed_global

# Decoded sets up to this size stay in memory, so that an epoch decodes nothing.
CACHE_BYTES = 1 << 30
EVALUATION_BATCH = 256

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Splits:
    """The images of a run.

    Attributes:
        train: what is trained on.
        val: held out to select the epoch; None selects the last.
    """

    train: LabelledImages
    val: LabelledImages | None

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
            pool.labels, num_classes, recipe.val_fraction, recipe.split_seed
        )
        train = pool.subset(kept)
        val = pool.subset(held_out) if len(held_out) else None
    return Splits(train, val)


def files_sha256(images: LabelledImages) -> str:
    """Hash over the sorted class and file names: equal for the same subset, wherever it lies."""
    names = sorted(
        f"{images.classes[label]}/{path.name}"
        for path, label in zip(images.paths, images.labels, strict=True)
    )
    return sha256("\n".join(names).encode()).hexdigest()


class TrainingImages(Dataset[tuple[Tensor, int]]):
    """Decoded images under a random transform, drawn anew from (seed, epoch, index).

    Every file is decoded once when this is made, so a damaged one stops the run before any time is
    spent on it. Sets up to `CACHE_BYTES` stay decoded in memory.
    """

    def __init__(self, images: LabelledImages, transform: Transform, seed: int) -> None:
        """Decode all images.

        Raises:
            ImageError: of the first file that cannot be decoded; the text names it.
        """
        self.images = images
        self.transform = transform
        self.seed = seed
        self._cache: list[np.ndarray] | None = []
        size = 0
        for path in tqdm(images.paths, desc="reading images", unit="image", disable=None):
            pixels = np.asarray(decode_file(path))
            size += pixels.nbytes
            if size > CACHE_BYTES:
                self._cache = None
            if self._cache is not None:
                self._cache.append(pixels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        """Transformed `(3, S, S)` image and label for `(epoch, index)`."""
        epoch, index = item
        if self._cache is None:
            image = decode_file(self.images.paths[index])
        else:
            image = Image.fromarray(self._cache[index])
        seed_global(self.seed, Stream.IMAGE, epoch, index)
        return self.transform(image), int(self.images.labels[index])


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of `(epoch, index)` in an order drawn from (seed, epoch).

    The last, incomplete batch of an epoch is left out. A set smaller than a batch makes one batch
    of an even number of images.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int) -> None:
        self.num_images = num_images
        self.batch_size = batch_size if num_images >= batch_size else num_images // 2 * 2
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_images // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = generator(self.seed, Stream.ORDER, self.epoch).permutation(self.num_images)
        for step in range(len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield [(self.epoch, int(index)) for index in batch]


class TrainingLoader:
    """Batches of transformed training images, epoch by epoch."""

    def __init__(
        self,
        images: LabelledImages,
        transform: Transform,
        *,
        batch_size: int,
        seed: int,
        num_workers: int | None,
        device: torch.device,
    ) -> None:
        if num_workers is None:
            num_workers = 0 if device.type == "cpu" else min(8, usable_cores())
        self._sampler = EpochSampler(len(images), batch_size, seed)
        self._device = device
        self._loader = DataLoader(
            TrainingImages(images, transform, seed),
            batch_sampler=self._sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=device.type == "cuda",
        )

    def __len__(self) -> int:
        return len(self._sampler)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images `(B, 3, S, S)` and labels `(B,)` of one epoch, on the device."""
        self._sampler.epoch = epoch
        for images, labels in self._loader:
            yield (
                images.to(self._device, non_blocking=True),
                labels.to(self._device, non_blocking=True),
            )


class EvaluationImages:
    """Labelled images as deployment will see them; sets up to `CACHE_BYTES` are decoded once."""

    def __init__(self, images: LabelledImages, spec: PreprocessSpec, device: torch.device) -> None:
        self.labels = images.labels
        self._paths = images.paths
        self._spec = spec
        self._device = device
        self._cache: list[Pixels] | None = None
        if len(images) * spec.img_size**2 * 3 <= CACHE_BYTES:
            self._cache = list(load_batches(self._paths, spec, EVALUATION_BATCH))

    def __iter__(self) -> Iterator[Tensor]:
        """Normalised `(B, 3, S, S)` batches in order, on the device."""
        for pixels in self._cache or load_batches(self._paths, self._spec, EVALUATION_BATCH):
            yield torch.from_numpy(normalise(pixels, self._spec)).to(self._device)


def _brief(counts: np.ndarray) -> str:
    numbers = [str(count) for count in counts]
    return " ".join(numbers if len(numbers) <= 20 else [*numbers[:10], "...", *numbers[-5:]])
