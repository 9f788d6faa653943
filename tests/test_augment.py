"""Recipes to views: each recipe gets the crop, flip and operations it names."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.augmentation.crops import PaddedCrop, ResizedCrop, erased_boxes
from training.augmentation.policies import (
    AutoAugmentCifar10,
    ColorJitter,
    RandAugment,
    ThreeAugment,
)
from training.augmentation.recipe_views import student_view, teacher_views
from training.config import TeacherRecipe
from training.recipes import students, teachers


def test_the_student_view_is_the_official_one() -> None:
    view = student_view(students.cifar())
    assert view.img_size == 224
    assert view.crop_kind == ResizedCrop((0.08, 1.0), (3 / 4, 4 / 3))
    (policy,) = view.policies
    assert isinstance(policy, RandAugment)
    assert (policy.magnitude, policy.num_ops, policy.probability) == (9, 2, 0.5)
    assert (policy.magnitude_std, policy.increasing) == (0.5, True)
    assert (view.flip, view.random_erasing) == (0.5, 0.25)
    assert view.fill == (124, 116, 104)


def test_the_paper_says_three_augment_for_the_large_sets() -> None:
    view = student_view(students.imagenet_lt())
    assert isinstance(view.policies[0], ThreeAugment)
    assert isinstance(view.policies[1], ColorJitter)
    assert view.random_erasing == 0
    assert view.crop_kind == PaddedCrop(4, reflect=True, square=False)


def test_weak_views_are_a_padded_crop_and_a_flip() -> None:
    (view,) = teacher_views(teachers.cifar())
    assert (view.crop_kind, view.policies, view.flip) == (PaddedCrop(4), (), 0.5)
    assert student_view(replace(students.cifar(), view="weak")).policies == ()


@pytest.mark.parametrize(
    ("recipe", "num_views"),
    [
        (teachers.cifar(), 1),
        (teachers.cifar_paco(), 2),
        (teachers.cifar_glmc(), 2),
        (teachers.imagenet_lt(), 1),
        (teachers.imagenet_lt_paco(), 2),
        (teachers.cifar_strong(), 1),
    ],
)
def test_a_method_gets_as_many_views_as_it_needs(recipe: TeacherRecipe, num_views: int) -> None:
    views = teacher_views(recipe)
    assert len(views) == num_views
    assert {view.img_size for view in views} == {recipe.img_size}


def test_paco_sees_autoaugment_and_cutout_first() -> None:
    first, second = teacher_views(teachers.cifar_paco())
    assert first.policies == (AutoAugmentCifar10(),)
    assert first.cutout_px == 16
    assert isinstance(second.policies[0], ColorJitter)


def test_digits_are_never_mirrored() -> None:
    assert student_view(students.digits()).flip == 0
    assert teacher_views(teachers.digits())[0].flip == 0


def test_augmentation_can_be_switched_off() -> None:
    plain = replace(
        students.digits(), auto_augment="", random_erasing=0.0, crop_scale=(1.0, 1.0),
        crop_ratio=(1.0, 1.0), flip=0.0,
    )  # fmt: skip
    view = student_view(plain)
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    out = view.apply(pixels, view.draw(np.random.default_rng(0), 2))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (plain.mean, plain.std))
    torch.testing.assert_close(out, (pixels / 255 - mean) / std, atol=1e-6, rtol=1e-5)


def test_erased_rectangles_lie_anywhere_up_to_both_borders() -> None:
    boxes = erased_boxes(np.random.default_rng(0), 2000, 16, 1.0)
    start, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    assert (start.min(axis=0).tolist(), end.max(axis=0).tolist()) == ([0, 0], [16, 16])
