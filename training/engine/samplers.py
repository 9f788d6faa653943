"""Which images an epoch shows, in which order, and which process takes which of them.

An order is a function of (seed, epoch); nothing depends on how many processes there are.
Legend: `N` training images.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deitlt.errors import UsageError
from deitlt.longtail import IntArray
from training.config import Sampling
from training.engine.seeding import Stream, generator

REPEATS = 3
# The official sampler cuts an epoch to a multiple of this.
RA_MULTIPLE = 256


def epoch_order(
    sampling: Sampling, labels: IntArray, seed: int, epoch: int, *, draw: int = 0
) -> IntArray:
    """Indices of the images of one epoch, in order; about `N` of them.

    Args:
        sampling: `all`, each image once; `repeated`, DeiT's repeated augmentation; `repeated_full`,
            the same but three consecutive epochs show every image; `balanced`, classes in equal
            shares with replacement (cRT).
        labels: class of each image, `(N,)`.
        seed: of the recipe.
        epoch: from 0.
        draw: another number draws another, independent order of the same epoch.
    """
    num_images = len(labels)
    if sampling == "repeated_full":
        # One permutation serves three epochs, a third of it each.
        order = generator(seed, Stream.ORDER, epoch // REPEATS, draw).permutation(num_images)
        return repeat(np.array_split(order, REPEATS)[epoch % REPEATS])
    rng = generator(seed, Stream.ORDER, epoch, draw)
    if sampling == "balanced":
        return balanced(labels, rng)
    order = rng.permutation(num_images)
    return official_repeated(order) if sampling == "repeated" else order


def num_samples(sampling: Sampling, num_images: int) -> int:
    """Samples that every epoch has; of three epochs of `repeated_full` the longest."""
    if sampling == "repeated":
        return num_images // RA_MULTIPLE * RA_MULTIPLE or num_images
    if sampling == "repeated_full":
        return -(-num_images // REPEATS) * REPEATS
    return num_images


def repeat(order: IntArray) -> IntArray:
    """Each index three times in a row, so that its views meet in one batch."""
    return np.repeat(order, REPEATS)


def official_repeated(order: IntArray) -> IntArray:
    """DeiT's repeated augmentation of a permutation `(N,)`, all processes together.

    Each index three times in a row, cut to `floor(N / 256) * 256`: an epoch shows about a third of
    the images. Sets below 256 images are cut to `N` (the official code would show none).
    """
    num_images = len(order)
    return repeat(order)[: num_samples("repeated", num_images)]


def balanced(labels: IntArray, rng: np.random.Generator) -> IntArray:
    """`N` indices drawn with replacement, first a class, then an image of it."""
    by_class = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    present = np.flatnonzero(counts)
    chosen = rng.choice(present, len(labels))
    within = (rng.random(len(labels)) * counts[chosen]).astype(np.int64)
    drawn: NDArray[np.int64] = by_class[starts[chosen] + within]
    return drawn


@dataclass(frozen=True)
class MicroBatches:
    """How the images of an epoch are cut into micro-batches, and those into steps.

    Micro-batch `m` of a step is computed by process `m % num_processes`; a step is the same whoever
    computes it.

    Attributes:
        size: images a micro-batch.
        per_step: micro-batches an optimiser step, over all processes.
        rank: this process.
        num_processes: how many there are.
    """

    size: int
    per_step: int
    rank: int = 0
    num_processes: int = 1

    @classmethod
    def of(
        cls, num_images: int, batch_size: int, micro: int | None, rank: int, num_processes: int
    ) -> "MicroBatches":
        """The cut for epochs of `num_images`; fewer than a batch make one step, of even parts.

        Raises:
            UsageError: the micro-batches of a step cannot be shared out evenly.
        """
        if num_images < batch_size:
            share = num_images // num_processes // 2 * 2
            size = min(micro or share, share)
            if size == 0:
                raise UsageError(f"{num_images} training images are too few to train on")
            per_step = num_images // (size * num_processes) * num_processes
            return cls(size, per_step, rank, num_processes)
        if batch_size % num_processes:
            raise UsageError(
                f"--batch-size {batch_size} does not divide among {num_processes} processes"
            )
        size = micro or batch_size // num_processes
        per_step = batch_size // size
        if per_step % num_processes:
            raise UsageError(
                f"--batch-size {batch_size} in micro-batches of {size} makes {per_step}, which do "
                f"not divide among {num_processes} processes; choose a smaller --micro-batch-size"
            )
        return cls(size, per_step, rank, num_processes)

    def num_micro(self, num_images: int) -> int:
        """Micro-batches of an epoch, as many for every process; an incomplete one is left out."""
        return num_images // self.size // self.num_processes * self.num_processes

    def filled(self, num_images: int) -> int:
        """`num_images`, and as many more as complete the last micro-batch of every process."""
        together = self.size * self.num_processes
        return -(-num_images // together) * together

    def num_steps(self, num_images: int) -> int:
        """Optimiser steps of an epoch; the last may have fewer micro-batches (official code)."""
        return -(-self.num_micro(num_images) // self.per_step)

    def of_step(self, step: int, num_images: int) -> range:
        """Numbers, in the epoch, of this process's micro-batches of a step."""
        first = step * self.per_step
        last = min(first + self.per_step, self.num_micro(num_images))
        return range(first + self.rank, last, self.num_processes)
