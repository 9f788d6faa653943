"""Learning rates against timm's scheduler and the rates of the official programs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.scheduler import CosineLRScheduler

from training.config import TeacherRecipe
from training.engine.schedules import student_learning_rate, teacher_learning_rate
from training.recipes import STUDENTS, TEACHERS, students, teachers


def timm_learning_rates(
    epochs: int, lr: float, min_lr: float, warmup: int, warmup_lr: float, at: list[float]
) -> list[float]:
    """As DeiT's main program makes it: prefix off, one cycle."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=epochs,
        lr_min=min_lr,
        warmup_t=warmup,
        warmup_lr_init=warmup_lr,
        warmup_prefix=False,
        cycle_limit=1,
    )
    rates = []
    for epoch in at:
        scheduler.step(epoch)
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return rates


@pytest.mark.parametrize(("epochs", "warmup"), [(1200, 5), (40, 0), (7, 3)])
def test_the_students_rate_is_timms_cosine_at_any_fraction_of_an_epoch(
    epochs: int, warmup: int
) -> None:
    recipe = replace(students.cifar(), epochs=epochs, warmup_epochs=warmup, drw_epoch=epochs)
    at = [0.0, float(warmup), epochs - 1e-3, float(epochs)]
    at += np.random.default_rng(0).uniform(0, epochs, 200).tolist()
    at += np.linspace(0, warmup + 1, 30).tolist()
    expected = timm_learning_rates(epochs, 2.5e-4, 1e-5, warmup, 1e-6, at)
    ours = [student_learning_rate(recipe, epoch) for epoch in at]
    assert ours == pytest.approx(expected, rel=1e-12)
    assert min(ours) >= 1e-6
    assert max(ours) <= recipe.lr


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [("cifar", 1.41e-5), ("imagenet_lt", 3.43e-5), ("inat18", 2.20e-5)],
)
def test_the_students_rate_at_the_start_of_drw_is_the_official_one(
    recipe: str, expected: float
) -> None:
    fields = STUDENTS[recipe]()
    assert student_learning_rate(fields, fields.drw_epoch) == pytest.approx(expected, abs=6e-8)


def test_the_students_rate_starts_at_the_warm_up_rate_and_ends_at_the_least() -> None:
    recipe = students.cifar()
    assert student_learning_rate(recipe, 0) == recipe.warmup_lr
    assert student_learning_rate(recipe, recipe.epochs) == recipe.min_lr
    # The cosine runs on below the warm-up, so its peak is not quite reached.
    assert recipe.lr * 0.9999 < student_learning_rate(recipe, recipe.warmup_epochs) < recipe.lr


# Epochs as Saddle-LongTail counts them, from 1.
@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(1, 0.02), (2, 0.04), (5, 0.1), (6, 0.1), (160, 0.1), (161, 1e-3), (180, 1e-3), (181, 1e-5)],
)
def test_the_ldam_teachers_rates_are_the_official_ones(epoch: int, rate: float) -> None:
    assert teacher_learning_rate(teachers.cifar(), epoch - 1) == pytest.approx(rate, rel=1e-12)


def paco_cifar(epoch: int) -> float:
    """What PaCo's CIFAR program sets at 0.05 and ten epochs of warm-up, by its comparisons."""
    if epoch <= 10:
        return 0.05 / 10 * (epoch + 1)
    return 0.05 * (0.01 if epoch > 360 else 0.1 if epoch > 320 else 1)


def test_the_paco_teachers_rates_are_the_official_ones_but_for_one_epoch() -> None:
    recipe = teachers.cifar_paco()
    ours = [teacher_learning_rate(recipe, epoch) for epoch in range(recipe.epochs)]
    official = [paco_cifar(epoch) for epoch in range(400)]
    different = [e for e in range(400) if ours[e] != pytest.approx(official[e], rel=1e-12)]
    assert different == [10]
    assert (ours[10], official[10]) == pytest.approx((0.05, 0.055))


@pytest.mark.parametrize("name", ["imagenet_lt", "inat18", "cifar_glmc"])
def test_a_cosine_teacher_falls_from_its_peak_to_almost_nothing(name: str) -> None:
    recipe = TEACHERS[name]()
    for epoch in range(recipe.epochs):
        expected = recipe.lr * (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2
        assert teacher_learning_rate(recipe, epoch) == pytest.approx(expected, rel=1e-12)
    assert teacher_learning_rate(recipe, 0) == recipe.lr


@pytest.mark.parametrize("name", ["imagenet_lt_paco", "inat18_paco"])
def test_a_cosine_teacher_warms_up_as_paco_on_the_large_sets_does(name: str) -> None:
    """Official: lr / 10 * (e + 1) for ten epochs, then the cosine of (e - 10 + 1) / (400 - 9)."""
    recipe = TEACHERS[name]()
    for epoch in range(400):
        cosine = 0.5 * (1 + math.cos(math.pi * (epoch - 10 + 1) / (400 - 10 + 1)))
        expected = 0.02 * ((epoch + 1) / 10 if epoch < 10 else cosine)
        assert teacher_learning_rate(recipe, epoch) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("recipe", [make() for make in TEACHERS.values()], ids=lambda r: r.name)
def test_every_teachers_rate_is_positive_and_never_above_its_peak(recipe: TeacherRecipe) -> None:
    rates = [teacher_learning_rate(recipe, epoch) for epoch in range(recipe.epochs)]
    assert min(rates) > 0
    assert max(rates) <= recipe.lr
    assert rates[-1] < recipe.lr / 50
