"""Recipes: run books, schedules against published values, and checks of every field."""

import dataclasses
import json
from collections.abc import Callable

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from deitlt.errors import UsageError
from training.command_line import parse, pick_recipe
from training.config import Recipe
from training.recipes import STUDENTS, TEACHERS, student_cifar, teacher_cifar
from training.train_student import StudentCommand
from training.train_teacher import TeacherCommand, learning_rate

ALL = [*TEACHERS.items(), *STUDENTS.items()]


@pytest.mark.parametrize(("name", "make"), ALL)
def test_every_recipe_is_a_frozen_value_with_a_run_book(
    name: str, make: Callable[[], Recipe]
) -> None:
    recipe = make()
    assert recipe.name == name
    for part in ("Source:", "Command:"):
        assert part in (make.__doc__ or ""), f"the run book of {name} lacks {part!r}"
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.epochs = 1  # type: ignore[misc]
    assert json.loads(json.dumps(dataclasses.asdict(recipe)))["epochs"] == recipe.epochs
    for field in dataclasses.fields(type(recipe)):
        assert getattr(recipe, field.name) == getattr(make(), field.name)


def test_the_cifar_teacher_has_the_official_learning_rates() -> None:
    recipe = teacher_cifar()
    # Saddle-LongTail counts epochs from 1: lr * e / 5 first, x 0.01 after 160, x 0.0001 after 180.
    official = {1: 0.02, 3: 0.06, 5: 0.1, 6: 0.1, 160: 0.1, 161: 1e-3, 180: 1e-3, 181: 1e-5}
    for epoch, lr in official.items():
        assert learning_rate(recipe, epoch - 1) == pytest.approx(lr)
    assert (recipe.rho, recipe.drw_epoch, recipe.max_margin, recipe.scale) == (0.8, 160, 0.5, 30)
    assert (recipe.weight_decay, recipe.momentum, recipe.batch_size) == (2e-4, 0.9, 128)
    assert recipe.sam_batch_norm == "both"


def test_the_cifar_student_has_the_official_schedule() -> None:
    recipe = student_cifar()
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=recipe.lr)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=recipe.epochs,
        lr_min=recipe.min_lr,
        warmup_t=recipe.warmup_epochs,
        warmup_lr_init=recipe.warmup_lr,
    )

    def lr_at(epoch: float) -> float:
        schedule.step(epoch)
        return float(optimizer.param_groups[0]["lr"])

    assert lr_at(0) == pytest.approx(1e-6)
    assert lr_at(2.5) == pytest.approx((1e-6 + 2.5e-4) / 2)
    assert lr_at(5) == pytest.approx(2.5e-4, rel=1e-3)
    assert lr_at(1100) == pytest.approx(1.41e-5, rel=2e-3)  # where DRW starts, as published
    assert (recipe.batch_size, recipe.micro_batch_size) == (1024, 128)
    assert (recipe.mixup, recipe.cutmix, recipe.label_smoothing) == (0.8, 1.0, 0.1)
    assert not recipe.mix_in_drw


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "--epochs must be positive"),
        ({"img_size": 30}, "--img-size 30 is not a multiple of --patch-size 16"),
        ({"crop_pct": 1.5}, "--crop-pct"),
        (
            {"micro_batch_size": 100},
            "--batch-size 1024 is not a multiple of --micro-batch-size 100",
        ),
        ({"batch_size": 31, "micro_batch_size": None}, "a batch of 31 is odd"),
        ({"alpha": 2.0}, "--alpha"),
        ({"drw_beta": 1.0}, "--drw-beta"),
        ({"std": (0.2, 0.0, 0.2)}, "--std"),
        ({"size": "huge"}, "--size must be one of"),
    ],
)
def test_a_field_out_of_range_is_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        dataclasses.replace(student_cifar(), **fields)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


REQUIRED = ["--data", "d", "--teacher", "t", "--output", "o"]


def parse_student(*arguments: str) -> StudentCommand:
    recipe, rest = pick_recipe("program", [*arguments, *REQUIRED], STUDENTS)
    command: StudentCommand = parse("program", StudentCommand, rest, recipe=recipe)
    return command


def test_any_field_can_be_overridden_with_its_type() -> None:
    command = parse_student(
        "cifar", "--epochs", "3", "--lr", "1e-3", "--mix-in-drw", "--crop-scale", "0.5", "1",
        "--size", "tiny", "--imbalance-factor", "100", "-j", "0",
    )  # fmt: skip
    expected = dataclasses.replace(
        student_cifar(), epochs=3, lr=1e-3, mix_in_drw=True, crop_scale=(0.5, 1.0), size="tiny",
        imbalance_factor=100.0,
    )  # fmt: skip
    assert command.recipe == expected
    assert command.workers == 0


def test_every_field_of_every_recipe_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    programs: list[tuple[Recipe, type]] = [
        (teacher_cifar(), TeacherCommand),
        (student_cifar(), StudentCommand),
    ]
    for recipe, kind in programs:
        with pytest.raises(SystemExit) as stop:
            parse("program", kind, ["--help"], recipe=recipe)
        assert stop.value.code == 0
        shown = capsys.readouterr().out
        for field in dataclasses.fields(recipe):
            assert f"--{field.name.replace('_', '-')}" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifr"], "no recipe 'cifr' (did you mean cifar?)"),
        (["cifar", "--epoch", "3"], "no option '--epoch' (did you mean --epochs?)"),
        (["cifar", "--epochs", "three"], "--epochs"),
        (["cifar", "--size", "huge"], "huge"),
        (["cifar", "--teachr", "x"], "--teachr"),
    ],
)
def test_a_wrong_word_gets_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_student(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_flag_gets_one_line() -> None:
    with pytest.raises(UsageError, match="--teacher") as error:
        parse("program", StudentCommand, ["--data", "d", "--output", "o"], recipe=student_cifar())
    assert "\n" not in str(error.value)
