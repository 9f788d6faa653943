"""Every recipe runs: two steps at a tiny size, before and in its DRW phase."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from deitlt.weights import load_weights
from training import train_student, train_teacher
from training.config import Recipe
from training.recipes import STUDENTS, TEACHERS, teachers

COUNTS = {"a": 7, "b": 5, "c": 4}
# One step an epoch.
TINY = ["--epochs", "2", "--warmup-epochs", "1", "--batch-size", "16", "--micro-batch-size", "8"]
TINY += ["--val-fraction", "0", "--imbalance-factor", "None", "--workers", "0"]
SMALL_NETWORKS = {"timm/regnety_160": "timm/regnety_002"}


@pytest.fixture(scope="module")
def data(
    tmp_path_factory: pytest.TempPathFactory,
    class_tree: Callable[[Path, Mapping[str, int]], Path],
) -> Path:
    return class_tree(tmp_path_factory.mktemp("recipes") / "data", COUNTS)


@pytest.fixture(scope="module")
def teacher(data: Path) -> Path:
    run = data.parent / "teacher"
    assert train_teacher.main(["digits", *tiny(teachers.digits()), *where(data, run)]) == 0
    return run


@pytest.fixture(scope="module")
def vit(data: Path) -> Path:
    run = data.parent / "vit"
    recipe = STUDENTS["vit"]()
    assert train_student.main(["vit", *tiny(recipe), *pico(), *where(data, run)]) == 0
    return run


def where(data: Path, run: Path) -> list[str]:
    return ["--data", str(data), "--output", str(run)]


def tiny(recipe: Recipe) -> list[str]:
    """DRW in the second epoch, if the recipe has any."""
    return [*TINY, "--drw-epoch", "1" if recipe.drw_epoch < recipe.epochs else "2"]


def pico() -> list[str]:
    return ["--size", "pico", "--img-size", "16", "--patch-size", "4"]


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_recipe_takes_two_steps(name: str, data: Path, tmp_path: Path) -> None:
    recipe = TEACHERS[name]()
    options = [*tiny(recipe), "--img-size", "16"]
    options += ["--network", SMALL_NETWORKS.get(recipe.network, recipe.network)]
    if recipe.method == "paco":
        options += ["--paco-queue", "32"]
    assert train_teacher.main([name, *options, *where(data, tmp_path / "run")]) == 0
    _, card = load_weights(tmp_path / "run", "teacher")
    assert card.architecture["classifier"] == recipe.classifier
    check_losses(tmp_path / "run")


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_recipe_takes_two_steps(
    name: str, data: Path, teacher: Path, vit: Path, tmp_path: Path
) -> None:
    recipe = STUDENTS[name]()
    options = [*tiny(recipe), *pico()]
    if recipe.distilled:
        options += ["--teacher", str(teacher), "--allow-weak-teacher"]
    if recipe.retrain_heads:
        options += ["--init", str(vit)]
    assert train_student.main([name, *options, *where(data, tmp_path / "run")]) == 0
    check_losses(tmp_path / "run")


def check_losses(run: Path) -> None:
    header, *rows = (run / "results.csv").read_text().splitlines()
    assert len(rows) == 2
    loss = header.split(",").index("loss")
    assert all(0 < float(row.split(",")[loss]) < 100 for row in rows)
