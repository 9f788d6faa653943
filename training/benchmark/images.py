"""Synthetic images of the benchmark, and how fast worker processes decode large ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deitlt.labelled import LabelledImages
from deitlt.longtail import exponential_counts
from training.augmentation.recipe_views import student_view
from training.augmentation.views import RandomView
from training.benchmark.measure import Row, timed
from training.engine.feed import PREFETCHED, StreamedCrops, Ticket
from training.engine.seeding import Stream, generator
from training.recipes.students import imagenet_lt_released

NUM_CLASSES = 10
IMBALANCE_FACTOR = 100
CIFAR_SIDE_PX = 32
# About the mean of ImageNet.
JPEG_SIZE_PX = (500, 375)


@dataclass(frozen=True)
class SyntheticSet:
    """A long-tailed set of small images.

    Attributes:
        images: as files, for `training.engine.feed`.
        pixels: the same images decoded, `(N, 32, 32, 3)`.
    """

    images: LabelledImages
    pixels: NDArray[np.uint8]


def make_cifar_like(folder: Path, largest_class: int) -> SyntheticSet:
    """Noise of CIFAR's size in the class counts of CIFAR-10-LT; 5,000 makes the real 12,406."""
    factor = min(IMBALANCE_FACTOR, largest_class)  # the rarest class keeps an image
    counts = exponential_counts(largest_class, NUM_CLASSES, factor)
    labels = np.repeat(np.arange(NUM_CLASSES), counts)
    shape = (len(labels), CIFAR_SIDE_PX, CIFAR_SIDE_PX, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    paths = [folder / f"{i}.png" for i in range(len(labels))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path, compress_level=0)
    classes = [str(label) for label in range(NUM_CLASSES)]
    return SyntheticSet(LabelledImages(paths, labels, classes), pixels)


def make_jpegs(folder: Path, num_images: int) -> list[Path]:
    """Pictures of soft shapes and a little grain, about 100 kB each as photographs are."""
    rng = np.random.default_rng(0)
    paths = []
    width, height = JPEG_SIZE_PX
    for i in range(num_images):
        # Sizes differ a little, as those of photographs do.
        size = (width + int(rng.integers(-20, 21)), height + int(rng.integers(-20, 21)))
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
        grain = rng.integers(-12, 13, smooth.shape[:2], dtype=np.int16)[:, :, None]
        picture = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        paths.append(folder / f"{i}.jpg")
        Image.fromarray(picture).save(paths[-1], quality=90)
    return paths


def measure_decoding(
    folder: Path, *, num_images: int, batch: int, workers: int, repeats: int, device: torch.device
) -> list[Row]:
    """Images a second that workers decode and crop for streaming, against one core.

    Args:
        folder: where the JPEGs go.
        num_images: how many to make; they are read again and again, so the disk plays no part.
        batch: images a micro-batch.
        workers: processes.
        repeats: samples.
        device: that the crops are for (pinned memory beside a GPU).
    """
    paths = make_jpegs(folder, num_images)
    kilobytes = sum(path.stat().st_size for path in paths) / len(paths) / 1000
    alone = _decoding_rates(paths, batch, 0, repeats, torch.device("cpu"))
    one_core = Row(part="streaming", name="one core", unit="images/s", samples=alone)
    side = imagenet_lt_released().img_size
    together = Row(
        part="streaming",
        name=f"worker processes (-j {workers})",
        unit="images/s",
        samples=_decoding_rates(paths, batch, workers, repeats, device),
        note=f"JPEGs of {kilobytes:.0f} kB, decoded and cropped to {side} px; {one_core.name} "
        "works without processes in between",
    )
    return [together.against(one_core), one_core]


def _decoding_rates(
    paths: list[Path], batch: int, workers: int, repeats: int, device: torch.device
) -> list[float]:
    view = student_view(imagenet_lt_released())
    # Never kept decoded, however few they are: a large set would not fit either.
    loaded = StreamedCrops(paths, None, [view], workers, device).load(_tickets(view, paths, batch))
    # What was fetched ahead is used up first, so that the rate is that of the workers.
    for _ in islice(loaded, max(1, PREFETCHED * workers)):
        pass
    window = 2 * max(1, workers)

    def use_window() -> None:
        for _ in islice(loaded, window):
            pass

    clock = torch.device("cpu")
    return [window * batch / timed(clock, use_window)[0] for _ in range(repeats)]


def _tickets(view: RandomView, paths: list[Path], batch: int) -> Iterator[Ticket]:
    for number in count():
        rng = generator(0, Stream.IMAGE, number)
        yield Ticket(number, rng.integers(0, len(paths), batch), [view.draw(rng, batch)])
