"""Splits, and one preprocessing for training-time evaluation and deployment."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deitlt.errors import DataError
from deitlt.preprocess import load_pixels, normalise
from training.data import EvaluationImages, Splits, files_sha256, load_splits
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
    return load_splits(tree, replace(teachers.digits(), **fields))  # type: ignore[arg-type]


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
    first = split(tree, imbalance_factor=10)
    moved = tree.rename(tmp_path / "moved")
    second = split(moved, imbalance_factor=10)
    assert files_sha256(first.train) == files_sha256(second.train)
    other = split(moved, imbalance_factor=10, subset_seed=1)
    assert files_sha256(other.train) != files_sha256(second.train)


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


def test_evaluation_sees_what_deployment_sees(tree: Path) -> None:
    recipe = replace(teachers.digits(), crop_pct=0.8)
    images = split(tree, imbalance_factor=None).train
    spec = recipe.preprocess()
    batches = list(EvaluationImages(images, spec, torch.device("cpu")))
    expected = normalise(np.stack([load_pixels(path, spec) for path in images.paths]), spec)
    np.testing.assert_array_equal(torch.cat(batches).numpy(), expected)
