"""`training.reproduce TABLE`: published figures, commands that parse, and a table run on digits."""

import csv
import json
import re
import shutil
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from training.command_line import parse, pick_recipe
from training.config import Recipe
from training.recipes import STUDENTS, TEACHERS
from training.reproduce import main
from training.reproduction import launch
from training.reproduction.compare import Ours, comparison, measured
from training.reproduction.plans import PLANS, Scale, run_folder, training_words, with_needs
from training.reproduction.published import CIFAR10, TABLES, Row
from training.train_student import StudentCommand
from training.train_teacher import TeacherCommand

ROWS = [row for rows in TABLES.values() for row in rows]
SMALLEST = "--epochs 1 --drw-epoch 1 --warmup-epochs 0 --batch-size 64 --workers 0"


def run_of(row: Row, plan: str, scale: Scale) -> tuple[Any, Recipe]:
    """The command and recipe that the training program makes of a plan's words."""
    words = training_words(plan, scale, Path("o"), Path("d"), row.dataset, row.factor, 1)
    program, *rest = words
    if program.endswith("teacher"):
        teacher, options = pick_recipe(program, rest, TEACHERS)
        command = parse(program, TeacherCommand, options, recipe=teacher)
    else:
        student, options = pick_recipe(program, rest, STUDENTS)
        command = parse(program, StudentCommand, options, recipe=student)
    return command, command.recipe


@pytest.mark.parametrize("scale", get_args(Scale))
def test_every_row_is_a_command_that_the_programs_take(scale: Scale) -> None:
    jobs = {(row.dataset, row.factor, plan): row for row in ROWS for plan in with_needs([row.plan])}
    for (dataset, factor, name), row in jobs.items():
        if scale == "tiny" and dataset.family != "cifar":
            continue  # a CPU has no use for them
        command, recipe = run_of(row, name, scale)
        plan = PLANS[name]
        own = (TEACHERS if plan.kind == "teacher" else STUDENTS)[plan.recipes[dataset.family]]()
        assert command.output == run_folder(Path("o"), dataset, factor, 1, name)
        assert command.resume
        assert (recipe.seed, recipe.val_fraction) == (1, 0)
        # A scale shortens a recipe; whether it re-weights in the end stays.
        assert (recipe.drw_epoch < recipe.epochs) == (own.drw_epoch < own.epochs) == plan.drw
        assert (recipe.imbalance_factor is None) == (factor is None)
        assert (recipe.epochs == own.epochs) or scale != "full"
        if plan.kind == "student":
            assert (command.teacher is not None) == getattr(recipe, "distilled")  # noqa: B009
            assert (command.init is not None) == getattr(recipe, "retrain_heads")  # noqa: B009


def test_what_a_plan_rests_on_comes_first() -> None:
    names = list(PLANS)
    for name, plan in PLANS.items():
        assert not plan.needs or names.index(plan.needs) < names.index(name)
    assert with_needs(["deit_lt", "vit_crt"]) == ["teacher_paco", "deit_lt", "vit", "vit_crt"]


def test_groups_make_up_the_published_overall_figure() -> None:
    # Balanced test sets: overall is the mean of the groups weighted by their classes.
    sizes = {10: (3, 4, 3), 100: (36, 35, 29), 1000: (390, 445, 165), 8142: (842, 3701, 3599)}
    checked = 0
    for row in ROWS:
        if row.groups is not None:
            weights = np.array(sizes[row.dataset.num_classes])
            mean = float(np.dot(weights, row.groups) / weights.sum())
            assert mean == pytest.approx(row.overall, abs=0.9), row
            checked += 1
    assert checked == 36


def test_tables_agree_where_they_print_the_same_figure() -> None:
    by_place = {(r.dataset.name, r.factor, r.plan): r.overall for r in TABLES["2"]}
    for row in (*TABLES["5"], *TABLES["6"]):
        known = by_place.get((row.dataset.name, row.factor, row.plan))
        assert known is None or known == row.overall
    assert len(TABLES["2"]) == 8 * 4
    assert [len(TABLES[name]) for name in ("1", "3", "4", "5", "6", "S.3", "S.4")] == [
        *(8, 6, 6, 8, 6, 12, 6)
    ]


def test_a_standard_error_is_that_of_the_mean() -> None:
    ours = Ours([80.0, 82.0, 87.0], [(1.0, 2.0, 3.0), (3.0, 2.0, 1.0), (2.0, 2.0, 2.0)])
    assert ours.mean == pytest.approx(83)
    assert ours.standard_error == pytest.approx((((9 + 1 + 16) / 2) ** 0.5) / 3**0.5)
    assert ours.mean_groups() == pytest.approx((2, 2, 2))
    assert Ours([80.0], []).standard_error is None


def written(root: Path, row: Row, seed: int, overall: float) -> None:
    """A finished run as `training.evaluate` leaves it."""
    run = run_folder(root, row.dataset, row.factor, seed, row.plan)
    run.mkdir(parents=True)
    groups = {name: {"value": overall - 0.1} for name in ("head", "mid", "tail")}
    head = {"overall": {"value": overall}, "groups": groups}
    heads = {"average": head, "cls": {**head, "overall": {"value": 0.2}}, "dist": head}
    (run / "metrics-test.json").write_text(json.dumps({"heads": heads, "images_sha256": "here"}))
    (run / "reproduced.json").write_text(json.dumps({"test_sha256": "here"}))
    (run / "results.csv").write_text("epoch,teacher_agreement\n1,0.1\n2,0.6\n")


