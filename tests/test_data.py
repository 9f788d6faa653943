"""Splits, samplers, and one preprocessing for training-time evaluation and deployment."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deitlt.errors import DataError, DecodeFailed
from deitlt.preprocess import load_pixels, normalise
from training.augment import teacher_transform
from training.data import (
    EpochSampler,
    EvaluationImages,
    Splits,
    TrainingImages,
    files_sha256,
    load_splits,
)
from training.recipes import teacher_digits


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
    return load_splits(tree, replace(teacher_digits(), **fields))  # type: ignore[arg-type]


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


def test_a_damaged_image_stops_the_run_by_name(tree: Path) -> None:
    broken = tree / "train" / "b" / "07.png"
    broken.write_bytes(broken.read_bytes()[:50])
    recipe = replace(teacher_digits(), imbalance_factor=None)
    splits = load_splits(tree, recipe)
    with pytest.raises(DecodeFailed, match=r"b/07\.png"):
        TrainingImages(splits.train, teacher_transform(recipe), seed=0)


def test_data_without_training_images_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    (tmp_path / "data.csv").write_text("image_path,label,split\nx.png,a,test\nx.png,b,test\n")
    with pytest.raises(DataError, match="no training images"):
        split(tmp_path / "data.csv", imbalance_factor=None)


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own() -> None:
    sampler = EpochSampler(num_images=20, batch_size=5, seed=0)
    orders = []
    for sampler.epoch in (0, 1):
        batches = list(sampler)
        assert [len(batch) for batch in batches] == [5] * 4
        assert all(epoch == sampler.epoch for batch in batches for epoch, _ in batch)
        orders.append([index for batch in batches for _, index in batch])
        assert sorted(orders[-1]) == list(range(20))
    assert orders[0] != orders[1]


def test_incomplete_batches_are_left_out_and_small_sets_make_one_even_batch() -> None:
    assert [len(batch) for batch in EpochSampler(23, 5, seed=0)] == [5] * 4
    assert [len(batch) for batch in EpochSampler(7, 32, seed=0)] == [6]


def test_evaluation_sees_what_deployment_sees(tree: Path) -> None:
    recipe = replace(teacher_digits(), crop_pct=0.8)
    images = split(tree, imbalance_factor=None).train
    spec = recipe.preprocess()
    batches = list(EvaluationImages(images, spec, torch.device("cpu")))
    expected = normalise(np.stack([load_pixels(path, spec) for path in images.paths]), spec)
    np.testing.assert_array_equal(torch.cat(batches).numpy(), expected)
