"""The images that an export is verified and calibrated on."""

from pathlib import Path

import numpy as np

from deitlt.errors import DataError, UsageError
from deitlt.labelled import LabelledImages, read_labelled
from deitlt.longtail import IntArray
from deitlt.preprocess import Pixels, PreprocessSpec, load_batches
from deitlt.run_splits import own_splits, pick_split
from deitlt.weights import Card

NUM_CALIBRATION = 128
# Training images that a choice between forms of int8 is made on.
NUM_TRIAL = 1000


def judged_images(
    data: Path, card: Card, split: str | None, max_images: int | None
) -> tuple[str, LabelledImages]:
    """The images to verify on, and the name of their split.

    Args:
        data: labelled images, in the classes of the model and no others.
        card: of the model: what it held out of this very data is a val split.
        split: which; by default test, else val, else all there is.
        max_images: at most so many, spread over the classes.

    Raises:
        DataError: the data cannot be read, has other classes or no such split.
        UsageError: `max_images` is below 1.
    """
    name, images = pick_split(data, split, card)
    if max_images is not None:
        if max_images < 1:
            raise UsageError(f"--max-images is {max_images}; it must be at least 1")
        images = images.subset(np.sort(_by_turns(images.labels)[:max_images]))
    return name, images


def training_images(data: Path, calibration: Path | None, card: Card) -> LabelledImages:
    """Training images for int8: one of every class, then a second one of every class, and so on.

    Args:
        data: labelled images, of which those that the model was trained on are taken where it was
            trained on this data, else its training split.
        calibration: other labelled images, to take instead.
        card: of the model.

    Raises:
        DataError: the data cannot be read, has other classes or no training split.
    """
    source = calibration or data
    splits = read_labelled(source, card.classes) | own_splits(source, card)
    images = splits.get("train")
    if images is None and calibration:
        images = splits.get("all")
    if images is None:
        raise DataError(
            f"{source}: has no training split to calibrate int8 on; name training images with "
            "--calibration"
        )
    return images.subset(_by_turns(images.labels)[:NUM_TRIAL])


def calibration_pixels(images: LabelledImages, preprocess: PreprocessSpec) -> Pixels:
    """The first of `training_images` as a model's input, `(N, S, S, 3)`."""
    paths = images.paths[:NUM_CALIBRATION]
    return np.concatenate(list(load_batches(paths, preprocess, 32)))


def spread(length: int, count: int) -> IntArray:
    """At most `count` indices spread evenly over a set, which is sorted by class."""
    return np.unique(np.linspace(0, length - 1, count).astype(np.int64))


def _by_turns(labels: IntArray) -> IntArray:
    """Indices that take one image of every class, then a second one of every class, and so on.

    A turn that is cut short has classes from all over the order, not the first ones, which may be
    the most frequent.
    """
    classes = np.unique(labels)
    turn = np.zeros(len(labels), dtype=np.int64)
    place = np.zeros(len(labels), dtype=np.int64)
    for rank, label in enumerate(classes):
        members = np.flatnonzero(labels == label)
        turn[members] = np.arange(len(members))
        place[members] = _reversed_bits(rank, (len(classes) - 1).bit_length())
    return np.lexsort((place, turn))


def _reversed_bits(number: int, length: int) -> int:
    """The first of any number of them lie evenly (van der Corput)."""
    return int(f"{number:0{length}b}"[::-1], 2)
