"""Micro-batches of random views, from pixels that live on the training device or from workers.

Images of one common size, if they fit, are decoded once and live on the device as uint8; the whole
view is made there. Others are decoded (once, if they fit in memory) and cropped by worker
processes, with prefetching and pinned memory; the rest of the view is made on the device.

Legend: `B` images of a micro-batch, `S` image side, `N` training images.
"""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from deitlt.cores import usable_cores
from deitlt.errors import DeitLTError
from deitlt.labelled import LabelledImages
from deitlt.longtail import IntArray
from deitlt.preprocess import decode_file
from training.augmentation.operations import on_device
from training.augmentation.views import Plan, RandomView
from training.config import Sampling
from training.engine.distributed import World, speaks
from training.engine.samplers import MicroBatches, epoch_order, num_samples
from training.engine.seeding import Stream, generator
from training.engine.stopping import outlive_requests

# Decoded sets up to this size stay in memory.
CACHE_BYTES = 2 << 30

# Micro-batches that each worker keeps ahead.
PREFETCHED = 4

# Pixels of a view that are made at once: launching some hundred kernels takes the host as long for
# few images as for many. Steps with fewer than the first (1,024 images of 32 px) are joined, those
# with more than the second (1,337 of 224 px; half-made, some 4 GiB) made in parts.
PIXELS_AT_ONCE = {"cpu": (0, 0), "cuda": (1 << 20, 1 << 26)}

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class MicroBatch:
    """Images a forward pass.

    Attributes:
        views: one tensor `(B, 3, S, S)` a random view, normalised, on the device.
        labels: `(B,)`, on the device.
        number: of the micro-batch in its epoch, over all processes.
    """

    views: list[Tensor]
    labels: Tensor
    number: int


@dataclass(frozen=True)
class Ticket:
    """What a micro-batch is made of, before any pixel is touched."""

    number: int
    indices: IntArray
    plans: list[Plan]


def decode_all(images: LabelledImages, view: RandomView) -> list[Pixels] | None:
    """Every image as the view wants its sources, or None where they exceed `CACHE_BYTES`.

    Raises:
        ImageError: of the first file that cannot be decoded; the text names it.
    """

    def load(path: Path) -> Pixels:
        return view.prepare(decode_file(path))

    decoded: list[Pixels] = []
    size, threads = 0, _cores_of_one_process()
    quiet = None if speaks() else True
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(images), desc="reading images", unit="image", disable=quiet) as bar,
    ):
        # No more at once than there are threads: photographs of many megapixels fill memory.
        for start in range(0, len(images), threads):
            for pixels in pool.map(load, images.paths[start : start + threads]):
                size += pixels.nbytes
                if size > CACHE_BYTES:
                    return None
                decoded.append(pixels)
                bar.update()
    return decoded


