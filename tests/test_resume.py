"""Runs killed with SIGKILL and resumed end in the weights of an uninterrupted run, bit for bit."""

import csv
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from deitlt.weights import load_tensors, load_weights, save_tensors
from training import evaluate, train_student, train_teacher
from training.engine.checkpoint import unfinished

# Runs a program and kills it for good when the named function is called for the n-th time.
DRIVER = """
import importlib, os, signal, sys
module_name, function, count, program, *arguments = sys.argv[1:]
module = importlib.import_module(module_name)
original, calls = getattr(module, function), 0

def counted(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)

setattr(module, function, counted)
importlib.import_module(program).main(arguments)
"""

TEACHER = ["digits", "--epochs", "5", "--drw-epoch", "3", "--batch-size", "8", "--workers", "0"]
STUDENT = [*TEACHER, "--warmup-epochs", "1", "--micro-batch-size", "4", "--allow-weak-teacher"]
COMMON = ["--imbalance-factor", "None", "--val-fraction", "0.2", "--checkpoint-epochs", "2"]


@pytest.fixture(scope="module")
def data(
    tmp_path_factory: pytest.TempPathFactory,
    class_tree: Callable[[Path, Mapping[str, int]], Path],
) -> Path:
    """38 images, 30 of them trained on."""
    counts = {"a": 14, "b": 10, "c": 8, "d": 6}
    return class_tree(tmp_path_factory.mktemp("resume") / "data", counts)


@pytest.fixture(scope="module")
def teacher(data: Path) -> Path:
    """An uninterrupted teacher run."""
    run = data.parent / "teacher"
    assert train_teacher.main([*TEACHER, *COMMON, "--data", str(data), "--output", str(run)]) == 0
    return run


@pytest.fixture(scope="module")
def student(data: Path, teacher: Path) -> Path:
    """An uninterrupted student run."""
    run = data.parent / "student"
    arguments = [*STUDENT, *COMMON, "--data", str(data), "--teacher", str(teacher)]
    assert train_student.main([*arguments, "--output", str(run)]) == 0
    return run


