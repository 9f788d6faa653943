"""List files of ImageNet-LT and iNaturalist: classes, splits, names, and mistakes in one line."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from deitlt.errors import DataError
from deitlt.labelled import inspect_labelled, read_labelled

Lists = Callable[[Mapping[str, Sequence[str]]], Path]


@pytest.fixture
def lists(tmp_path: Path, png: Callable[[int], bytes]) -> Lists:
    """Writes list files by name, and an image for each row that has a path and a number."""

    def make(files: Mapping[str, Sequence[str]]) -> Path:
        for name, rows in files.items():
            (tmp_path / name).write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
            for row in rows:
                path = tmp_path / row.rpartition(" ")[0]
                path.parent.mkdir(parents=True, exist_ok=True)
                if path != tmp_path:
                    path.write_bytes(png(0))
        return tmp_path

    return make


IMAGENET = {
    "ImageNet_LT_train.txt": ["train/n02/a.JPEG 0", "train/n01/b.JPEG 1", "train/n02/c.JPEG 0"],
    "ImageNet_LT_val.txt": ["train/n01/d.JPEG 1"],
    "ImageNet_LT_test.txt": ["val/n01/e.JPEG 1", "val/n02/f.JPEG 0"],
}
INATURALIST = {
    "iNaturalist18_train.txt": [f"train_val2018/Aves/{n}/{n}.jpg {n}" for n in range(12)],
    "iNaturalist18_val.txt": [f"train_val2018/Aves/{n}/v{n}.jpg {n}" for n in (11, 3)],
}


def refusal(source: Path, classes: list[str] | None = None) -> str:
    """The one line of a refusal, which the doctor must be given too."""
    with pytest.raises(DataError) as caught:
        read_labelled(source, classes)
    text = str(caught.value)
    assert "\n" not in text
    assert inspect_labelled(source, classes).faults[0].text == text
    return text


def test_imagenet_lt_keeps_its_numbers_and_takes_its_folders_for_names(lists: Lists) -> None:
    root = lists(IMAGENET)
    splits = read_labelled(root)
    assert list(splits) == ["train", "val", "test"]
    # Sorted by name, n01 would be class 0; sorted by count too, had it more images.
    assert all(split.classes == ["n02", "n01"] for split in splits.values())
    train = splits["train"]
    assert train.labels.tolist() == [0, 0, 1]
    found = [path.relative_to(root).as_posix() for path in train.paths]
    assert found == ["train/n02/a.JPEG", "train/n02/c.JPEG", "train/n01/b.JPEG"]
    assert splits["val"].labels.tolist() == [1]
    assert splits["test"].labels.tolist() == [0, 1]
    assert train.groups is None


def test_classes_are_in_the_order_of_numbers_not_of_their_digits(lists: Lists) -> None:
    splits = read_labelled(lists(INATURALIST))
    assert splits["train"].classes == [str(n) for n in range(12)]
    assert splits["train"].labels.tolist() == list(range(12))


def test_inaturalists_val_list_is_for_evaluation_only(lists: Lists) -> None:
    root = lists(INATURALIST)
    assert list(read_labelled(root)) == ["train", "test"]
    assert read_labelled(root)["test"].labels.tolist() == [3, 11]
    notes = inspect_labelled(root).notes
    assert any("iNaturalist18_val.txt is read as test" in note for note in notes)
    (root / "iNaturalist18_test.txt").write_text("train_val2018/Aves/5/5.jpg 5\n")
    assert {name: len(split) for name, split in read_labelled(root).items()} == {
        "train": 12,
        "val": 2,
        "test": 1,
    }


def test_any_of_the_lists_leads_to_all_with_names_alike(lists: Lists) -> None:
    root = lists(IMAGENET | {"Places_LT_train.txt": ["a/x.jpg 0", "b/x.jpg 1"]})
    with pytest.raises(DataError, match=r"several training lists, ImageNet_LT_train\.txt and P"):
        read_labelled(root)
    for name in IMAGENET:
        assert {k: len(v) for k, v in read_labelled(root / name).items()} == {
            "train": 3,
            "val": 1,
            "test": 2,
        }
    assert list(read_labelled(root / "Places_LT_train.txt")) == ["train"]


def test_lists_count_before_the_class_folders_beside_them(lists: Lists) -> None:
    root = lists({"x_train.txt": ["train/a/1.png 0", "train/b/1.png 1"]})
    (root / "train" / "a" / "2.png").touch()
    assert len(read_labelled(root)["train"]) == 2


def test_paths_may_hold_spaces_and_lines_may_end_as_on_windows(lists: Lists) -> None:
    root = lists({"x_train.txt": ["my birds/a b 1.png 0", "my cats/c.png 1"]})
    file = root / "x_train.txt"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    train = read_labelled(root)["train"]
    assert train.classes == ["my birds", "my cats"]
    assert train.paths[0] == root / "my birds" / "a b 1.png"


@pytest.mark.parametrize(
    "rows",
    [
        ["images/1.png 0", "images/2.png 1"],
        ["1.png 0", "2.png 1"],
        ["in/door/1.png 0", "out/door/1.png 1"],
        ["a/1.png 0", "b/1.png 0", "c/1.png 1"],
    ],
    ids=["one-folder", "no-folder", "two-classes-one-name", "one-class-two-names"],
)
def test_without_a_folder_a_class_the_number_is_the_name(rows: list[str], lists: Lists) -> None:
    assert read_labelled(lists({"x_train.txt": rows}))["train"].classes == ["0", "1"]


def test_a_list_to_evaluate_on_alone_takes_the_classes_of_a_model(lists: Lists) -> None:
    root = lists({"x_test.txt": ["val/n1/a.png 1", "val/n0/b.png 0"]})
    file = root / "x_test.txt"
    assert read_labelled(file, ["n1", "n0", "n2"])["test"].labels.tolist() == [1, 0]
    assert read_labelled(file, ["0", "1"])["test"].labels.tolist() == [0, 1]
    assert "class '0' of test is not among the 2 classes" in refusal(file, ["cat", "dog"])


def test_files_through_links_count(lists: Lists, tmp_path: Path) -> None:
    root = lists(IMAGENET)
    real = root / "train" / "n02" / "a.JPEG"
    real.rename(tmp_path / "elsewhere")
    real.symlink_to(tmp_path / "elsewhere")
    assert len(read_labelled(root)["train"]) == 3
    (tmp_path / "elsewhere").unlink()
    assert "there is no file" in refusal(root)


@pytest.mark.parametrize(
    ("rows", "fragment"),
    [
        (["a/1.png 0", "b/1.png"], "x_train.txt, line 2: 'b/1.png' is not a path, a space"),
        (["a/1.png 0", "b/1.png -1"], "line 2: 'b/1.png -1' is not a path, a space and a class"),
        (["a/1.png 0", "b/1.png 1.0"], "line 2"),
        (["a/1.png 0", "b/1.png ٣"], "line 2"),
        (["a/1.png 0", "b/1.png 9999999999"], "line 2"),
        (["a/1.png 0", "b/1.png 2"], "class 1 has no images here; "),
        (["a/1.png 1", "b/1.png 2"], "class 0 has no images here; "),
        (["a/1.png 3", "b/1.png 5"], "class 0 has no images here, nor have 3 more; "),
        (["a/1.png 0", "b/1.png 999999999"], "class 1 has no images here, nor have 999999997 more"),
        (["a/1.png 0"], "at least two classes"),
        ([], "no images in this list"),
        ([" ", ""], "no images in this list"),
    ],
)
def test_mistakes_in_a_training_list(rows: list[str], fragment: str, lists: Lists) -> None:
    assert fragment in refusal(lists({"x_train.txt": rows}))


@pytest.mark.parametrize(
    ("rows", "fragment"),
    [
        (["t/n0/1.png 0", "t/n2/2.png 2"], "x_test.txt, line 2: class 2 is not in x_train.txt"),
        (["t/n1/1.png 0"], "folder 'n1' is class 0 here, but class 1 in x_train.txt"),
    ],
)
def test_a_list_at_odds_with_the_training_list(
    rows: list[str], fragment: str, lists: Lists
) -> None:
    train = ["t/n0/0.png 0", "t/n1/0.png 1"]
    assert fragment in refusal(lists({"x_train.txt": train, "x_test.txt": rows}))


def test_a_gap_is_named_by_the_folder_another_list_has(lists: Lists) -> None:
    root = lists({"x_train.txt": ["a/1.png 0", "c/1.png 2"], "x_test.txt": ["b/1.png 1"]})
    assert "class 1 (folder 'b') has no images here" in refusal(root)


def test_a_missing_file_is_named_with_its_list_and_line(lists: Lists) -> None:
    root = lists(IMAGENET)
    (root / "train" / "n01" / "b.JPEG").unlink()
    expected = f"{root}/ImageNet_LT_train.txt, line 2: there is no file {root}/train/n01/b.JPEG"
    assert refusal(root) == expected


def test_a_file_that_is_no_text(lists: Lists) -> None:
    root = lists(IMAGENET)
    (root / "ImageNet_LT_val.txt").write_bytes("train/n01/ä.JPEG 1\n".encode("latin-1"))
    assert "ImageNet_LT_val.txt: not a UTF-8 text file" in refusal(root)


def test_a_text_file_of_another_name_is_a_csv(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a/1.png 0\n")
    assert "*_train.txt, *_val.txt or *_test.txt" in refusal(tmp_path / "train.txt")
