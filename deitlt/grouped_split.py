"""A held-out share of each class made of whole groups: sites, patients, bursts of one camera.

Images of a group resemble each other, so a model is only judged fairly on groups it has not seen.

Legend: `N` images, `C` classes.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

# Few groups come near the best split only from a lucky order, so several are tried; many groups do
# from any. Exchanges tried in all bound the time where hundreds of groups hold many classes each.
MAX_ORDERS = 16
MAX_TRIALS = 100_000

Composition = tuple[tuple[int, int], ...]
"""Images of each class in a group: `(class, images)`, ascending."""


def hold_out_groups(
    labels: NDArray[np.int64], groups: Sequence[str], targets: NDArray[np.int64], seed: int
) -> NDArray[np.bool_]:
    """Which images to hold out, `(N,)`: whole groups, and near `targets[c]` images of class c.

    Near means a small sum over classes of the squared gap between share held out and share wanted.
    Groups are taken in an order drawn from `seed` where no class gets too much; then one group goes
    out or in, or both at once, as long as that brings the shares nearer. The nearest of a few
    orders is returned: not always the best of all splits, but seldom far from it. No class loses
    its last image.

    Args:
        labels: class of each image, `(N,)`.
        groups: group of each image, `N` names.
        targets: images to hold out of each class, `(C,)`.
        seed: the same seed and group names give the same images, in whatever order they stand.
    """
    names = sorted(set(groups))
    images: dict[str, Counter[int]] = {name: Counter() for name in names}
    for group, label in zip(groups, labels.tolist(), strict=True):
        images[group][label] += 1
    sizes = {name: tuple(sorted(images[name].items())) for name in names}
    total = np.bincount(labels, minlength=len(targets)).tolist()
    generator = np.random.RandomState(seed)
    searches: list[_Search] = []
    while len(searches) < MAX_ORDERS and sum(search.trials for search in searches) < MAX_TRIALS:
        order = [names[i] for i in generator.permutation(len(names))]
        search = _Search({name: sizes[name] for name in order}, total, targets.tolist())
        search.fill()
        search.exchange()
        searches.append(search)
        if search.distance() == 0:
            break
    held = min(searches, key=_Search.distance).held
    return np.array([group in held for group in groups], dtype=np.bool_)


class _Search:
    """The groups held out, and how far each class is from its target."""

    def __init__(self, sizes: dict[str, Composition], total: list[int], targets: list[int]) -> None:
        self.held: set[str] = set()
        self.trials = 0
        self._sizes = sizes
        self._total = total
        self._targets = targets
        self._num_held = [0] * len(total)
        self._groups_of: list[list[str]] = [[] for _ in total]
        for group, composition in sizes.items():
            for label, _ in composition:
                self._groups_of[label].append(group)

    def fill(self) -> None:
        """Hold out groups in order, but none that gives a class too much."""
        for group, composition in self._sizes.items():
            if all(self._num_held[c] + number <= self._targets[c] for c, number in composition):
                self._move(group)

    def exchange(self) -> None:
        """Move one group, or swap two, until nothing brings the shares nearer."""
        improved = True
        while improved:
            improved = False
            for label in range(len(self._total)):
                if self._num_held[label] == self._targets[label]:
                    continue
                for pair in product(self._kinds(label, held=True), self._kinds(label, held=False)):
                    self.trials += 1
                    if self.trials > MAX_TRIALS:
                        return
                    if self._gain(*pair) > 1e-12:
                        self._move(*pair)
                        improved = True
                        break

    def distance(self) -> float:
        """Sum over classes of the squared gap between the shares held out and wanted."""
        classes = zip(self._num_held, self._targets, self._total, strict=True)
        return sum(((held - target) / max(1, total)) ** 2 for held, target, total in classes)

    def _kinds(self, label: int, *, held: bool) -> list[str | None]:
        """No group, and one of each composition among the groups of a class, held out or not."""
        groups = (group for group in self._groups_of[label] if (group in self.held) == held)
        return [None, *{self._sizes[group]: group for group in groups}.values()]

    def _changes(self, *groups: str | None) -> Counter[int]:
        """Images more, by class, that are held out once these groups have changed sides."""
        changes: Counter[int] = Counter()
        for group in filter(None, groups):
            sign = -1 if group in self.held else 1
            for label, number in self._sizes[group]:
                changes[label] += sign * number
        return changes

    def _gain(self, *groups: str | None) -> float:
        """How much nearer the shares come; 0 if a class would lose its last image."""
        gain = 0.0
        for label, change in self._changes(*groups).items():
            now, total = self._num_held[label], self._total[label]
            if now + change >= total:
                return 0.0
            before, after = now - self._targets[label], now + change - self._targets[label]
            gain += (before**2 - after**2) / total**2
        return gain

    def _move(self, *groups: str | None) -> None:
        for label, change in self._changes(*groups).items():
            self._num_held[label] += change
        self.held.symmetric_difference_update(group for group in groups if group is not None)