def _cores_of_one_process() -> int:
    """Cores that decode for one of this machine's processes."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class Feed:
    """The training images of a run, epoch by epoch, step by step."""

    def __init__(
        self,
        images: LabelledImages,
        views: list[RandomView],
        world: World,
        *,
        batch_size: int,
        micro_batch_size: int | None,
        seed: int,
        sampling: Sampling = "all",
        companions: bool = False,
        num_workers: int | None = None,
    ) -> None:
        """Decode what can be kept.

        Args:
            images: what is trained on.
            views: random views made of each image.
            world: which micro-batches are this process's, and its device.
            batch_size: images a step over all processes.
            micro_batch_size: images a forward pass.
            seed: of the recipe.
            sampling: what an epoch shows.
            companions: give each micro-batch `B` more images from an independent order (GLMC).
            num_workers: decoding processes, where images do not live on the device.

        Raises:
            ImageError: a file cannot be decoded.
            UsageError: the batch does not divide among the processes.
        """
        self.images, self.views, self.world = images, views, world
        self.seed, self.sampling, self.companions = seed, sampling, companions
        self.num_samples = num_samples(sampling, len(images))
        self.cut = MicroBatches.of(
            self.num_samples, batch_size, micro_batch_size, world.rank, world.size
        )
        if sampling == "repeated_full" and self.num_samples >= batch_size:
            # Else the images of an incomplete micro-batch would be missing from the three epochs.
            self.num_samples = self.cut.filled(self.num_samples)
        decoded = decode_all(images, views[0])
        self._sources: Tensor | None = None
        if decoded is not None and len({pixels.shape for pixels in decoded}) == 1:
            stacked = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous()
            self._sources = stacked.to(world.device)
        else:
            self._loader = StreamedCrops(images.paths, decoded, views, num_workers, world.device)
        self._labels = torch.from_numpy(images.labels).to(world.device)

    @property
    def num_steps(self) -> int:
        """Optimiser steps an epoch."""
        return self.cut.num_steps(self.num_samples)

    @property
    def num_micro(self) -> int:
        """Micro-batches an epoch, over all processes."""
        return self.cut.num_micro(self.num_samples)

    def steps(self, epoch: int, start: int = 0) -> Iterator[list[MicroBatch]]:
        """This process's micro-batches of each step of an epoch, from step `start` on."""
        labels, draws = self.images.labels, range(2 if self.companions else 1)
        orders = [epoch_order(self.sampling, labels, self.seed, epoch, draw=n) for n in draws]
        # Where an epoch was filled up, its first images come once more at its end.
        orders = [np.resize(order, self.num_samples) for order in orders]
        if self._sources is not None:
            yield from self._steps_on_device(epoch, start, orders, self._sources)
            return
        numbers = [
            self.cut.of_step(step, self.num_samples) for step in range(start, self.num_steps)
        ]
        tickets = (self._ticket(epoch, number, orders) for step in numbers for number in step)
        cropped = self._loader.load(tickets)
        for step_numbers in numbers:
            yield [self._finished(*next(cropped)) for _ in step_numbers]

    def _steps_on_device(
        self, epoch: int, start: int, orders: list[IntArray], sources: Tensor
    ) -> Iterator[list[MicroBatch]]:
        """Steps whose views are made several at once, the same ones from wherever it starts."""
        few, _ = PIXELS_AT_ONCE[self.world.device.type]
        together = self._at_once(self.cut.per_step // self.cut.num_processes, few)
        for first in range(start - start % together, self.num_steps, together):
            steps = range(first, min(first + together, self.num_steps))
            tickets = [
                [self._ticket(epoch, number, orders) for number in numbers]
                for numbers in (self.cut.of_step(step, self.num_samples) for step in steps)
            ]
            made = self._views_on_device([t for own in tickets for t in own], sources)
            for step, own in zip(steps, tickets, strict=True):
                batches = [next(made) for _ in own]
                if step >= start:
                    yield batches

    def _at_once(self, num_micro: int, allowed: int) -> int:
        """How many times so many micro-batches have the allowed pixels, but at least once."""
        images = num_micro * self.cut.size * (2 if self.companions else 1)
        pixels = images * self.views[0].img_size ** 2
        return max(1, allowed // pixels)

    def _ticket(self, epoch: int, number: int, orders: list[IntArray]) -> Ticket:
        where = slice(number * self.cut.size, (number + 1) * self.cut.size)
        indices = np.concatenate([order[where] for order in orders])
        rng = generator(self.seed, Stream.IMAGE, epoch, number)
        return Ticket(number, indices, [view.draw(rng, len(indices)) for view in self.views])

    def _views_on_device(self, tickets: list[Ticket], sources: Tensor) -> Iterator[MicroBatch]:
        """Micro-batches, as many at once as `PIXELS_AT_ONCE` allows, not always those of a step.

        Half-made views take several times the memory of finished ones; of large images a smaller
        micro-batch then takes less.
        """
        _, most = PIXELS_AT_ONCE[self.world.device.type]
        together = self._at_once(1, most)
        for first in range(0, len(tickets), together):
            yield from self._made_on_device(tickets[first : first + together], sources)

    def _made_on_device(self, tickets: list[Ticket], sources: Tensor) -> list[MicroBatch]:
        """Micro-batches that are made together: a GPU is kept busy by few large kernels."""
        indices = np.concatenate([ticket.indices for ticket in tickets])
        where = on_device(indices, self.world.device)
        pixels, labels = sources[where], self._labels[where]
        sizes = [len(ticket.indices) for ticket in tickets]
        views = [
            view.apply(pixels, Plan.join([ticket.plans[i] for ticket in tickets])).split(sizes)
            for i, view in enumerate(self.views)
        ]
        parts = zip(tickets, zip(*views, strict=True), labels.split(sizes), strict=True)
        return [MicroBatch(list(own), mine, ticket.number) for ticket, own, mine in parts]

    def _finished(self, ticket: Ticket, crops: list[Tensor]) -> MicroBatch:
        """A micro-batch whose crops come from a worker."""
        device = self.world.device
        views = [
            view.apply_cropped(pixels.to(device, non_blocking=True), plan)
            for view, pixels, plan in zip(self.views, crops, ticket.plans, strict=True)
        ]
        return MicroBatch(views, self._labels[on_device(ticket.indices, device)], ticket.number)


class StreamedCrops:
    """Worker processes that decode and crop whole micro-batches.

    Args:
        paths: one file an image.
        decoded: the images as the views want their sources, if they are kept in memory.
        views: random views made of each image.
        num_workers: processes; None shares all cores among the GPUs and takes none on a CPU.
        device: where training goes on.
    """

    def __init__(
        self,
        paths: list[Path],
        decoded: list[Pixels] | None,
        views: list[RandomView],
        num_workers: int | None,
        device: torch.device,
    ) -> None:
        if num_workers is None:
            num_workers = 0 if device.type == "cpu" else _cores_of_one_process()
        self._tickets = _TicketSampler()
        self._loader = DataLoader(
            _Crops(paths, decoded, views),
            batch_size=None,
            sampler=self._tickets,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            prefetch_factor=PREFETCHED if num_workers else None,
            pin_memory=device.type == "cuda",
            multiprocessing_context=_forking() if num_workers else None,
            worker_init_fn=outlive_requests,
        )

    def load(self, tickets: Iterator[Ticket]) -> Iterator[tuple[Ticket, list[Tensor]]]:
        """Each ticket with its `(B, 3, S, S)` uint8 crops, one tensor a view."""
        self._tickets.tickets = tickets
        for loaded in self._loader:
            if isinstance(loaded, DeitLTError):
                raise loaded
            yield loaded


def _forking() -> str | None:
    """On Linux `fork`, which shares decoded images with the workers; elsewhere the system's own.

    Python 3.14 would copy them, gigabytes, into each.
    """
    return "fork" if sys.platform == "linux" else None


class _TicketSampler(Sampler[Ticket]):
    def __init__(self) -> None:
        self.tickets: Iterator[Ticket] = iter(())

    def __iter__(self) -> Iterator[Ticket]:
        return self.tickets


class _Crops(Dataset[tuple[Ticket, list[Tensor]] | DeitLTError]):
    def __init__(
        self, paths: list[Path], decoded: list[Pixels] | None, views: list[RandomView]
    ) -> None:
        self._paths, self._decoded, self._views = paths, decoded, views

    def __getitem__(self, ticket: Ticket) -> tuple[Ticket, list[Tensor]] | DeitLTError:
        """A micro-batch; an error is handed over as it is, not wrapped in a worker's traceback."""
        try:
            return self._crop(ticket)
        except DeitLTError as error:
            return error

    def _crop(self, ticket: Ticket) -> tuple[Ticket, list[Tensor]]:
        crops: list[list[Pixels]] = [[] for _ in self._views]
        pixels, last = None, -1
        for i, index in enumerate(ticket.indices):
            if self._decoded is not None:
                pixels = self._decoded[index]
            elif index != last or pixels is None:  # repeated views stand side by side
                pixels = self._views[0].prepare(decode_file(self._paths[index]))
            last = index
            for view, plan, out in zip(self._views, ticket.plans, crops, strict=True):
                out.append(view.crop(pixels, plan, i))
        stacked = [torch.from_numpy(np.stack(c)).permute(0, 3, 1, 2).contiguous() for c in crops]
        return ticket, stacked