def kill(module: str, function: str, count: int, program: str, arguments: list[str]) -> None:
    command = [sys.executable, "-c", DRIVER, module, function, str(count), program, *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr


def assert_same_run(actual: Path, expected: Path, weights: str) -> None:
    """Same selected weights, same state (optimiser included), same figures of every epoch."""
    for name in (weights, "resume.safetensors"):
        ours, our_fields = load_tensors(actual / name)
        theirs, their_fields = load_tensors(expected / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), key
        for row in our_fields.get("history", []) + their_fields.get("history", []):
            row.pop("seconds")
            row.pop("images_per_s")
        assert our_fields == their_fields
    with (actual / "results.csv").open() as ours_csv, (expected / "results.csv").open() as csv_:
        epochs = [[row["epoch"] for row in csv.DictReader(file)] for file in (ours_csv, csv_)]
    assert epochs == [["1", "2", "3", "4", "5"]] * 2


# 5 epochs of 3 steps; resume points after epochs 2, 4 and 5.
@pytest.mark.parametrize("step", [5, 14])
def test_a_teacher_killed_in_a_step(step: int, data: Path, teacher: Path, tmp_path: Path) -> None:
    arguments = [*TEACHER, *COMMON, "--data", str(data), "--output", str(tmp_path / "run")]
    kill("training.teachers.learner", "sam_step", step, "training.train_teacher", arguments)
    assert train_teacher.main([*arguments, "--resume"]) == 0
    assert_same_run(tmp_path / "run", teacher, "teacher.safetensors")


# 5 epochs of 7 micro-batches, the last three of them an incomplete step.
@pytest.mark.parametrize("step", [16, 33])
def test_a_student_killed_between_micro_batches(
    step: int, data: Path, teacher: Path, student: Path, tmp_path: Path
) -> None:
    arguments = [*STUDENT, *COMMON, "--data", str(data), "--teacher", str(teacher)]
    arguments += ["--output", str(tmp_path / "run")]
    kill(
        "training.students.distillation", "deit_lt_loss", step, "training.train_student", arguments
    )
    assert train_student.main([*arguments, "--resume"]) == 0
    assert_same_run(tmp_path / "run", student, "student.safetensors")


@pytest.mark.parametrize(("module", "function", "count"), [
    ("os", "replace", 3), ("os", "replace", 6), ("deitlt.weights", "save_file", 2),
])  # fmt: skip
def test_a_student_killed_while_it_saves(
    module: str, function: str, count: int, data: Path, teacher: Path, student: Path, tmp_path: Path
) -> None:
    arguments = [*STUDENT, *COMMON, "--data", str(data), "--teacher", str(teacher)]
    arguments += ["--output", str(tmp_path / "run")]
    kill(module, function, count, "training.train_student", arguments)
    (tmp_path / "run" / ".tmpAb3xYz").touch()  # as safetensors may leave
    assert train_student.main([*arguments, "--resume"]) == 0
    assert_same_run(tmp_path / "run", student, "student.safetensors")
    assert not list((tmp_path / "run").glob(".*"))  # what the kill left


def test_a_finished_run_resumes_to_itself(data: Path, student: Path, teacher: Path) -> None:
    before = (student / "student.safetensors").read_bytes()
    table = (student / "results.csv").read_text()
    # Killed between its last resume point and the table.
    (student / "results.csv").write_text("".join(table.splitlines(keepends=True)[:-1]))
    arguments = [*STUDENT, *COMMON, "--data", str(data), "--teacher", str(teacher)]
    assert train_student.main([*arguments, "--output", str(student), "--resume"]) == 0
    assert (student / "student.safetensors").read_bytes() == before
    assert (student / "results.csv").read_text() == table


def test_a_teacher_that_has_not_finished_is_spoken_of(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(teacher, tmp_path / "teacher")
    rows = (run / "results.csv").read_text().splitlines(keepends=True)
    (run / "results.csv").write_text("".join(rows[:3]))
    arguments = [*STUDENT, *COMMON, "--epochs", "1", "--data", str(data)]
    arguments += ["--output", str(tmp_path / "run"), "--teacher"]
    capsys.readouterr()
    for file in (run, run / "teacher.safetensors"):
        assert train_student.main([*arguments, str(file), "--overwrite"]) == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"warning: --teacher {file}: has finished 2 of 5 epochs; --resume")
    assert evaluate.main([str(run), "--data", str(data), "--split", "val"]) == 0
    assert capsys.readouterr().err == f"warning: {run}: has finished 2 of 5 epochs\n"
    (run / "results.csv").unlink()
    assert unfinished(run) == "0 of 5 epochs"
    (run / "recipe.json").unlink()  # weights that were copied alone
    assert unfinished(run) == unfinished(teacher) == ""


@pytest.mark.parametrize("finished", [True, False])
def test_weights_that_are_gone_are_made_anew(
    finished: bool, data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(teacher, tmp_path / "run")
    (run / "teacher.safetensors").unlink()
    if not finished:
        tensors, fields = load_tensors(run / "resume.safetensors")
        fields |= {"epoch": 4, "history": fields["history"][:4], "best_score": 2.0}
        save_tensors(run / "resume.safetensors", tensors, fields)
    capsys.readouterr()
    arguments = [*TEACHER, *COMMON, "--data", str(data), "--output", str(run), "--resume"]
    assert train_teacher.main(arguments) == 0
    assert "the selected weights are gone; those of epoch 5" in capsys.readouterr().err
    weights, card = load_weights(run / "teacher.safetensors", "teacher")
    assert card.epoch == 5
    assert card.validation["teacher"]["balanced"]["num_images"] > 0
    resumed, _ = load_tensors(run / "resume.safetensors")
    for name, tensor in weights.items():
        assert torch.equal(tensor, resumed[f"model.network.{name}"]), name


def test_a_resume_point_that_is_gone_is_one_line(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(teacher, tmp_path / "run")
    (run / "resume.safetensors").unlink()
    capsys.readouterr()
    arguments = [*TEACHER, *COMMON, "--data", str(data), "--output", str(run), "--resume"]
    assert train_teacher.main(arguments) == 2
    assert "resume.safetensors: is gone" in (line := capsys.readouterr().err)
    assert line.count("\n") == 1
    assert (run / "teacher.safetensors").is_file()


@pytest.mark.parametrize("content", [b"{", b"\xff"])
def test_a_damaged_recipe_is_one_line(
    content: bytes, data: Path, student: Path, teacher: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = shutil.copytree(student, tmp_path / "run")
    (run / "recipe.json").write_bytes(content)
    arguments = [*STUDENT, *COMMON, "--data", str(data), "--teacher", str(teacher)]
    capsys.readouterr()
    assert train_student.main([*arguments, "--output", str(run), "--resume"]) == 2
    assert "recipe.json: is missing or damaged" in (line := capsys.readouterr().err)
    assert line.count("\n") == 1


def test_no_file_of_a_run_is_a_pickle(student: Path) -> None:
    names = sorted(file.name for file in student.iterdir() if file.is_file())
    assert names == ["recipe.json", "results.csv", "resume.safetensors", "student.safetensors"]
    for file in student.glob("*.safetensors"):
        length = int.from_bytes(file.read_bytes()[:8], "little")
        assert file.read_bytes()[8:9] == b"{"
        assert 8 + length < file.stat().st_size


def test_a_run_does_not_resume_with_another_teacher_or_other_images(
    data: Path,
    teacher: Path,
    student: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (student / "resume.safetensors").read_bytes()
    tensors, fields = load_tensors(teacher / "teacher.safetensors")
    save_tensors(tmp_path / "teacher.safetensors", tensors, {**fields, "epoch": 1})
    fewer = shutil.copytree(data, tmp_path / "fewer")
    (fewer / "a" / "0.png").unlink()
    for source, guide in ((data, tmp_path), (fewer, teacher)):
        where = ["--data", str(source), "--teacher", str(guide), "--output", str(student)]
        assert train_student.main([*STUDENT, *COMMON, *where, "--resume"]) == 2
        assert "other training images or with another teacher" in capsys.readouterr().err
    assert (student / "resume.safetensors").read_bytes() == before


def test_a_resume_point_that_knows_images_by_name_alone_is_one_line(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(teacher, tmp_path / "run")
    tensors, fields = load_tensors(run / "resume.safetensors")
    save_tensors(run / "resume.safetensors", tensors, {**fields, "inputs_sha256": 64 * "0"})
    capsys.readouterr()
    arguments = [*TEACHER, *COMMON, "--data", str(data), "--output", str(run), "--resume"]
    assert train_teacher.main(arguments) == 2
    assert "is of an earlier version" in (line := capsys.readouterr().err)
    assert line.count("\n") == 1
