"""Counts, subsets, weights and groups, against the paper's figures and LDAM's procedure."""

import numpy as np
import pytest

from deitlt.errors import DataError
from deitlt.longtail import (
    all_groups,
    carve_validation,
    class_counts,
    effective_number_weights,
    exponential_counts,
    head_mid_tail,
    imbalance_factor,
    long_tailed_subset,
    many_medium_few,
)

CIFAR = [
    (5000, 10, 100, 12406),
    (5000, 10, 50, 13996),
    (500, 100, 100, 10847),
    (500, 100, 50, 12608),
]


def test_counts_of_cifar10_lt() -> None:
    expected = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert exponential_counts(5000, 10, 100).tolist() == expected
    expected = [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100]
    assert exponential_counts(5000, 10, 50).tolist() == expected


def test_counts_of_cifar100_lt_at_the_group_edges() -> None:
    counts = exponential_counts(500, 100, 100)
    assert counts[[0, 99]].tolist() == [500, 5]
    assert counts[34:38].tolist() == [102, 98, 93, 89]
    assert counts[69:73].tolist() == [20, 19, 18, 17]


@pytest.mark.parametrize(("largest", "classes", "factor", "total"), CIFAR)
def test_totals_and_shape_of_the_profile(
    largest: int, classes: int, factor: float, total: int
) -> None:
    counts = exponential_counts(largest, classes, factor)
    assert counts.sum() == total
    assert (np.diff(counts) <= 0).all()
    assert imbalance_factor(counts) == factor


def test_factor_one_is_balanced() -> None:
    assert exponential_counts(7, 4, 1).tolist() == [7, 7, 7, 7]


@pytest.mark.parametrize(("factor", "classes"), [(0.01, 10), (100, 1)])
def test_profile_refuses_nonsense(factor: float, classes: int) -> None:
    with pytest.raises(DataError):
        exponential_counts(5000, classes, factor)


@pytest.mark.parametrize("seed", [0, 3])
def test_subset_is_ldams_draw(seed: int) -> None:
    labels = np.random.default_rng(5).permutation(np.repeat(np.arange(10), 40))
    # LDAM-DRW's imbalance_cifar.py in words: legacy global generator, classes ascending, the
    # indices of the class shuffled in place, the first n_i of them taken.
    np.random.seed(seed)
    expected: list[int] = []
    for label in range(10):
        indices = [i for i in range(len(labels)) if labels[i] == label]
        np.random.shuffle(indices)
        expected += indices[: int(40 * (1 / 20) ** (label / 9))]
    assert long_tailed_subset(labels, 10, 20, seed).tolist() == expected


def test_subset_has_the_profile_and_no_image_twice() -> None:
    labels = np.tile(np.arange(100), 500)
    chosen = long_tailed_subset(labels, 100, 100)
    assert len(np.unique(chosen)) == len(chosen) == 10847
    assert class_counts(labels[chosen], 100).tolist() == exponential_counts(500, 100, 100).tolist()


def test_subset_of_a_nearly_balanced_set_starts_at_the_smallest_class() -> None:
    labels = np.repeat([0, 1, 2], [60, 50, 55])
    chosen = long_tailed_subset(labels, 3, 25)
    assert class_counts(labels[chosen], 3).tolist() == exponential_counts(50, 3, 25).tolist()


@pytest.mark.parametrize(
    ("sizes", "factor", "fragment"),
    [
        ([50, 10, 50], 10, "balanced"),
        ([50, 0, 50], 10, "balanced"),
        ([50, 50, 50], 100, "without images"),
        ([50, 50, 50], 0.1, "below 1"),
    ],
)
def test_subset_refuses(sizes: list[int], factor: float, fragment: str) -> None:
    with pytest.raises(DataError, match=fragment) as caught:
        long_tailed_subset(np.repeat([0, 1, 2], sizes), 3, factor)
    assert "\n" not in str(caught.value)


def test_weights_are_the_tables() -> None:
    expected = [0.051, 0.077, 0.121, 0.195, 0.319, 0.525, 0.868, 1.443, 2.409, 3.993]
    weights = effective_number_weights(exponential_counts(5000, 10, 100))
    np.testing.assert_allclose(weights, expected, atol=5e-4)
    expected = [0.089, 0.127, 0.185, 0.276, 0.417, 0.634, 0.970, 1.489, 2.292, 3.521]
    weights = effective_number_weights(exponential_counts(5000, 10, 50))
    np.testing.assert_allclose(weights, expected, atol=5e-4)


@pytest.mark.parametrize(
    ("largest", "classes", "factor", "first", "last", "ratio"),
    [
        (5000, 10, 100, 0.051, 3.993, 78.9),
        (5000, 10, 50, 0.089, 3.521, 39.5),
        (500, 100, 100, 0.0449, 4.378, 97.6),
        (500, 100, 50, 0.0789, 3.849, 48.8),
    ],
)
def test_ends_of_the_weight_tables(
    largest: int, classes: int, factor: float, first: float, last: float, ratio: float
) -> None:
    weights = effective_number_weights(exponential_counts(largest, classes, factor))
    assert weights[0] == pytest.approx(first, abs=5e-4)
    assert weights[-1] == pytest.approx(last, abs=5e-4)
    assert weights[-1] / weights[0] == pytest.approx(ratio, abs=0.06)
    assert weights.mean() == pytest.approx(1)


def test_weights_of_equal_classes_are_one() -> None:
    np.testing.assert_allclose(effective_number_weights([3, 3, 3]), 1)


