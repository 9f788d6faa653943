"""Outputs of a published checkpoint come into the order of the data's classes."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from deitlt.student import StudentConfig, load_student
from deitlt.weights import Card, load_weights
from export.class_order import original_numbers
from export.import_checkpoint import main
from export.official import recognise
from tests.official_support import shapes_of, student_file, student_tensors, tensors

ClassTree = Callable[[Path, Mapping[str, int]], Path]
Tensors = dict[str, torch.Tensor]

# Classes 1 and 3 have as many images.
COUNTS = {"ant": 2, "bee": 4, "cat": 1, "dog": 4, "eel": 5}
NUMPY_COUNTS = np.array(list(COUNTS.values()))
STABLE = [3, 1, 4, 2, 0]
OTHER = [3, 2, 4, 1, 0]  # what another NumPy might have made of the tie


@pytest.fixture(scope="module")
def weights() -> Tensors:
    config = StudentConfig(size="pico", img_size=16, patch_size=8, num_classes=len(COUNTS))
    return student_tensors(config)


@pytest.fixture
def data(class_tree: ClassTree, tmp_path: Path) -> Path:
    return class_tree(tmp_path / "data", COUNTS)


def imported(file: Path, data: Path, *options: str) -> tuple[Tensors, Card]:
    output = file.parent / "run"
    assert main([str(file), "--output", str(output), "--data", str(data), *options]) == 0
    model, card = load_student(output)
    return model.state_dict(), card


def check_rows(actual: Tensors, weights: Tensors, rows: list[int]) -> None:
    for name, tensor in weights.items():
        expected = tensor[rows] if name.startswith("head") else tensor
        assert torch.equal(actual[name], expected), name


def official_map(counts: list[int]) -> list[int]:
    """As the official data sets make it, but with a stable sort."""
    class_map = [0] * len(counts)
    for rank, number in enumerate(np.argsort(-np.array(counts), kind="stable")):
        class_map[number] = rank
    return class_map


def test_the_maps_of_this_test_are_right() -> None:
    assert official_map(list(COUNTS.values())) == STABLE
    assert sorted(NUMPY_COUNTS[np.argsort(OTHER)].tolist(), reverse=True) == [5, 4, 4, 2, 1]


def test_cifar_students_are_left_as_they_are(weights: Tensors, data: Path, tmp_path: Path) -> None:
    file = student_file(tmp_path / "a.pth", weights, data_set="CIFAR10LT")
    actual, card = imported(file, data)
    check_rows(actual, weights, [0, 1, 2, 3, 4])
    assert card.recipe["class_order"] == "original"


@pytest.mark.parametrize("data_set", ["IMAGENETLT", "INAT18"])
def test_the_map_inside_a_student_is_used(
    data_set: str,
    weights: Tensors,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    counts = [5, 4, 4, 2, 1]
    args = {"data_set": data_set, "class_map": OTHER, "cls_num_list": counts}
    actual, card = imported(student_file(tmp_path / "a.pth", weights, **args), data)
    check_rows(actual, weights, OTHER)
    assert card.train_counts == list(COUNTS.values())
    assert card.recipe["class_order"] == "class map of the checkpoint"
    assert capsys.readouterr().err == ""


def test_without_a_map_classes_are_counted_and_ties_are_told(
    weights: Tensors, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = {"data_set": "IMAGENETLT", "cls_num_list": None}
    actual, card = imported(student_file(tmp_path / "a.pth", weights, **args), data)
    check_rows(actual, weights, STABLE)
    assert card.train_counts == list(COUNTS.values())
    assert capsys.readouterr().err == (
        "import: warning: 2 of 5 classes have as many training images as another, so their order "
        "is a guess; pass the map of the training run with --class-map\n"
    )


@pytest.mark.parametrize("text", [json.dumps(OTHER), "\n".join(map(str, OTHER))])
def test_a_map_that_is_given_goes_first(
    text: str, weights: Tensors, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "map").write_text(text)
    args = {"class_map": STABLE, "cls_num_list": [5, 4, 4, 2, 1]}
    file = student_file(tmp_path / "a.pth", weights, **args)
    actual, card = imported(file, data, "--class-map", str(tmp_path / "map"))
    check_rows(actual, weights, OTHER)
    assert card.recipe["class_order"] == "class map given"
    assert capsys.readouterr().err == ""


def test_the_order_can_be_set(weights: Tensors, data: Path, tmp_path: Path) -> None:
    file = student_file(tmp_path / "a.pth", weights, data_set="INAT18", class_map=STABLE)
    check_rows(imported(file, data, "--class-order", "original")[0], weights, [0, 1, 2, 3, 4])


def test_classes_that_are_numbers_are_taken_by_number(
    class_tree: ClassTree, tmp_path: Path
) -> None:
    """Folders 0 to 11 are sorted as 0, 1, 10, 11, 2 and so on; the outputs are not."""
    names = sorted(str(number) for number in range(12))
    assert original_numbers(names).tolist() == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    assert original_numbers(["1", "2"]).tolist() == [0, 1]  # not numbered from 0
    counts = {name: 1 + (int(name) * 5) % 12 for name in names}
    config = StudentConfig(size="pico", img_size=16, patch_size=8, num_classes=12)
    weights = student_tensors(config)
    args = {"data_set": "INAT18", "cls_num_list": list(range(12, 0, -1))}
    data = class_tree(tmp_path / "data", counts)
    actual, card = imported(student_file(tmp_path / "a.pth", weights, **args), data)
    by_number = official_map([counts[str(number)] for number in range(12)])
    check_rows(actual, weights, [by_number[int(name)] for name in card.classes])
    assert card.train_counts == [counts[name] for name in card.classes]


def test_other_counts_than_those_of_the_data_are_told(
    weights: Tensors, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = student_file(tmp_path / "a.pth", weights, cls_num_list=[2, 4, 1, 4, 6])
    assert imported(file, data)[1].train_counts == [2, 4, 1, 4, 6]
    err = capsys.readouterr().err
    assert err.startswith("import: warning: 1 of 5 classes had another number of training images")


def test_data_without_training_images_do_where_the_checkpoint_says_the_rest(
    weights: Tensors,
    class_tree: ClassTree,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class_tree(tmp_path / "data" / "test", dict.fromkeys(COUNTS, 1))
    file = student_file(tmp_path / "a.pth", weights, cls_num_list=[9, 8, 7, 6, 5])
    assert imported(file, tmp_path / "data")[1].train_counts == [9, 8, 7, 6, 5]
    assert capsys.readouterr().err == ""
    torch.save({"model": weights}, file)
    arguments = [str(file), "--output", str(tmp_path / "b"), "--data", str(tmp_path / "data")]
    assert main(arguments) == 2
    assert "no train split, and the checkpoint states no counts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (
            {"class_map": [0, 1, 2, 3]},
            "the class map must have each row from 0 to 4 once; it has 4",
        ),
        ({"class_map": [0, 1, 2, 3, 3]}, "it has 5 entries, 4 of them different"),
        ({"class_map": None, "cls_num_list": [3, 2, 1]}, "states training counts of 3 classes"),
    ],
)
def test_what_a_checkpoint_says_must_fit_its_outputs(
    args: dict[str, list[int]],
    reason: str,
    weights: Tensors,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = student_file(tmp_path / "a.pth", weights, data_set="INAT18", **args)
    assert main([str(file), "--output", str(tmp_path / "run"), "--data", str(data)]) == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("text", ["1 2 x", "[1, [2]]", '{"a": 1}'])
def test_a_map_of_something_else_is_refused(
    text: str,
    weights: Tensors,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "map.txt").write_text(text)
    arguments = ["--output", str(tmp_path / "run"), "--data", str(data)]
    file = student_file(tmp_path / "a.pth", weights)
    assert main([str(file), *arguments, "--class-map", str(tmp_path / "map.txt")]) == 2
    assert "map.txt: not a JSON list or a text of whole numbers" in capsys.readouterr().err


def test_a_teacher_is_reordered_and_counts_the_subset_it_saw(
    class_tree: ClassTree, tmp_path: Path
) -> None:
    names = [f"c{number}" for number in range(10)]
    data = class_tree(tmp_path / "data", dict.fromkeys(names, 8))
    weights = tensors(shapes_of("ldam_resnet32"))
    torch.save({"state_dict": weights, "epoch": 200}, tmp_path / "a.pth.tar")
    (tmp_path / "map.json").write_text(json.dumps(list(range(9, -1, -1))))
    options = ["--imbalance-factor", "8", "--class-map", str(tmp_path / "map.json")]
    arguments = ["--output", str(tmp_path / "run"), "--data", str(data), *options]
    assert main([str(tmp_path / "a.pth.tar"), *arguments]) == 0
    actual, card = load_weights(tmp_path / "run", "teacher")
    assert torch.equal(actual["linear.weight"], weights["linear.weight"].T.flip(0))
    assert card.train_counts == [int(8 * 8 ** (-i / 9)) for i in range(9)] + [1]


@pytest.mark.parametrize("bias", [True, False])
def test_only_ldams_resnet50_has_its_classes_by_count(bias: bool) -> None:
    shapes = shapes_of("ldam_resnet50") | ({"fc.bias": [10]} if bias else {})
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    if bias:
        weights["fc.weight"] = weights["fc.weight"].T
    published = recognise(weights, by_count=False)
    assert published.by_count is not bias
    assert published.source == ("ResNet teacher" if bias else "LDAM teacher")
