"""Splits, and one preprocessing for training-time evaluation and deployment."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deitlt.errors import DataError
from deitlt.labelled import LabelledImages
from deitlt.preprocess import decode, load_pixels, normalise
from deitlt.run_splits import Splits, files_sha256, load_splits
from training import train_teacher
from training.data import EvaluationImages
from training.recipes import teachers


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A balanced tree: train with 20 images in each of 4 classes, test with 2."""
    generator = np.random.default_rng(0)
    for split, number in (("train", 20), ("test", 2)):
        for name in "abcd":
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = generator.integers(0, 256, (9, 11, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return tmp_path / "data"


def split(tree: Path, **fields: object) -> Splits:
    return load_splits(tree, vars(teachers.digits()) | fields)


def test_the_subset_is_drawn_first_and_validation_carved_from_it(tree: Path) -> None:
    splits = split(tree, imbalance_factor=10, val_fraction=0.2)
    assert splits.val is not None
    # 20 * 10^(-i/3) = 20, 9.28, 4.31, 2; of which 20 % but at least one is held out.
    assert (splits.train.counts() + splits.val.counts()).tolist() == [20, 9, 4, 2]
    assert splits.val.counts().tolist() == [4, 2, 1, 1]
    assert not set(splits.train.paths) & set(splits.val.paths)
    assert not [path for path in (*splits.train.paths, *splits.val.paths) if "test" in path.parts]
    text = splits.describe()
    assert "20 9 4 2" in text
    assert "16 7 3 1" in text


def test_splits_are_the_same_every_time_and_wherever_the_data_lies(
    tree: Path, tmp_path: Path
) -> None:
    first = files_sha256(split(tree, imbalance_factor=10).train)
    moved = tree.rename(tmp_path / "moved")
    second = split(moved, imbalance_factor=10)
    assert files_sha256(second.train) == first
    other = split(moved, imbalance_factor=10, subset_seed=1)
    assert files_sha256(other.train) != first


def test_a_file_of_another_size_is_another_image(tree: Path) -> None:
    before = files_sha256(split(tree, imbalance_factor=None).train)
    picture = tree / "train" / "a" / "00.png"
    picture.write_bytes(picture.read_bytes() + b"more")
    assert files_sha256(split(tree, imbalance_factor=None).train) != before


def test_the_folders_of_images_named_alike_count(tmp_path: Path) -> None:
    def images(place: str, *folders: str) -> LabelledImages:
        paths = [tmp_path / place / folder / "x.png" for folder in folders]
        return LabelledImages(paths, np.arange(len(paths)), ["a", "b"])

    known = files_sha256(images("here", "1", "2"))
    assert files_sha256(images("there/../elsewhere", "1", "2")) == known
    assert files_sha256(images("here", "2", "1")) != known
    assert files_sha256(images("here", "1", "2").subset(np.array([1, 0]))) == known


def test_a_val_split_of_the_data_is_used_as_it_is(tree: Path) -> None:
    (tree / "test").rename(tree / "val")
    splits = split(tree, imbalance_factor=None)
    assert splits.val is not None
    assert splits.val.counts().tolist() == [2, 2, 2, 2]
    assert splits.train.counts().tolist() == [20] * 4


def test_nothing_is_held_out_if_the_fraction_is_zero(tree: Path) -> None:
    splits = split(tree, imbalance_factor=None, val_fraction=0.0)
    assert splits.val is None
    assert len(splits.train) == 80


def test_data_without_training_images_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    (tmp_path / "data.csv").write_text("image_path,label,split\nx.png,a,test\nx.png,b,test\n")
    with pytest.raises(DataError, match="no training images"):
        split(tmp_path / "data.csv", imbalance_factor=None)


def test_no_group_is_trained_on_and_held_out(tmp_path: Path) -> None:
    rows = ["image_path,label,group"]
    for number in range(40):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{'ab'[number % 2]},site {number // 4}")
    (tmp_path / "data.csv").write_text("\n".join(rows))
    splits = split(tmp_path / "data.csv", imbalance_factor=None, val_fraction=0.2)
    assert splits.val is not None
    assert splits.val.counts().tolist() == [4, 4]
    sites = [{int(path.stem) // 4 for path in s.paths} for s in (splits.train, splits.val)]
    assert sites[0].isdisjoint(sites[1])


def test_evaluation_sees_what_deployment_sees(tree: Path) -> None:
    recipe = replace(teachers.digits(), crop_pct=0.8)
    images = split(tree, imbalance_factor=None).train
    spec = recipe.preprocess()
    batches = list(EvaluationImages(images, spec, torch.device("cpu")))
    expected = normalise(np.stack([load_pixels(path, spec) for path in images.paths]), spec)
    np.testing.assert_array_equal(torch.cat(batches).numpy(), expected)


def test_what_pillow_warns_of_is_not_printed(
    tree: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """It names no file, and the picture is decoded all the same."""
    broken = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
    for file in (tree / "train" / "a").iterdir():
        Image.open(file).save(file, "JPEG", exif=broken)
    warnings.simplefilter("always")  # not only the first of its kind
    decode(next((tree / "train" / "a").iterdir()))
    assert "EXIF" in str(recwarn.pop(UserWarning).message)
    recwarn.clear()
    arguments = ["digits", "--imbalance-factor", "None", "--epochs", "1", "--data", str(tree)]
    assert train_teacher.main([*arguments, "--output", str(tmp_path / "run")]) == 0
    assert not [warning for warning in recwarn if "EXIF" in str(warning.message)]
