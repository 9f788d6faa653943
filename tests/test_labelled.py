"""Labelled folders and CSVs: what is read, and that each mistake is named in one line."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from deitlt.errors import DataError
from deitlt.labelled import LabelledImages, image_files, inspect_labelled, read_labelled

Tree = Callable[[Path, Mapping[str, int]], Path]


@pytest.fixture
def images(tmp_path: Path, class_tree: Tree) -> Path:
    """Pictures `img/{ant,bee}/{0,1,2}.png` for CSVs to point at."""
    class_tree(tmp_path / "img", {"ant": 3, "bee": 3})
    return tmp_path


def write_csv(folder: Path, *lines: str) -> Path:
    file = folder / "labels.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def refusal(source: Path, classes: list[str] | None = None) -> str:
    """The one line of a refusal, which is the first fault that an inspection finds."""
    with pytest.raises(DataError) as caught:
        read_labelled(source, classes)
    text = str(caught.value)
    assert "\n" not in text
    if source.exists():
        assert inspect_labelled(source, classes).faults[0].text == text
    return text


def test_a_tree_with_splits(tmp_path: Path, class_tree: Tree) -> None:
    class_tree(tmp_path / "train", {"cat": 4, "bee": 2, "ant": 1})
    class_tree(tmp_path / "val", {"cat": 1, "ant": 2})
    class_tree(tmp_path / "test", {"bee": 1})
    splits = read_labelled(tmp_path)
    assert list(splits) == ["train", "val", "test"]
    assert all(split.classes == ["ant", "bee", "cat"] for split in splits.values())
    assert splits["train"].counts().tolist() == [1, 2, 4]
    assert splits["val"].counts().tolist() == [2, 0, 1]
    assert splits["test"].counts().tolist() == [0, 1, 0]
    for split in splits.values():
        names = [split.classes[label] for label in split.labels]
        assert names == [path.parent.name for path in split.paths]
        assert split.paths == sorted(split.paths)


def test_a_single_tree(tmp_path: Path, class_tree: Tree) -> None:
    class_tree(tmp_path / "b" / "deeper", {"1": 2})
    class_tree(tmp_path, {"a": 1})
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.md").touch()
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "a" / "UPPER.JPG").touch()
    splits = read_labelled(tmp_path)
    assert list(splits) == ["all"]
    found = [path.relative_to(tmp_path).as_posix() for path in splits["all"].paths]
    assert found == ["a/0.png", "a/UPPER.JPG", "b/deeper/1/0.png", "b/deeper/1/1.png"]
    assert splits["all"].labels.tolist() == [0, 0, 1, 1]
    assert len(splits["all"]) == len(list(image_files(tmp_path)))


@pytest.mark.parametrize("names", [["test"], ["val"], ["val", "test"]])
def test_a_tree_to_evaluate_on_needs_no_train(
    names: list[str], tmp_path: Path, class_tree: Tree
) -> None:
    for number, name in enumerate(names, start=1):
        class_tree(tmp_path / name, {"a": number, "b": 1})
    (tmp_path / ".cache" / "old").mkdir(parents=True)
    (tmp_path / "README.md").touch()
    splits = read_labelled(tmp_path, classes=["b", "c", "a"])
    counts = {name: split.counts().tolist() for name, split in splits.items()}
    assert counts == {name: [1, 0, number] for number, name in enumerate(names, start=1)}
    if len(names) == 1:
        assert read_labelled(tmp_path)[names[0]].classes == ["a", "b"]
    else:
        assert "has val and test, but no train" in refusal(tmp_path)


@pytest.mark.parametrize("names", [["bus", "train"], ["test", "train"], ["bus", "test"]])
def test_a_class_may_be_called_like_a_split(
    names: list[str], tmp_path: Path, class_tree: Tree
) -> None:
    class_tree(tmp_path, dict.fromkeys(names, 2))
    splits = read_labelled(tmp_path)
    assert list(splits) == ["all"]
    assert splits["all"].classes == names
    assert splits["all"].counts().tolist() == [2, 2]


def test_a_class_called_test_may_hold_folders_among_others(
    tmp_path: Path, class_tree: Tree
) -> None:
    class_tree(tmp_path / "test", {"deeper": 2})
    class_tree(tmp_path, {"bus": 1})
    assert read_labelled(tmp_path)["all"].counts().tolist() == [1, 2]


def test_beside_a_train_of_folders_another_folder_is_no_split(
    tmp_path: Path, class_tree: Tree
) -> None:
    class_tree(tmp_path / "train", {"a": 1, "b": 2})
    class_tree(tmp_path / "rejected", {"c": 1})
    splits = read_labelled(tmp_path)
    assert {name: split.counts().tolist() for name, split in splits.items()} == {"train": [1, 2]}


def test_a_subset_keeps_the_classes(tmp_path: Path, class_tree: Tree) -> None:
    whole = read_labelled(class_tree(tmp_path, {"a": 2, "b": 2}))["all"]
    part = whole.subset(whole.labels.argsort()[::-1][:1])
    assert part.classes == whole.classes
    assert part.labels.tolist() == [1]
    assert part.paths == [whole.paths[3]]


def test_groups_of_a_csv_follow_their_images(images: Path) -> None:
    file = write_csv(
        images,
        "image_path,label,group",
        "img/bee/0.png,bee,site 2",
        "img/ant/1.png,ant, site 1 ",
        "img/ant/0.png,ant,site 2",
    )
    whole = read_labelled(file)["all"]
    assert [path.name for path in whole.paths] == ["0.png", "1.png", "0.png"]
    assert whole.groups == ["site 2", "site 1", "site 2"]
    assert whole.subset(np.array([1, 0])).groups == ["site 1", "site 2"]
    file.write_text(file.read_text().replace(" site 1 ", ""))
    assert "some rows have no group" in refusal(file)


def test_without_groups_there_are_none(images: Path) -> None:
    rows = ["image_path,label,group", "img/ant/0.png,ant,", "img/bee/0.png,bee, "]
    whole = read_labelled(write_csv(images, *rows))["all"]
    assert whole.groups is None
    assert whole.subset(np.array([0])).groups is None
    assert LabelledImages(whole.paths, whole.labels, whole.classes).groups is None


def test_a_group_in_two_splits_is_refused(images: Path) -> None:
    rows = ["img/ant/0.png,ant,train,a", "img/bee/0.png,bee,train,b", "img/bee/1.png,bee,test,c"]
    file = write_csv(images, "image_path,label,split,group", *rows)
    assert read_labelled(file)["test"].groups == ["c"]
    file.write_text(file.read_text().replace(",c", ",b"))
    assert "group 'b' is in train and in test" in refusal(file)


def test_an_inspection_finds_every_fault_and_keeps_what_is_sound(images: Path) -> None:
    rows = [
        "img/ant/0.png,ant,train,a",
        "img/bee/0.png,bee,train,b",
        "img/bee/9.png,bee,train,b",
        "img/bee/1.png,,train,b",
        "img/bee/1.png,bee,dev,b",
        "img/ant/1.png,wasp,val,a",
    ]
    file = write_csv(images, "image_path,label,split,group", *rows)
    inspection = inspect_labelled(file)
    assert [fault.kind for fault in inspection.faults] == [
        "missing_file",
        "no_label",
        "unknown_split",
        "unknown_class",
        "group_in_two_splits",
    ]
    assert {name: split.labels.tolist() for name, split in inspection.splits.items()} == {
        "train": [0, 1],
        "val": [2],
    }
    assert inspection.splits["val"].classes == ["ant", "bee", "wasp"]
    assert inspection.layout == "csv"


def test_an_inspection_of_a_sound_tree_is_what_training_reads(
    tmp_path: Path, class_tree: Tree
) -> None:
    class_tree(tmp_path / "train", {"a": 1, "b": 2})
    class_tree(tmp_path / "test", {"b": 1})
    inspection = inspect_labelled(tmp_path)
    assert not inspection.faults
    assert list(inspection.splits) == ["train", "test"]
    for name, split in read_labelled(tmp_path).items():
        assert inspection.splits[name].paths == split.paths
        assert inspection.splits[name].labels.tolist() == split.labels.tolist()


def test_known_classes_set_the_order(tmp_path: Path, class_tree: Tree) -> None:
    split = read_labelled(class_tree(tmp_path, {"a": 1, "b": 1}), classes=["b", "x", "a"])["all"]
    assert split.classes == ["b", "x", "a"]
    assert split.labels.tolist() == [2, 0]


def test_a_csv_without_splits(images: Path) -> None:
    file = write_csv(
        images,
        "image_path,label,by",
        "img/bee/0.png,bee,me",
        "img/ant/1.png,ant,",
        "img/ant/0.png,ant,x",
    )
    splits = read_labelled(file)
    assert list(splits) == ["all"]
    found = [path.relative_to(images).as_posix() for path in splits["all"].paths]
    assert found == ["img/ant/0.png", "img/ant/1.png", "img/bee/0.png"]
    assert splits["all"].labels.tolist() == [0, 0, 1]


def test_a_csv_with_splits_and_their_other_names(images: Path) -> None:
    file = write_csv(
        images,
        "image_path,label,split",
        "img/ant/0.png,ant,train",
        "img/bee/0.png,bee,TRAIN",
        "img/ant/1.png,ant,validation",
        "img/bee/1.png,bee,valid",
        "img/bee/2.png,bee,test",
        "img/ant/2.png,ant,val",
    )
    splits = read_labelled(file)
    assert {name: len(split) for name, split in splits.items()} == {"train": 2, "val": 3, "test": 1}


@pytest.mark.parametrize("column", ["image_path", "filepath", "path", "filename"])
def test_other_names_of_the_path_column(column: str, images: Path) -> None:
    file = write_csv(images, f"label,{column}", "ant,img/ant/0.png", "bee,img/bee/0.png")
    assert len(read_labelled(file)["all"]) == 2


def test_absolute_paths_quotes_and_a_byte_order_mark(images: Path) -> None:
    file = images / "labels.csv"
    text = f'image_path,label\r\n"{images}/img/ant/0.png","ant, red"\r\nimg/bee/0.png,bee\r\n'
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_labelled(file)["all"].classes == ["ant, red", "bee"]


def test_spaces_around_a_cell_do_not_count(images: Path) -> None:
    file = write_csv(
        images,
        " image_path , label, split ",
        " img/ant/0.png , ant , train",
        'img/bee/0.png, "a bee " ,train ',
        "img/bee/1.png,a bee,  ",
    )
    assert "some rows have no split" in refusal(file)
    file.write_text(file.read_text().replace("bee,  ", "bee, test "))
    splits = read_labelled(file)
    assert {name: split.labels.tolist() for name, split in splits.items()} == {
        "train": [0, 1],
        "test": [0],
    }
    assert splits["train"].classes == ["a bee", "ant"]
    assert splits["train"].paths == [images / "img/bee/0.png", images / "img/ant/0.png"]


def test_a_csv_to_evaluate_on_needs_no_train(images: Path) -> None:
    rows = ["img/ant/0.png,ant,val", "img/bee/0.png,bee,test"]
    splits = read_labelled(write_csv(images, "image_path,label,split", *rows), ["bee", "ant"])
    assert {name: split.labels.tolist() for name, split in splits.items()} == {
        "val": [1],
        "test": [0],
    }


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_class_folder(split: str, tmp_path: Path, class_tree: Tree) -> None:
    class_tree(tmp_path / "train", {"a": 1, "b": 1})
    class_tree(tmp_path / "val", {"a": 1})
    (tmp_path / split / "c").mkdir()
    assert f"{tmp_path / split / 'c'}: no images" in refusal(tmp_path)
    if split == "val":  # data to judge a model on may lack some of its classes
        assert len(read_labelled(tmp_path, ["a", "b", "c"])["val"]) == 1


def test_a_class_that_training_lacks(tmp_path: Path, class_tree: Tree) -> None:
    class_tree(tmp_path / "train", {"a": 1, "b": 1})
    class_tree(tmp_path / "val", {"a": 1, "c": 1})
    assert "class 'c' of val" in refusal(tmp_path)
    assert "class 'b' of train" in refusal(tmp_path, classes=["a", "c"])


def test_folders_that_hold_no_classes(tmp_path: Path, class_tree: Tree) -> None:
    assert "no class folders" in refusal(tmp_path)
    class_tree(tmp_path, {"only": 3})
    assert "at least two classes" in refusal(tmp_path)
    assert "no such folder or CSV" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("lines", "fragment"),
    [
        (["image_path,class", "img/ant/0.png,ant"], "no column 'label'"),
        (["image,label", "img/ant/0.png,ant"], "no column 'image_path'"),
        ([""], "no column 'image_path'"),
        (["image_path;label", "img/ant/0.png;ant"], "in UTF-8, and is 'image_path;label'"),
        (["image_path,label"], "no rows"),
        (
            ["image_path,label", "img/ant/0.png,ant", "img/ant/9.png,ant"],
            "line 3: there is no file",
        ),
        (["image_path,label", ",ant"], "line 2: there is no file"),
        (["image_path,label", "img/ant,ant"], "line 2: there is no file"),
        (["image_path,label", "img/ant/0.png,"], "line 2: the label is empty"),
        (["image_path,label", "img/ant/0.png,  "], "line 2: the label is empty"),
        (["image_path,label", "img/ant/0.png"], "line 2: the label is empty"),
        (["image_path,label", "img/ant/0.png,ant", "img/ant/1.png,ant"], "at least two classes"),
        (["image_path,label,split", "img/ant/0.png,ant,dev"], "line 2: split 'dev'"),
        (
            ["image_path,label,split", "img/ant/0.png,ant,train", "img/bee/0.png,bee,"],
            "some rows have no split",
        ),
        (
            ["image_path,label,split", "img/ant/0.png,ant,val", "img/bee/0.png,bee,test"],
            "has val and test, but no train",
        ),
        (
            [
                "image_path,label,split",
                "img/ant/0.png,ant,train",
                "img/bee/0.png,bee,train",
                "img/bee/1.png,wasp,val",
            ],
            "class 'wasp' of val",
        ),
    ],
)
def test_mistakes_in_a_csv(lines: list[str], fragment: str, images: Path) -> None:
    text = refusal(write_csv(images, *lines))
    assert fragment in text
    assert "labels.csv" in text


@pytest.mark.parametrize(
    "content",
    [
        "image_path,label\nimg/ant/0.png,Ameisenbär\n".encode("latin-1"),
        b"\xff\xfei\0m\0a\0",
        b"\x89PNG\r\n\x1a\n\0\0",
    ],
    ids=["latin-1", "utf-16", "a-picture"],
)
def test_a_file_that_is_not_utf8(content: bytes, images: Path) -> None:
    (images / "labels.csv").write_bytes(content)
    assert "UTF-8" in refusal(images / "labels.csv")
