"""Recipes: run books, schedules against published values, and checks of every field."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from deitlt.errors import UsageError
from training.command_line import parse, pick_recipe
from training.config import Recipe
from training.engine.schedules import student_learning_rate
from training.recipes import STUDENTS, TEACHERS, students, teachers
from training.train_student import StudentCommand
from training.train_teacher import TeacherCommand
from training.unread_options import unmoved_steps, unread_options

ALL = [*TEACHERS.items(), *STUDENTS.items()]


@pytest.mark.parametrize(("name", "make"), ALL)
def test_every_recipe_is_a_frozen_value_with_a_run_book(
    name: str, make: Callable[[], Recipe]
) -> None:
    recipe = make()
    assert recipe.name == name
    for part in ("Source:", "Expect:", "Milestones:", "Hardware:", "Command:"):
        assert part in (make.__doc__ or ""), f"the run book of {name} lacks {part!r}"
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.epochs = 1  # type: ignore[misc]
    assert json.loads(json.dumps(dataclasses.asdict(recipe)))["epochs"] == recipe.epochs
    for field in dataclasses.fields(type(recipe)):
        assert getattr(recipe, field.name) == getattr(make(), field.name)


def test_the_cifar_teacher_is_the_official_one() -> None:
    recipe = teachers.cifar()
    assert (recipe.rho, recipe.drw_epoch, recipe.max_margin, recipe.scale) == (0.8, 160, 0.5, 30)
    assert (recipe.weight_decay, recipe.momentum, recipe.batch_size) == (2e-4, 0.9, 128)
    assert recipe.sam_batch_norm == "both"


def test_the_cifar_student_is_the_official_one() -> None:
    recipe = students.cifar()
    # Where DRW starts the published learning rate is 1.41e-5.
    assert student_learning_rate(recipe, 1100) == pytest.approx(1.41e-5, rel=2e-3)
    assert (recipe.batch_size, recipe.micro_batch_size) == (1024, 128)
    assert (recipe.mixup, recipe.cutmix, recipe.label_smoothing) == (0.8, 1.0, 0.1)
    assert not recipe.mix_in_drw
    assert recipe.sampling == "repeated"


def test_the_large_students_follow_table_s1() -> None:
    for recipe, epochs, drw_epoch in (
        (students.imagenet_lt(), 1400, 1200),
        (students.inat18(), 1000, 900),
    ):
        assert (recipe.epochs, recipe.drw_epoch) == (epochs, drw_epoch)
        assert (recipe.batch_size, recipe.lr, recipe.weight_decay) == (2048, 5e-4, 0.05)
        assert (recipe.view, recipe.sampling, recipe.random_erasing) == ("three_augment", "all", 0)
        assert recipe.mix_in_drw
    # Published learning rates at the start of DRW.
    assert student_learning_rate(students.imagenet_lt(), 1200) == pytest.approx(3.43e-5, rel=2e-3)
    assert student_learning_rate(students.inat18(), 900) == pytest.approx(2.20e-5, rel=3e-3)


def test_the_radius_of_the_large_teachers_rises_with_drw() -> None:
    recipe = teachers.imagenet_lt()
    assert recipe.drw_epoch in recipe.rho_epochs
    assert (recipe.rho, recipe.rho_epochs, recipe.rho_values) == (0.05, (5, 60), (0.1, 0.5))
    assert (recipe.max_margin, recipe.network) == (0.3, "resnet50")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rho": -1.0}, "--rho must be a number of at least 0"),
        ({"rho_epochs": (5,)}, "as many steps"),
        ({"rho_epochs": (5, 5), "rho_values": (0.1, 0.2)}, "must rise"),
        ({"classifier": "linear"}, "--method ldam needs --classifier cosine"),
        ({"method": "ce"}, "--method ce needs --classifier linear"),
        ({"method": "paco", "classifier": "linear"}, "--view paco_small"),
        (
            {"method": "paco", "classifier": "linear", "view": "paco_small", "batch_size": 2048},
            "--paco-queue 1024 is smaller than --batch-size 2048",
        ),
    ],
)
def test_a_teachers_field_out_of_range_is_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        dataclasses.replace(teachers.cifar(), **fields)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


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
        ({"ema_decay": 1.0}, "--ema-decay"),
        ({"temperature": 0.0}, "--temperature"),
        ({"classifier": "cosine"}, "--classifier cosine is for plain transformers"),
        ({"cls_loss": "ldam"}, "loss ldam is for cosines"),
        ({"dist_loss": "ldam"}, "loss ldam is for cosines"),
        ({"lr": float("nan")}, "--lr must be positive"),
        ({"seed": -1}, "--seed must be a number of at least 0"),
        ({"patch_size": 0}, "--patch-size must be positive"),
        ({"micro_batch_size": 0}, "--micro-batch-size must be positive"),
        ({"drop_path_rate": 2.0}, "--drop-path-rate must be at most 1"),
        ({"val_fraction": -0.5}, "--val-fraction must be a number of at least 0"),
        ({"label_smoothing": 2.0}, "--label-smoothing must be at most 1"),
        ({"crop_scale": (0.5, float("inf"))}, "--crop-scale must be a number"),
    ],
)
def test_a_field_out_of_range_is_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        dataclasses.replace(students.cifar(), **fields)  # type: ignore[arg-type]
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
        students.cifar(), epochs=3, lr=1e-3, mix_in_drw=True, crop_scale=(0.5, 1.0), size="tiny",
        imbalance_factor=100.0,
    )  # fmt: skip
    assert command.recipe == expected
    assert command.workers == 0


def test_every_field_of_every_recipe_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    programs: list[tuple[Recipe, type]] = [
        (teachers.cifar(), TeacherCommand),
        (students.cifar(), StudentCommand),
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
        (["cifar", "--mix-in-drw", "True"], "'True' belongs to no option; a switch has no value"),
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


def test_no_recipe_gets_one_line() -> None:
    with pytest.raises(UsageError, match="name a recipe: digits, cifar") as error:
        pick_recipe("program", [], STUDENTS)
    assert "\n" not in str(error.value)


def test_a_schedule_that_never_gets_to_drw_is_noted() -> None:
    (note,) = dataclasses.replace(students.cifar(), epochs=300).notes()
    assert "--drw-epoch is 1100, --epochs 300" in note
    assert students.cifar().notes() == []


def test_a_schedule_that_only_warms_up_is_noted() -> None:
    (note,) = dataclasses.replace(STUDENTS["quick"](), epochs=5, drw_epoch=3).notes()
    assert "only warms up: --warmup-epochs is 5, --epochs 5" in note
    assert all(make().notes() == [] for make in (*TEACHERS.values(), *STUDENTS.values()))


@pytest.mark.parametrize(("recipes", "name", "changes", "flags"), [
    (TEACHERS, "quick", {"epochs": 200}, "--drw-epoch 160 --decay-epochs 160 180"),
    (TEACHERS, "quick", {"epochs": 20, "drw_epoch": 15}, "--decay-epochs 16 18"),
    (TEACHERS, "imagenet_lt", {"epochs": 30}, "--drw-epoch 20 --rho-epochs 1 20"),
    (TEACHERS, "cifar_paco", {"epochs": 100}, "--decay-epochs 80 90"),
    (STUDENTS, "quick", {"epochs": 80}, "--drw-epoch 68"),
    # What is off at the end of the recipe would come on in a longer run.
    (STUDENTS, "vit", {"epochs": 2400}, "--drw-epoch 2400"),
    (STUDENTS, "vit", {"epochs": 300}, ""),
    (STUDENTS, "quick", {"epochs": 80, "drw_epoch": 70}, ""),
    (STUDENTS, "quick", {"seed": 1}, ""),
])  # fmt: skip
def test_steps_that_do_not_move_with_the_epochs_are_noted(
    recipes: Mapping[str, Callable[[], Any]], name: str, changes: dict[str, object], flags: str
) -> None:
    named = recipes[name]()
    notes = unmoved_steps(dataclasses.replace(named, **changes), named)
    assert [note.partition(", add ")[2] for note in notes] == ([flags] if flags else [])
    assert all(f"of recipe {name} are those of its {named.epochs} epochs" in n for n in notes)


@pytest.mark.parametrize(("recipes", "name", "changes", "notes"), [
    (STUDENTS, "quick", {"flip": 0.1, "random_erasing": 0.1, "temperature": 2.0, "alpha": 0.4},
     ["--temperature changes nothing without --distillation soft"]),
    (STUDENTS, "imagenet_lt", {"random_erasing": 0.25, "crop_padding": 8, "max_margin": 0.3},
     ["--random-erasing changes nothing with --view three_augment",
      "--crop-padding changes nothing with --view three_augment",
      "--max-margin changes nothing without a loss ldam"]),
    (STUDENTS, "vit", {"alpha": 0.3, "drw_on_cls": True, "label_smoothing": 0.0},
     ["--alpha changes nothing without a DIST expert",
      "--drw-on-cls changes nothing without deferred re-weighting (--drw-epoch)"]),
    (STUDENTS, "cifar", {"subset_seed": 1, "split_seed": 1, "val_fraction": 0.0},
     ["--subset-seed changes nothing without --imbalance-factor",
      "--split-seed changes nothing with --val-fraction 0"]),
    (TEACHERS, "cifar", {"imbalance_factor": 50.0, "subset_seed": 1, "split_seed": 1}, []),
    (STUDENTS, "vit_ldam", {"max_margin": 0.3, "drw_beta": 0.99}, []),
    (STUDENTS, "quick", {"subset_seed": 1, "split_seed": 1, "val_fraction": 0.0},
     ["--subset-seed changes nothing without --imbalance-factor",
      "--split-seed changes nothing with --val-fraction 0"]),
    (STUDENTS, "quick", {"distillation": "soft", "temperature": 2.0}, []),
    (STUDENTS, "deit3", {"label_smoothing": 0.2},
     ["--label-smoothing changes nothing with --cls-loss bce"]),
    (STUDENTS, "cifar", {"label_smoothing": 0.2, "drw_cls_loss": "bce", "mix_in_drw": True}, []),
    (STUDENTS, "quick", {"drw_cls_loss": "vs", "loss_tau": 0.5, "loss_gamma": 0.2}, []),
    (TEACHERS, "quick", {"mixup": 0.2, "max_margin": 0.3, "rho": 0.0, "rho_epochs": (5,),
                         "rho_values": (0.2,), "sam_batch_norm": "both"},
     ["--mixup changes nothing with --method ldam"]),
    (TEACHERS, "quick", {"rho": 0.0, "sam_batch_norm": "both"},
     ["--sam-batch-norm changes nothing without SAM (--rho)"]),
    (TEACHERS, "cifar_paco", {"drw_epoch": 320, "paco_alpha": 0.05, "glmc_contrast": 4.0},
     ["--drw-epoch changes nothing with --method paco",
      "--glmc-contrast changes nothing with --method paco"]),
    (TEACHERS, "cifar_glmc", {"decay_factor": 0.1, "glmc_contrast": 4.0},
     ["--decay-factor changes nothing with --schedule cosine"]),
    (TEACHERS, "cifar_strong", {"mixup": 0.2, "crop_scale": (0.2, 1.0), "drw_epoch": 200}, []),
])  # fmt: skip
def test_options_that_change_nothing_are_noted(
    recipes: Mapping[str, Callable[[], Any]],
    name: str,
    changes: dict[str, object],
    notes: list[str],
) -> None:
    recipe = recipes[name]()
    assert unread_options(dataclasses.replace(recipe, **changes), recipe) == notes


def test_a_missing_flag_gets_one_line() -> None:
    with pytest.raises(UsageError, match="--output") as error:
        parse("program", StudentCommand, ["--data", "d"], recipe=students.cifar())
    assert "\n" not in str(error.value)
