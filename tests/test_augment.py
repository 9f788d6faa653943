"""Views for training: timm's own pipeline, mixing, and randomness that depends on place alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment
from torchvision import transforms

from deitlt.labelled import LabelledImages
from training.augment import student_mixing, student_transform, teacher_transform
from training.data import TrainingImages, TrainingLoader
from training.recipes import student_cifar, student_digits, teacher_cifar, teacher_digits
from training.seeding import Stream, seed_global


def noise(side: int = 40, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def images(tmp_path: Path) -> LabelledImages:
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for i, path in enumerate(paths):
        noise(20, seed=i).save(path)
    return LabelledImages(paths, np.arange(12) % 3, ["a", "b", "c"])


def test_the_student_view_has_the_official_steps_in_order() -> None:
    steps = student_transform(student_cifar()).transforms  # type: ignore[attr-defined]
    names = [type(step).__name__ for step in steps]
    assert names == [
        "RandomResizedCropAndInterpolation",
        "RandomHorizontalFlip",
        "RandAugment",
        "MaybeToTensor",
        "Normalize",
        "RandomErasing",
    ]
    crop, flip, rand_augment, *_, erasing = steps
    assert (crop.size, crop.scale, crop.ratio) == ((224, 224), (0.08, 1.0), (3 / 4, 4 / 3))
    assert flip.p == 0.5
    assert isinstance(rand_augment, RandAugment)
    assert (rand_augment.num_layers, len(rand_augment.ops)) == (2, 15)
    assert {(op.prob, op.magnitude, op.magnitude_std) for op in rand_augment.ops} == {(0.5, 9, 0.5)}
    assert (erasing.probability, erasing.rand_color, erasing.per_pixel) == (0.25, False, True)


def test_posterizing_to_no_bits_is_black_as_it_used_to_be() -> None:
    steps = student_transform(student_cifar()).transforms  # type: ignore[attr-defined]
    operations = {op.name: op for op in steps[2].ops}
    posterize = operations["PosterizeIncreasing"].aug_fn
    assert not np.asarray(posterize(noise(), 0)).any()
    kept = np.asarray(posterize(noise(), 3))
    assert np.array_equal(kept, np.asarray(noise()) & 0b11100000)


def test_augmentation_can_be_switched_off() -> None:
    plain = replace(
        student_digits(), auto_augment="", random_erasing=0.0, crop_scale=(1.0, 1.0),
        crop_ratio=(1.0, 1.0), flip=0.0,
    )  # fmt: skip
    view = student_transform(plain)(noise(16))
    expected = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(plain.mean, plain.std)]
    )(noise(16))
    torch.testing.assert_close(view, expected)


def test_the_teacher_view_is_a_padded_crop_with_or_without_a_flip() -> None:
    recipe = replace(teacher_cifar(), img_size=8, crop_padding=2, mean=(0, 0, 0), std=(1, 1, 1))
    image = noise(8)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    padded = torch.nn.functional.pad(pixels, (2, 2, 2, 2))
    crops = [padded[:, y : y + 8, x : x + 8] for y in range(5) for x in range(5)]
    possible = torch.stack([*crops, *(crop.flip(2) for crop in crops)])
    transform = teacher_transform(recipe)
    seen = set()
    for seed in range(300):
        torch.manual_seed(seed)
        distances = (possible - transform(image)).abs().amax(dim=(1, 2, 3))
        assert distances.min() < 1e-6
        seen.add(int(distances.argmin()))
    assert len(seen) == 50  # every crop and flip occurs


def test_digits_are_never_mirrored() -> None:
    assert student_digits().flip == teacher_digits().flip == 0


def test_mixing_gives_timms_soft_targets_of_an_image_and_its_mirror_in_the_batch() -> None:
    mixing = student_mixing(student_cifar(), num_classes=4)
    assert mixing is not None
    images = torch.stack([torch.full((3, 8, 8), float(i)) for i in range(6)])
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    for seed in range(20):
        seed_global(seed, Stream.STEP)
        mixed, targets = mixing(images.clone(), labels)
        # Image i is lam * i + (1 - lam) * (5 - i) on average over its pixels, for both kinds.
        lam = float((mixed[0].mean() - 5) / (0 - 5))
        off, on = 0.1 / 4, 0.9 + 0.1 / 4
        one_hot = torch.full((6, 4), off).scatter_(1, labels.unsqueeze(1), on)
        torch.testing.assert_close(
            targets, lam * one_hot + (1 - lam) * one_hot.flip(0), atol=1e-5, rtol=0
        )
    assert student_mixing(replace(student_cifar(), mixup=0.0, cutmix=0.0), 4) is None


def test_a_view_depends_on_seed_epoch_and_index_alone(images: LabelledImages) -> None:
    recipe = replace(student_digits(), drop_path_rate=0.0)
    views = TrainingImages(images, student_transform(recipe), seed=1)
    first, _ = views[(3, 5)]
    views[(3, 6)]
    again, label = views[(3, 5)]
    assert torch.equal(first, again)
    assert label == 2
    assert not torch.equal(first, views[(4, 5)][0])
    other = TrainingImages(images, student_transform(recipe), seed=2)
    assert not torch.equal(first, other[(3, 5)][0])


def test_worker_processes_change_nothing(images: LabelledImages) -> None:
    def epoch(num_workers: int) -> list[torch.Tensor]:
        loader = TrainingLoader(
            images,
            student_transform(student_digits()),
            batch_size=4,
            seed=0,
            num_workers=num_workers,
            device=torch.device("cpu"),
        )
        list(loader.epoch(0))
        return [batch for batch, _ in loader.epoch(1)]

    alone, shared = epoch(0), epoch(2)
    assert len(alone) == 3
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
