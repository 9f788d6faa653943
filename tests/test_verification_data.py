"""Which images an export is verified and calibrated on."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from deitlt.errors import DataError
from deitlt.labelled import read_labelled
from deitlt.longtail import head_mid_tail
from export import verification_data
from export.verification_data import pick_split

Tree = Callable[[Path, Mapping[str, int]], Path]


@pytest.mark.parametrize("num_classes", [3, 10, 97, 1000])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_fewer_images_than_classes_come_from_all_over(num_classes: int, share: float) -> None:
    labels = np.repeat(np.arange(num_classes), 2)
    chosen = labels[verification_data._by_turns(labels)[: max(1, round(share * num_classes))]]
    assert len(set(chosen)) == len(chosen)
    covered = np.sort(np.concatenate([chosen, [-1, num_classes]]))
    assert np.diff(covered).max() <= 2 * num_classes / len(chosen) + 1


def test_every_class_comes_before_any_comes_again() -> None:
    labels = np.array([0] * 5 + [1] * 3 + [2] * 1)
    chosen = labels[verification_data._by_turns(labels)]
    assert sorted(chosen[:3]) == [0, 1, 2]
    assert sorted(chosen[3:5]) == [0, 1]
    assert sorted(chosen) == labels.tolist()


def test_a_subset_has_images_of_every_group(tmp_path: Path, class_tree: Tree) -> None:
    classes = {f"c{i:02}": 1 for i in range(60)}
    _, images = pick_split(class_tree(tmp_path / "data", classes), list(classes), None, 18)
    groups = head_mid_tail(np.arange(60, 0, -1))
    present = {name for name, members in groups.items() if set(members) & set(images.labels)}
    assert present == {"head", "mid", "tail"}


def test_a_class_that_cannot_be_written_down_is_refused(tmp_path: Path, class_tree: Tree) -> None:
    class_tree(tmp_path / "data", {"caf\udce9": 1, "tea": 1})
    with pytest.raises(DataError, match=r"class 'caf\\udce9' is not named in UTF-8"):
        read_labelled(tmp_path / "data")
