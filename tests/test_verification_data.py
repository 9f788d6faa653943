"""Which images an export is verified and calibrated on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deitlt.errors import DataError
from deitlt.labelled import read_labelled
from deitlt.longtail import head_mid_tail
from deitlt.preprocess import PreprocessSpec
from deitlt.run_splits import load_splits
from deitlt.weights import Card
from export import verification_data
from export.verification_data import judged_images, training_images

Tree = Callable[[Path, Mapping[str, int]], Path]
DRAWN = {"imbalance_factor": 4, "subset_seed": 0, "val_fraction": 0.25, "split_seed": 1}


def card_of(classes: list[str], **fields: Any) -> Card:
    kept: dict[str, Any] = {"train_files_sha256": "", "recipe": {}, **fields}
    return Card(
        kind="student",
        architecture={},
        classes=classes,
        train_counts=[1] * len(classes),
        preprocess=PreprocessSpec(8),
        epoch=1,
        **kept,
    )


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
    data, card = class_tree(tmp_path / "data", classes), card_of(list(classes))
    _, images = judged_images(data, card, None, 18)
    groups = head_mid_tail(np.arange(60, 0, -1))
    present = {name for name, members in groups.items() if set(members) & set(images.labels)}
    assert present == {"head", "mid", "tail"}


def test_a_class_that_cannot_be_written_down_is_refused(tmp_path: Path, class_tree: Tree) -> None:
    class_tree(tmp_path / "data", {"caf\udce9": 1, "tea": 1})
    with pytest.raises(DataError, match=r"class 'caf\\udce9' is not named in UTF-8"):
        read_labelled(tmp_path / "data")


def test_a_model_is_verified_on_what_its_run_held_out(
    tmp_path: Path, class_tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a tree without marked splits, where all images would be mostly those it has learnt."""
    data = class_tree(tmp_path / "data", {"a": 16, "b": 16, "c": 16})
    run = load_splits(data, DRAWN)
    card = card_of(["a", "b", "c"], recipe=DRAWN, train_files_sha256=run.train_sha256)
    split, images = judged_images(data, card, None, None)
    assert run.val is not None
    assert (split, images.paths) == ("val", run.val.paths)
    assert set(training_images(data, None, card).paths) == set(run.train.paths)
    assert capsys.readouterr().err == ""
    assert judged_images(data, card, "all", None)[1].paths != run.val.paths
    assert f"trained on {len(run.train)} of these 48 images" in capsys.readouterr().err
    other = class_tree(tmp_path / "other", {"a": 3, "b": 2, "c": 1})
    assert judged_images(other, card, None, None)[0] == "all"
