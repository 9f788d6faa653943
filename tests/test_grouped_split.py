"""Held-out shares of whole groups: properties on random sets, and the best split by trying all."""

import itertools

import numpy as np
import pytest

from deitlt.longtail import carve_validation, class_counts

FRACTION = 0.2


def random_set(seed: int, num_groups: int, classes_a_group: int) -> tuple[np.ndarray, list[str]]:
    """Labels and groups of a long-tailed set of 4 classes; a group holds some of the classes."""
    generator = np.random.default_rng(seed)
    kinds = [generator.choice(4, classes_a_group, p=[0.5, 0.3, 0.15, 0.05], replace=False)]
    kinds += [generator.choice(4, classes_a_group, replace=False) for _ in range(num_groups - 1)]
    group = generator.integers(0, num_groups, 6 * num_groups)
    labels = np.array([generator.choice(kinds[g]) for g in group])
    return labels, [f"site {g}" for g in group]


def wanted(labels: np.ndarray) -> np.ndarray:
    """What each class would give without groups."""
    counts = class_counts(labels, 4).tolist()
    return np.array([max(1, round(FRACTION * n)) if n > 1 else 0 for n in counts])


def distance(held_out: np.ndarray, labels: np.ndarray) -> float:
    """Sum over classes of the squared gap between share held out and share wanted."""
    gap = class_counts(labels[held_out], 4) - wanted(labels)
    return float(((gap / np.maximum(class_counts(labels, 4), 1)) ** 2).sum())


@pytest.mark.parametrize("classes_a_group", [1, 2, 4])
@pytest.mark.parametrize("seed", range(20))
def test_no_group_is_on_both_sides_and_no_class_is_lost(seed: int, classes_a_group: int) -> None:
    labels, groups = random_set(seed, num_groups=12, classes_a_group=classes_a_group)
    train, validation = carve_validation(labels, 4, FRACTION, seed, groups)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()
    assert not {groups[i] for i in train} & {groups[i] for i in validation}
    assert set(labels[train]) == set(labels)


@pytest.mark.parametrize("classes_a_group", [1, 2])
def test_shares_are_as_near_as_the_best_of_all_splits(classes_a_group: int) -> None:
    excess = []
    for seed in range(40):
        labels, groups = random_set(seed, num_groups=9, classes_a_group=classes_a_group)
        names = sorted(set(groups))
        member = np.array([names.index(group) for group in groups])
        best = np.inf
        for chosen in itertools.product([False, True], repeat=len(names)):
            held_out = np.flatnonzero(np.array(chosen)[member])
            if set(np.delete(labels, held_out)) == set(labels):
                best = min(best, distance(held_out, labels))
        found = distance(carve_validation(labels, 4, FRACTION, seed, groups)[1], labels)
        assert found >= best - 1e-12
        excess.append(found - best)
    assert np.mean(np.array(excess) < 1e-12) >= 0.9
    assert max(excess) < 0.05


def test_images_that_are_their_own_groups_give_the_shares_exactly() -> None:
    labels = np.repeat([0, 1, 2, 3], [200, 31, 7, 1])
    _, validation = carve_validation(labels, 4, FRACTION, 0, [str(i) for i in range(len(labels))])
    assert class_counts(labels[validation], 4).tolist() == [40, 6, 1, 0]


def test_the_split_depends_on_seed_and_names_alone() -> None:
    labels, groups = random_set(0, num_groups=60, classes_a_group=2)
    order = np.random.default_rng(1).permutation(len(labels))

    def held(seed: int, order: np.ndarray) -> set[str]:
        shuffled = [groups[i] for i in order]
        _, validation = carve_validation(labels[order], 4, FRACTION, seed, shuffled)
        return {shuffled[i] for i in validation}

    first = held(0, np.arange(len(labels)))
    assert first == held(0, order)
    assert first != held(1, order)


def test_a_class_of_one_group_stays_in_training() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    train, validation = carve_validation(labels, 2, 0.5, 0, ["a", "a", "b", "b", "c", "c"])
    assert train[-2:].tolist() == [4, 5]
    assert validation.tolist() in ([0, 1], [2, 3])


def test_groups_too_big_to_be_a_small_share_stay_whole_in_training() -> None:
    labels = np.repeat([0, 1], 20)
    groups = [f"{label} {i % 2}" for i, label in enumerate(labels)]
    assert len(carve_validation(labels, 2, 0.1, 0, groups)[1]) == 0


def test_no_groups_are_held_out_at_fraction_zero() -> None:
    train, validation = carve_validation([0, 1, 1], 2, 0, 0, ["a", "b", "c"])
    assert train.tolist() == [0, 1, 2]
    assert len(validation) == 0


def test_thousands_of_groups_of_many_classes_end_near_the_share() -> None:
    generator = np.random.default_rng(0)
    group = generator.integers(0, 1000, 10_000)
    labels = (group + generator.integers(0, 10, 10_000)) % 100
    _, validation = carve_validation(labels, 100, 0.1, 0, [str(g) for g in group])
    share = class_counts(labels[validation], 100) / class_counts(labels, 100)
    assert 0.08 < share.min() <= share.max() < 0.12
