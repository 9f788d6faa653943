"""The evidence program: order, commands that parse, stopping in time and going on."""

import json
import shutil
from argparse import Namespace
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from deitlt.errors import UsageError
from training.command_line import parse, pick_recipe
from training.recipes import STUDENTS, TEACHERS
from training.reproduce import main
from training.reproduction import evidence, launch
from training.reproduction.evidence import EXPERIMENTS, command_line
from training.train_student import StudentCommand
from training.train_teacher import TeacherCommand

TINY = "--epochs 1 --batch-size 16 --warmup-epochs 0 --drw-epoch 1 --workers 0"
STUDENT = f"{TINY} --micro-batch-size None --size pico --img-size 16 --patch-size 4"


@pytest.fixture(scope="module")
def data(
    tmp_path_factory: pytest.TempPathFactory,
    class_tree: Callable[[Path, Mapping[str, int]], Path],
) -> Path:
    root = tmp_path_factory.mktemp("reproduce") / "data"
    class_tree(root / "train", {"a": 16, "b": 16})
    class_tree(root / "test", {"a": 3, "b": 3})
    return root


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_command_is_one_the_programs_take(name: str) -> None:
    arguments = Namespace(
        data=Path("d"), output=Path("o"), imbalance_factor=100.0, seed=1,
        teacher_options="", student_options="--epochs 7 --drw-epoch 7",
    )  # fmt: skip
    program, *words = command_line(name, arguments)
    if program.endswith("teacher"):
        teacher, rest = pick_recipe(program, words, TEACHERS)
        command = parse(program, TeacherCommand, rest, recipe=teacher)
    else:
        student, rest = pick_recipe(program, words, STUDENTS)
        command = parse(program, StudentCommand, rest, recipe=student)
        assert command.recipe.epochs == 7
        assert (command.teacher is not None) == command.recipe.distilled
        assert (command.init is not None) == command.recipe.retrain_heads
    assert (command.recipe.seed, command.recipe.val_fraction) == (1, 0)
    assert command.output == Path("o") / name
    assert command.resume


def test_what_an_experiment_rests_on_comes_first() -> None:
    names = list(EXPERIMENTS)
    for name, experiment in EXPERIMENTS.items():
        assert not experiment.needs or names.index(experiment.needs) < names.index(name)
    assert evidence._with_needs(["tiny_vit_crt", "tiny_glmc"]) == [
        *("teacher_glmc", "tiny_vit", "tiny_vit_crt", "tiny_glmc")
    ]


def test_a_teacher_and_its_student_become_rows(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The programs in this process: starting one costs seconds.
    def finish(words: list[str], deadline: float | None) -> bool:
        assert import_module(words[0]).main(words[1:]) == 0
        return True

    monkeypatch.setattr(launch, "finish", finish)
    weak = f"{STUDENT} --allow-weak-teacher"
    where = ["--data", str(data), "--output", str(tmp_path), "--imbalance-factor", "2"]
    options = ["--teacher-options", f"{TINY} --img-size 8", "--student-options", weak]
    assert main(["evidence", *where, *options, "--only", "tiny_ldam"]) == 0
    table = (tmp_path / "results.md").read_text()
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| t")]
    assert [row[0] for row in rows] == ["| teacher_ldam", "| tiny_ldam"]
    heads = json.loads((tmp_path / "tiny_ldam" / "metrics-test.json").read_text())["heads"]
    assert rows[1][2].startswith(f"{100 * heads['average']['overall']['value']:.1f} (")
    assert rows[1][3].startswith(f"{100 * heads['cls']['overall']['value']:.1f} (")


def test_time_is_up_and_the_same_command_goes_on(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    where = ["--data", str(data), "--output", str(tmp_path), "--imbalance-factor", "2"]
    where += ["--only", "teacher_ldam"]
    endless = f"{TINY} --img-size 8 --epochs 100000 --drw-epoch 100000"
    assert main([*where, "--minutes", "0.05", "--teacher-options", endless]) == 0
    assert "time is up in teacher_ldam" in capfd.readouterr().out
    assert not (tmp_path / "teacher_ldam" / "metrics-test.json").exists()


def test_the_table_is_there_although_a_later_run_fails(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    test_sha256 = launch.look_at(data).test_sha256

    def train(words: list[str], run: Path, *_: Any) -> bool:
        if run.name == "tiny_ldam":
            raise UsageError("the GPU's memory is full")
        run.mkdir(parents=True)
        accuracy = {"value": 0.5}
        head = {"overall": accuracy, "groups": dict.fromkeys(("head", "mid", "tail"), accuracy)}
        metrics = {"epoch": 3, "heads": {"teacher": head}, "images_sha256": test_sha256}
        (run / "metrics-test.json").write_text(json.dumps(metrics))
        (run / "results.csv").write_text("epoch,images_per_s,seconds\n1,1000,60\n")
        return True

    monkeypatch.setattr(launch, "train_and_evaluate", train)
    arguments = ["--data", str(data), "--output", str(tmp_path), "--only", "tiny_ldam"]
    assert main(["evidence", *arguments]) == 2
    assert "the GPU's memory is full" in capsys.readouterr().err
    table = (tmp_path / "results.md").read_text()
    assert "| teacher_ldam | 3 | 50.0 (50.0; 50.0; 50.0) |" in table


def test_a_run_that_was_stopped_says_how_far_and_how_fast_it_is(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    rows = "epoch,images_per_s,seconds\n1,500,60\n2,1000,30\n3,1100,30\n"
    (tmp_path / "tiny" / "results.csv").write_text(rows)
    table = evidence.results_table(tmp_path, ["tiny", "small"], "hash")
    assert "| tiny | 3, not finished |  |  |  |  | 1000 | 2.0 |" in table
    assert "small" not in table


def test_an_unknown_experiment_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", "d", "--output", str(tmp_path / "o"), "--only", "huge"]
    assert main(arguments) == 2
    assert "no experiment 'huge'" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_run_that_fails_ends_the_program(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(data, tmp_path / "broken")
    for picture in (broken / "train").rglob("*.png"):
        picture.write_bytes(b"no picture")
    arguments = ["--data", str(broken), "--output", str(tmp_path / "o")]
    assert main([*arguments, "--only", "teacher_ldam", "--imbalance-factor", "2"]) == 2
    errors = capfd.readouterr().err
    assert "not an image this program reads" in errors
    assert "training.train_teacher ended with status 2" in errors