def test_ours_stands_beside_the_published_figure(tmp_path: Path) -> None:
    row = Row("m", CIFAR10, 100, "deit_lt", 80.0, (90.0, 80.0, 70.0), standard_error=0.5)
    for seed, overall in enumerate((0.81, 0.83)):
        written(tmp_path, row, seed, overall)
    text = comparison([row], tmp_path, range(3), {CIFAR10.name: "here"}, {})
    cells = [cell.strip() for cell in text.splitlines()[2].split("|")[1:-1]]
    assert cells == [
        *("CIFAR-10-LT 100", "m", "82.0 ± 1.00", "2", "80.0 ± 0.50", "+2.0"),
        *("72.0; 72.0; 72.0", "90.0; 80.0; 70.0"),
    ]
    of_cls = Row("m", CIFAR10, 100, "deit_lt", 80.0, head="cls")
    assert measured(of_cls, tmp_path, [0], {}).overall == pytest.approx([20])
    labels = Row("m", CIFAR10, 100, "deit_lt", 80.0, head="teacher_agreement")
    assert measured(labels, tmp_path, [0, 1], {}).overall == pytest.approx([60, 60])


def test_figures_on_other_images_are_left_out(tmp_path: Path) -> None:
    row = Row("m", CIFAR10, 100, "deit_lt", 80.0)
    written(tmp_path, row, 0, 0.81)
    assert measured(row, tmp_path, [0], {CIFAR10.name: "there"}).overall == []
    run = run_folder(tmp_path, CIFAR10, 100, 0, "deit_lt")
    (run / "reproduced.json").write_text(json.dumps({"command": []}))
    assert measured(row, tmp_path, [0], {}).overall == []


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The programs run here, as starting one costs seconds; gives what was run."""
    ran: list[list[str]] = []

    def finish(words: list[str], deadline: float | None) -> bool:
        ran.append(words)
        assert import_module(words[0]).main(words[1:]) == 0
        return True

    monkeypatch.setattr(launch, "finish", finish)
    return ran


def test_a_table_runs_on_digits_and_goes_on(
    tmp_path: Path, in_this_process: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["6", "--scale", "tiny", "--seeds", "1", "--output", str(tmp_path)]
    words += [
        "--teacher-options",
        f"{SMALLEST} --decay-epochs 1",
        "--student-options",
        f"{SMALLEST} --size pico",
    ]
    assert main(words) == 0
    programs = [run[0] for run in in_this_process]
    assert programs == ["training.train_teacher", "training.evaluate"] + [
        "training.train_student", "training.evaluate"
    ] * 3  # fmt: skip
    shown = capsys.readouterr().out
    with (tmp_path / "tiny" / "table-6.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["seeds"] for row in rows] == ["1", "1", "1", "0", "0", "0"]
    for row in rows[:3]:
        assert float(row["difference"]) == pytest.approx(
            float(row["ours"]) - float(row["published"]), abs=0.02
        )
    assert "CIFAR-100-LT needs CIFAR-100" in shown
    assert "mean nothing" in shown
    assert shown.count("| CIFAR-100-LT 100 | DeiT-LT-S | no data |") == 1
    # Again: what is finished is not even started.
    in_this_process.clear()
    assert main(words) == 0
    assert in_this_process == []
    assert capsys.readouterr().out.count(": finished before\n") == 4


def test_rows_without_data_say_what_they_need(
    tmp_path: Path, in_this_process: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["S.4", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "ImageNet-LT needs ImageNet with the lists" in shown
    assert "iNaturalist-2018 needs iNaturalist-2018 with the lists" in shown
    assert len(re.findall(r"\| no data \|", shown)) == 6
    assert in_this_process == []


def test_time_is_up_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "finish", lambda words, deadline: deadline is None)
    words = ["5", "--scale", "tiny", "--output", str(tmp_path), "--minutes", "1"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "time is up in" in shown
    assert "| not yet run |" in shown


def test_mistakes_get_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    class_tree: Callable[[Path, Mapping[str, int]], Path],
) -> None:
    odd = class_tree(tmp_path / "odd" / "train", {"a": 1, "b": 1}).parent
    ten = class_tree(tmp_path / "ten", {str(i): 1 for i in range(10)})
    tested = tmp_path / "tested"
    for split in ("train", "test"):
        shutil.copytree(ten, tested / split)
    output = ["--output", str(tmp_path / "new")]
    for words, complaint in (
        (["2", *output, "--seeds", "0"], "--seeds must be at least 1"),
        (["2", *output, "--data", str(odd)], "has 2 classes; the paper's sets have 10"),
        (["2", *output, "--data", str(ten)], "has no test images"),
        (["2", *output, "--data", str(tested), str(tested)], "two sets of 10 classes"),
        (["2", *output, "--data", str(tmp_path / "none")], "there is no such folder"),
        (["2", *output, "--teacher-options", "'"], "No closing quotation"),
        (["2", *output, "--minutes", "0"], "--minutes must be above 0, not 0"),
        # What comes last is read before the first run takes hours.
        (
            ["2", *output, "--scale", "tiny", "--student-options", "--epoch 1"],
            "no option '--epoch'",
        ),
        (["2", *output, "--scale", "tiny", "--student-options", "--flip 2"], "flip"),
        (
            ["2", "--scale", "tiny", "--output", str(odd / "train" / "a" / "0.png")],
            "cannot be made",
        ),
    ):
        capsys.readouterr()
        assert main(words) == 2
        line = capsys.readouterr().err
        assert complaint in line
        assert line.count("\n") == 1
    assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit, match="2"):
        main(["7", *output])
    assert capsys.readouterr().err.count("\n") == 1
