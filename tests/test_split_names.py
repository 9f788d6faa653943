"""What a split may be called, and what is said of folders that are none."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from deitlt.errors import DataError
from deitlt.labelled import inspect_labelled, read_labelled
from training.doctor import DoctorCommand, describe, examine

Tree = Callable[[Path, Mapping[str, int]], Path]


@pytest.mark.parametrize("names", [
    ("train", "valid", "test"), ("Train", "Validation", "Test"), ("training", "VAL", "testing"),
])  # fmt: skip
def test_splits_are_known_by_their_usual_names(
    names: tuple[str, str, str], tmp_path: Path, class_tree: Tree
) -> None:
    for number, name in enumerate(names, start=1):
        class_tree(tmp_path / name, {"a": number, "b": 1})
    splits = read_labelled(tmp_path)
    counts = {name: split.counts().tolist() for name, split in splits.items()}
    assert counts == {"train": [1, 1], "val": [2, 1], "test": [3, 1]}
    assert [path.parents[1].name for path in splits["val"].paths] == [names[1]] * 3


def test_two_folders_of_one_split_are_refused(tmp_path: Path, class_tree: Tree) -> None:
    for name in ("train", "val", "valid"):
        class_tree(tmp_path / name, {"a": 1, "b": 1})
    with pytest.raises(DataError, match="val and valid are both val; make one folder of them"):
        read_labelled(tmp_path)
    (fault,) = inspect_labelled(tmp_path).faults
    assert fault.kind == "split_twice"


def test_the_doctor_names_classes_and_folders_that_are_not_read(
    tmp_path: Path, class_tree: Tree
) -> None:
    class_tree(tmp_path / "train", {f"class {number:02}": 2 for number in range(12)})
    for name in "abcdefg":
        class_tree(tmp_path / name, {"class 00": 1})
    lines = describe(examine(DoctorCommand(data=tmp_path))).splitlines()
    assert lines[0].endswith("12 classes: " + "".join(f"class {n:02}, " for n in range(10)) + "...")
    assert lines[1] == "  not read, as no split is called so: a, b, c, d, e and 2 more"


def test_classes_may_be_called_like_splits(tmp_path: Path, class_tree: Tree) -> None:
    class_tree(tmp_path, {"Testing": 2, "Valid": 1})
    assert read_labelled(tmp_path)["all"].classes == ["Testing", "Valid"]
