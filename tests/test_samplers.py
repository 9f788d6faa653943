"""Orders of an epoch against DeiT's sampler and against counting, and how steps are cut from them.

`official_sampler` is the rule of DeiT's RASampler, written down from its description: the
permutation of torch's generator seeded by the epoch, each index three times in a row, padded to a
multiple of the processes, every process taking each n-th, cut to floor(N / 256) * 256 / n.
"""

import math
from itertools import pairwise, product
from typing import get_args

import numpy as np
import pytest
import torch

from deitlt.errors import UsageError
from deitlt.longtail import IntArray
from training.config import Sampling
from training.engine.samplers import MicroBatches, epoch_order, official_repeated, repeat

CIFAR = [(12_406, 12_288, 4_096), (10_847, 10_752, 3_584)]


def official_sampler(num_images: int, epoch: int, rank: int, world: int) -> list[int]:
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(epoch))
    indices = order.repeat_interleave(3).tolist()
    total = math.ceil(num_images * 3 / world) * world
    indices += indices[: total - len(indices)]
    kept = math.floor(num_images // 256 * 256 / world)
    return indices[rank:total:world][:kept]


def permutation(num_images: int, epoch: int) -> IntArray:
    generator = torch.Generator().manual_seed(epoch)
    order: IntArray = torch.randperm(num_images, generator=generator).numpy()
    return order


def labels_of(counts: list[int]) -> IntArray:
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize(("num_images", "samples", "unique"), CIFAR)
def test_repeated_augmentation_is_deits_on_one_process(
    num_images: int, samples: int, unique: int
) -> None:
    ours = official_repeated(permutation(num_images, epoch=7))
    assert ours.tolist() == official_sampler(num_images, 7, 0, 1)
    assert len(ours) == samples
    assert len(np.unique(ours)) == unique


@pytest.mark.parametrize("world", [2, 4])
def test_the_processes_of_deit_show_the_same_images_together(world: int) -> None:
    """Deviation: DeiT deals out an image's three views to the processes like cards; here each
    process has whole micro-batches, so that the views of an image meet in one of them."""
    num_images = 12_406
    dealt = [official_sampler(num_images, 3, rank, world) for rank in range(world)]
    together = np.stack(dealt, axis=1).ravel()
    ours = official_repeated(permutation(num_images, epoch=3))
    assert together.tolist() == ours.tolist()
    # DeiT: neighbours in a process are every n-th of the order, so views are torn apart.
    assert all(rank != ours[: len(rank)].tolist() for rank in dealt)
    micro = [MicroBatches.of(len(ours), 384, 96, rank, world) for rank in range(world)]
    for cut in micro:
        for step in range(cut.num_steps(len(ours))):
            for number in cut.of_step(step, len(ours)):
                _, views = np.unique(ours[number * 96 : (number + 1) * 96], return_counts=True)
                assert set(views.tolist()) == {3}


@pytest.mark.parametrize(("num_images", "samples", "unique"), CIFAR)
def test_the_order_of_an_epoch_has_the_official_lengths(
    num_images: int, samples: int, unique: int
) -> None:
    order = epoch_order("repeated", np.zeros(num_images, np.int64), seed=0, epoch=5)
    images, views = np.unique(order, return_counts=True)
    assert (len(order), len(images), set(views.tolist())) == (samples, unique, {3})
    assert (order.reshape(-1, 3) == order[::3, None]).all()  # copies are neighbours
    other = epoch_order("repeated", np.zeros(num_images, np.int64), seed=0, epoch=6)
    # Drawn anew: about a third of the next epoch's images were in this one.
    assert np.isin(np.unique(other), images).mean() == pytest.approx(unique / num_images, abs=0.03)


def test_a_set_below_256_images_still_has_an_epoch_of_its_own_length() -> None:
    assert official_sampler(100, 0, 0, 1) == []
    order = epoch_order("repeated", np.zeros(100, np.int64), 0, 0)
    assert len(order) == 100
    assert len(np.unique(order)) == 34


@pytest.mark.parametrize("num_images", [3, 9, 100, 1001])
@pytest.mark.parametrize("first", [0, 6])
def test_three_epochs_of_full_repetition_show_every_image_three_times(
    num_images: int, first: int
) -> None:
    labels = np.zeros(num_images, np.int64)
    orders = [epoch_order("repeated_full", labels, 1, epoch) for epoch in range(first, first + 3)]
    assert np.bincount(np.concatenate(orders), minlength=num_images).tolist() == [3] * num_images
    for order in orders:
        assert (order.reshape(-1, 3) == order[::3, None]).all()


def test_full_repetition_shuffles_anew_after_three_epochs() -> None:
    labels = np.zeros(300, np.int64)
    assert not np.array_equal(
        np.sort(epoch_order("repeated_full", labels, 0, 0)),
        np.sort(epoch_order("repeated_full", labels, 0, 3)),
    )


def test_every_image_is_shown_once_by_default() -> None:
    order = epoch_order("all", np.zeros(1000, np.int64), 0, 0)
    assert sorted(order.tolist()) == list(range(1000))
    assert order.tolist() != list(range(1000))


def chi_square(observed: IntArray) -> float:
    expected = observed.sum() / len(observed)
    return float(((observed - expected) ** 2 / expected).sum())


def test_balanced_classes_and_the_images_of_a_class_are_equally_likely() -> None:
    counts = [500, 60, 7, 3]
    labels = np.random.default_rng(0).permutation(labels_of(counts))
    drawn = np.concatenate([epoch_order("balanced", labels, 0, epoch) for epoch in range(100)])
    assert len(drawn) == 100 * len(labels)
    # Chi-square beyond its 99.9 % point: 3, 6 and 59 degrees of freedom.
    assert chi_square(np.bincount(labels[drawn])) < 16.3
    for klass, limit in ((2, 22.5), (1, 98.3)):
        images = np.flatnonzero(labels == klass)
        assert chi_square(np.array([(drawn == image).sum() for image in images])) < limit


def test_balanced_drawing_leaves_out_absent_classes() -> None:
    labels = np.array([0, 0, 0, 3, 3, 5])
    drawn = epoch_order("balanced", labels, 0, 0)
    assert set(drawn.tolist()) <= set(range(6))
    assert len(drawn) == 6


@pytest.mark.parametrize("sampling", get_args(Sampling))
def test_an_order_follows_from_seed_epoch_and_draw_alone(sampling: Sampling) -> None:
    labels = labels_of([200, 80, 20])

    def order(seed: int, epoch: int, draw: int = 0) -> list[int]:
        np.random.seed(epoch)  # global generators take no part
        return [int(i) for i in epoch_order(sampling, labels, seed, epoch, draw=draw)]

    first = order(0, 0)
    assert order(0, 0) == first
    others = [order(1, 0), order(0, 1), order(0, 0, draw=1)]
    assert all(other != first for other in others)
    assert all(a != b for a, b in pairwise(others))


def test_repeating_keeps_the_order() -> None:
    assert repeat(np.array([4, 1, 3])).tolist() == [4, 4, 4, 1, 1, 1, 3, 3, 3]


@pytest.mark.parametrize(("num_images", "batch", "micro"), [(100, 16, 4), (97, 24, 4), (64, 64, 8)])
@pytest.mark.parametrize("world", [1, 2])
def test_processes_share_out_the_steps_of_one(
    num_images: int, batch: int, micro: int, world: int
) -> None:
    alone = MicroBatches.of(num_images, batch, micro, 0, 1)
    shared = [MicroBatches.of(num_images, batch, micro, rank, world) for rank in range(world)]
    for cut in shared:
        assert (cut.size, cut.per_step) == (alone.size, alone.per_step)
        # An odd micro-batch left over has no partner in the other process.
        assert cut.num_micro(num_images) == num_images // micro // world * world
    for step in range(shared[0].num_steps(num_images)):
        parts = [list(cut.of_step(step, num_images)) for cut in shared]
        assert len({len(part) for part in parts}) == 1  # nobody waits for a gradient in vain
        together = sorted(number for part in parts for number in part)
        assert len(set(together)) == len(together)
        whole = [n for n in alone.of_step(step, num_images) if n < shared[0].num_micro(num_images)]
        assert together == whole


def test_the_last_step_of_an_epoch_may_be_incomplete() -> None:
    """CIFAR-100-LT: 10,752 samples in micro-batches of 128, 8 a step: 84 = 10 * 8 + 4."""
    cut = MicroBatches.of(10_847, 1024, 128, 0, 1)
    assert (cut.num_micro(10_752), cut.num_steps(10_752)) == (84, 11)
    assert [len(cut.of_step(step, 10_752)) for step in range(11)] == [8] * 10 + [4]
    assert cut.of_step(10, 10_752) == range(80, 84)


def test_without_a_micro_batch_size_processes_halve_the_batch() -> None:
    for world, rank in product((1, 2, 4), (0,)):
        cut = MicroBatches.of(1000, 64, None, rank, world)
        assert (cut.size, cut.per_step) == (64 // world, world)


@pytest.mark.parametrize(("num_images", "world", "size"), [(7, 1, 6), (30, 1, 30), (30, 2, 14)])
def test_a_set_smaller_than_a_batch_makes_one_step_of_even_micro_batches(
    num_images: int, world: int, size: int
) -> None:
    cut = MicroBatches.of(num_images, 32, None, 0, world)
    assert (cut.size, cut.num_steps(num_images)) == (size, 1)


@pytest.mark.parametrize("num_images", [1000, 130, 31])
def test_a_small_set_does_not_outgrow_the_micro_batch_that_fits_the_memory(num_images: int) -> None:
    cut = MicroBatches.of(num_images, 1024, 16, 0, 1)
    assert cut.size <= 16
    assert cut.num_steps(num_images) == 1
    assert cut.num_micro(num_images) >= 1


def test_batches_that_cannot_be_shared_out_are_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match="--batch-size 30 does not divide among 4 processes"):
        MicroBatches.of(1000, 30, None, 0, 4)
    with pytest.raises(UsageError, match="choose a smaller --micro-batch-size"):
        MicroBatches.of(1000, 96, 32, 0, 2)
    for num_images, world in ((1, 1), (3, 2)):
        with pytest.raises(UsageError, match=f"{num_images} training images are too few"):
            MicroBatches.of(num_images, 32, 8, 0, world)