@pytest.mark.parametrize("factor", [50, 100])
@pytest.mark.parametrize(("classes", "cuts"), [(10, (3, 7)), (100, (36, 71))])
def test_papers_index_groups(factor: float, classes: int, cuts: tuple[int, int]) -> None:
    groups = head_mid_tail(exponential_counts(50 * 1000 // classes, classes, factor))
    low, high = cuts
    assert groups["head"] == list(range(low))
    assert groups["mid"] == list(range(low, high))
    assert groups["tail"] == list(range(high, classes))


def test_other_numbers_of_classes_are_cut_as_ten_are() -> None:
    groups = head_mid_tail(range(20, 0, -1))
    assert [groups[name] for name in ("head", "mid", "tail")] == [
        *([*range(6)], [*range(6, 14)], [*range(14, 20)])
    ]


def test_groups_follow_the_counts_not_the_class_index() -> None:
    counts = exponential_counts(5000, 10, 100)
    shuffle = np.random.default_rng(0).permutation(10)
    groups = head_mid_tail(counts[shuffle])
    assert sorted(shuffle[groups["tail"]].tolist()) == [7, 8, 9]


def counts_by_band(*bands: tuple[int, int, int], seed: int) -> np.ndarray:
    """Shuffled counts: so many classes with counts from low to high, for each band."""
    generator = np.random.default_rng(seed)
    counts = [generator.integers(low, high + 1, number) for number, low, high in bands]
    return generator.permutation(np.concatenate(counts))


@pytest.mark.parametrize("seed", range(3))
def test_groups_of_imagenet_lt(seed: int) -> None:
    # 385 classes above 100 images, 136 below 20, and of 20 to 23 more than the tail has left.
    bands = ((385, 101, 1280), (440, 24, 100), (39, 20, 23), (136, 5, 19))
    counts = counts_by_band(*bands, seed=seed)
    groups = all_groups(counts)
    assert list(groups) == ["head", "mid", "tail", "many", "medium", "few"]
    assert [len(members) for members in groups.values()] == [390, 445, 165, 385, 479, 136]
    assert max(counts[groups["tail"]]) <= 23
    assert min(counts[groups["mid"]]) <= 23, "the cut goes through classes of equal counts"


@pytest.mark.parametrize("seed", range(3))
def test_groups_of_inaturalist_2018(seed: int) -> None:
    bands = ((842, 101, 1000), (3701, 21, 100), (375, 20, 20), (3224, 2, 19))
    counts = counts_by_band(*bands, seed=seed)
    groups = all_groups(counts)
    assert [len(members) for members in groups.values()] == [842, 3701, 3599, 842, 4076, 3224]
    assert groups["head"] == groups["many"]
    assert groups["tail"] == np.flatnonzero(counts <= 20).tolist()


@pytest.mark.parametrize("classes", [2, 3, 7, 10, 100, 365, 1000, 8142])
def test_both_groupings_partition_the_classes(classes: int) -> None:
    counts = np.random.default_rng(classes).integers(1, 300, classes)
    groups = all_groups(counts)
    for names in (("head", "mid", "tail"), ("many", "medium", "few")):
        members = [index for name in names for index in groups[name]]
        assert sorted(members) == list(range(classes))
    rarest_head = min(counts[groups["head"]])
    assert all(counts[i] <= rarest_head for i in groups["mid"] + groups["tail"])


def test_ties_keep_class_order() -> None:
    # An unstable sort gives other groups on other processors from some 16 classes on.
    counts = np.random.default_rng(0).integers(1, 6, 1000).tolist()
    order = sorted(range(1000), key=lambda index: (-counts[index], index))
    groups = head_mid_tail(counts)
    assert groups["head"] == sorted(order[:390])
    assert groups["mid"] == sorted(order[390:835])
    assert groups["tail"] == sorted(order[835:])


def test_thresholds_of_many_medium_few() -> None:
    groups = many_medium_few([500, 101, 100, 20, 19, 1])
    assert groups == {"many": [0, 1], "medium": [2, 3], "few": [4, 5]}
    sizes = [len(g) for g in many_medium_few(exponential_counts(500, 100, 100)).values()]
    assert sizes == [35, 35, 30]
    sizes = [len(g) for g in many_medium_few(exponential_counts(500, 100, 50)).values()]
    assert sizes == [41, 41, 18]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5])
def test_validation_is_a_stratified_partition(fraction: float) -> None:
    counts = [200, 31, 7, 3, 2, 1]
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(6), counts))
    train, validation = carve_validation(labels, 6, fraction)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()
    held = class_counts(labels[validation], 6)
    assert held[-1] == 0, "a class of one image stays in training"
    for count, out in zip(counts[:-1], held[:-1], strict=True):
        assert 1 <= out < count
        assert out == 1 or abs(out - fraction * count) <= 0.5


def test_validation_repeats_with_its_seed_only() -> None:
    labels = np.repeat([0, 1], 100)
    first, again, other = (carve_validation(labels, 2, 0.2, seed)[1] for seed in (0, 0, 1))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_validation_without_groups_is_drawn_class_by_class(seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 5, 60)
    generator = np.random.RandomState(seed)
    expected: list[int] = []
    for label in range(5):
        indices = np.array([i for i in range(60) if labels[i] == label])
        generator.shuffle(indices)
        expected += indices[: max(1, round(0.3 * len(indices)))].tolist()
    train, validation = carve_validation(labels, 5, 0.3, seed)
    assert validation.tolist() == sorted(expected)
    assert train.tolist() == sorted(set(range(60)) - set(expected))


def test_no_validation_at_fraction_zero() -> None:
    train, validation = carve_validation([0, 1, 1], 2, 0)
    assert train.tolist() == [0, 1, 2]
    assert len(validation) == 0


@pytest.mark.parametrize("fraction", [-0.1, 0.51, float("nan")])
def test_validation_refuses_other_fractions(fraction: float) -> None:
    with pytest.raises(DataError, match="fraction"):
        carve_validation([0, 1], 2, fraction)
