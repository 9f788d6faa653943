"""A run that is asked to stop loses nothing; one that cannot go on says why in one line."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from deitlt.weights import load_tensors
from training import train_student, train_teacher
from training.engine import stopping
from training.engine.distributed import World
from training.engine.stopping import AGREE_S, Pace, StopRequest, stop_request
from training.engine.tracking import ProgressBar
from training.students.distillation import StudentLearner
from training.teachers.learner import TeacherLearner

Tree = Callable[[Path, Mapping[str, int]], Path]

# 30 images to train on: 7 micro-batches of 4, in 4 steps an epoch; resume points every 2 epochs.
COMMON = ["digits", "--epochs", "3", "--drw-epoch", "2", "--batch-size", "8", "--workers", "0"]
COMMON += ["--micro-batch-size", "4", "--warmup-epochs", "1", "--checkpoint-epochs", "2"]
COMMON += ["--imbalance-factor", "None", "--val-fraction", "0.2"]
STUDENT = [*COMMON, "--allow-weak-teacher", "--ema-decay", "0.9"]
PACO = ["--method", "paco", "--classifier", "linear", "--view", "paco_small", "--paco-queue", "32"]
PACO += ["--img-size", "32"]  # its cutout of 16 px leaves nothing of a small image
GLMC = ["--method", "glmc", "--classifier", "linear"]
TEACHERS = {"ldam": COMMON, "paco": [*COMMON, *PACO], "glmc": [*COMMON, *GLMC]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, class_tree: Tree) -> Path:
    """38 images, 30 of them trained on."""
    counts = {"a": 14, "b": 10, "c": 8, "d": 6}
    return class_tree(tmp_path_factory.mktemp("stopping") / "data", counts)


@pytest.fixture(scope="module")
def teacher(data: Path) -> Path:
    """An uninterrupted teacher."""
    run = data.parent / "teacher"
    assert train_teacher.main([*COMMON, "--data", str(data), "--output", str(run)]) == 0
    return run


@pytest.fixture(scope="module")
def student(data: Path, teacher: Path) -> Path:
    """An uninterrupted student."""
    run = data.parent / "student"
    assert train_student.main(student_arguments(data, teacher, run)) == 0
    return run


def student_arguments(data: Path, teacher: Path, run: Path) -> list[str]:
    return [*STUDENT, "--data", str(data), "--teacher", str(teacher), "--output", str(run)]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this process send itself signals while it computes the n-th step from now."""

    def arrange(learner: type, number: int, *signals: signal.Signals) -> None:
        original = learner.step  # type: ignore[attr-defined]
        calls = [0]

        def step(self: Any, *arguments: Any) -> Tensor:
            calls[0] += 1
            if calls[0] == number:
                for which in signals:
                    os.kill(os.getpid(), which)
            figures: Tensor = original(self, *arguments)
            return figures

        monkeypatch.setattr(learner, "step", step)

    return arrange


def assert_same_run(actual: Path, expected: Path, weights: str) -> None:
    """Same selected weights, same state (optimiser included), same figures of every epoch."""
    for name in (weights, "resume.safetensors"):
        ours, our_fields = load_tensors(actual / name)
        theirs, their_fields = load_tensors(expected / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), key
        for row in our_fields.get("history", []) + their_fields.get("history", []):
            del row["seconds"], row["images_per_s"]
        assert our_fields == their_fields
    tables = []
    for run in (actual, expected):
        with (run / "results.csv").open() as file:
            rows = [dict(row) for row in csv.DictReader(file)]
        tables.append([{k: row[k] for k in row if k not in CLOCKED} for row in rows])
    assert tables[0] == tables[1]
    assert [row["epoch"] for row in tables[0]] == ["1", "2", "3"]


CLOCKED = ("seconds", "images_per_s")


def said_once(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


# Steps count from 1, four an epoch: within an epoch, within the first, at the end of one.
@pytest.mark.parametrize(("number", "epoch", "step"), [(6, 1, 2), (1, 0, 1), (4, 1, 0), (9, 2, 1)])
def test_a_student_asked_to_stop_goes_on_as_if_it_had_not(
    number: int,
    epoch: int,
    step: int,
    data: Path,
    teacher: Path,
    student: Path,
    tmp_path: Path,
    ask: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = student_arguments(data, teacher, tmp_path / "run")
    ask(StudentLearner, number, signal.SIGTERM)
    assert train_student.main(arguments) == 143
    line = said_once(capsys)
    where = f"after epoch {epoch} of 3" + (f", step {step} of the next" if step else "")
    assert line == f"training.train_student: stopped by SIGTERM {where}; continue with --resume"
    _, fields = load_tensors(tmp_path / "run" / "resume.safetensors")
    assert (fields["epoch"], fields["step"], len(fields["sums"])) == (epoch, step, 5 * bool(step))

    assert train_student.main([*arguments, "--resume"]) == 0
    assert f"resuming {where}\n" in capsys.readouterr().out
    assert_same_run(tmp_path / "run", student, "student.safetensors")


@pytest.mark.parametrize("method", TEACHERS)
def test_a_teacher_asked_to_stop_goes_on_as_if_it_had_not(
    method: str, data: Path, teacher: Path, tmp_path: Path, ask: Callable[..., None]
) -> None:
    whole = teacher
    if method != "ldam":
        whole = tmp_path / "whole"
        arguments = [*TEACHERS[method], "--data", str(data), "--output", str(whole)]
        assert train_teacher.main(arguments) == 0
    arguments = [*TEACHERS[method], "--data", str(data), "--output", str(tmp_path / "run")]
    ask(TeacherLearner, 7, signal.SIGINT)
    assert train_teacher.main(arguments) == 130
    ask(TeacherLearner, 3, signal.SIGTERM)  # and once more: step 2 of the third epoch
    assert train_teacher.main([*arguments, "--resume"]) == 143
    _, fields = load_tensors(tmp_path / "run" / "resume.safetensors")
    assert (fields["epoch"], fields["step"]) == (2, 2)
    assert train_teacher.main([*arguments, "--resume"]) == 0
    assert_same_run(tmp_path / "run", whole, "teacher.safetensors")


def test_asked_in_the_last_step_a_run_is_done(
    data: Path, teacher: Path, student: Path, tmp_path: Path, ask: Callable[..., None]
) -> None:
    ask(StudentLearner, 12, signal.SIGTERM)
    assert train_student.main(student_arguments(data, teacher, tmp_path / "run")) == 0
    assert_same_run(tmp_path / "run", student, "student.safetensors")


def test_ctrl_c_saves_and_twice_it_does_not_wait(
    data: Path,
    teacher: Path,
    tmp_path: Path,
    ask: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(stopping, "ECHO_S", 0)
    arguments = student_arguments(data, teacher, tmp_path / "run")
    handlers = [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)]
    ask(StudentLearner, 6, signal.SIGINT)
    assert train_student.main(arguments) == 130
    assert "stopped by SIGINT after epoch 1 of 3, step 2 of the next" in said_once(capsys)
    before = (tmp_path / "run" / "resume.safetensors").read_bytes()
    ask(StudentLearner, 2, signal.SIGINT, signal.SIGINT)
    assert train_student.main([*arguments, "--resume"]) == 130
    assert said_once(capsys).endswith("interrupted; continue with --resume")
    assert (tmp_path / "run" / "resume.safetensors").read_bytes() == before
    assert [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_request_is_heard_in_its_block_alone() -> None:
    former = signal.getsignal(signal.SIGTERM)
    with stop_request() as request:
        assert not request
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # impatience changes nothing
        assert request
        assert request.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is former
    assert not StopRequest()


class _Two(World):
    """Two processes that do the same and take the same time, of which one is there."""

    def total(self, values: Tensor) -> Tensor:
        return 2 * values

    def barrier(self) -> None:
        """Nobody to wait for."""

    def wrap(self, module: torch.nn.Module) -> torch.nn.Module:
        return module


@pytest.mark.parametrize(("seconds", "longest"), [(20.0, 20.0), (3.0, 5.0), (0.01, AGREE_S)])
def test_processes_agree_by_time_whatever_a_step_takes(
    seconds: float, longest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    pace = Pace(_Two(torch.device("cpu"), 0, 2))
    met = [0.0]
    while clock[0] < 100:
        clock[0] += seconds
        if pace.due():
            met.append(clock[0])
    gaps = [later - earlier for earlier, later in pairwise(met)]
    assert max(gaps) <= longest + 1e-6
    assert gaps[-1] > longest / 2  # and not much more often
    assert all(Pace(World(torch.device("cpu"))).due() for _ in range(3))


def test_several_processes_show_and_check_an_epoch_before_its_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, shown, steps = TeacherLearner.step, list[float](), list[int]()

    def step(self: TeacherLearner, epoch: int, number: int, *batches: Any) -> Tensor:
        steps.append(number)
        return original(self, epoch, number, *batches) * (torch.nan if shown else 1)

    two = _Two(torch.device("cpu"), 0, 2)
    monkeypatch.setattr(train_teacher, "join_world", lambda _: nullcontext(two))
    monkeypatch.setattr(TeacherLearner, "step", step)
    monkeypatch.setattr(ProgressBar, "show", lambda _, epoch, share: shown.append(share))
    arguments = [*COMMON, "--data", str(data), "--output", str(tmp_path / "run")]
    assert train_teacher.main([*arguments, "--batch-size", "4", "--micro-batch-size", "2"]) == 2
    assert shown == [1 / 7]
    assert steps == [0, 1, 2]  # they met after the first, and two later


def test_ctrl_c_that_torchrun_repeats_is_one() -> None:
    """The terminal signals its whole group, and torchrun each of its processes again."""
    with stop_request() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal_number == signal.SIGINT
        time.sleep(stopping.ECHO_S)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_reaches_worker_processes_too_stops_as_any_other(
    asked: signal.Signals, data: Path, teacher: Path, class_tree: Tree, tmp_path: Path
) -> None:
    """A terminal, torchrun and Slurm signal all; an image of another size calls for workers."""
    uneven = class_tree(tmp_path / "data", {"a": 14, "b": 10, "c": 8, "d": 6})
    Image.open(uneven / "a" / "0.png").resize((40, 40)).save(uneven / "a" / "0.png")
    run = tmp_path / "run"
    arguments = [*student_arguments(uneven, teacher, run), "--epochs", "5000", "--workers", "1"]
    arguments += ["--checkpoint-epochs", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "training.train_student", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        while not (run / "resume.safetensors").exists() and program.poll() is None:
            time.sleep(0.1)
        os.killpg(program.pid, asked)
        _, complaint = program.communicate(timeout=60)
    assert program.returncode == 128 + asked, complaint
    lines = [line for line in complaint.splitlines() if line.startswith("training")]
    assert len(lines) == 1
    assert f"stopped by {asked.name}" in lines[0]
    assert "Traceback" not in complaint
    _, fields = load_tensors(run / "resume.safetensors")
    assert fields["epoch"] >= 1


FULL_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has")
KILLED_WORKER = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")


@pytest.mark.parametrize(("error", "said", "advice"), [
    (FULL_GPU, "memory is full", "--micro-batch-size"),
    (KILLED_WORKER, "killed by signal: Killed; allow", "--shm-size"),
])  # fmt: skip
def test_full_memory_is_one_line_that_names_the_way_out(
    error: Exception,
    said: str,
    advice: str,
    data: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*arguments: Any) -> Tensor:
        raise error

    monkeypatch.setattr(StudentLearner, "step", full)
    assert train_student.main(student_arguments(data, teacher, tmp_path / "run")) == 2
    line = said_once(capsys)
    assert said in line
    assert advice in line


@pytest.mark.parametrize("number", [1, 8])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_its_resume_point(
    number: int,
    data: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original, calls = StudentLearner.step, [0]

    def step(self: StudentLearner, *arguments: Any) -> Tensor:
        calls[0] += 1
        return original(self, *arguments) * (torch.nan if calls[0] == number else 1)

    monkeypatch.setattr(StudentLearner, "step", step)
    arguments = [*student_arguments(data, teacher, tmp_path / "run"), "--checkpoint-epochs", "1"]
    assert train_student.main(arguments) == 2
    epoch = 1 if number == 1 else 2
    assert f"training diverged: the loss of epoch {epoch} is nan" in said_once(capsys)
    saved = tmp_path / "run" / "resume.safetensors"
    assert saved.exists() == (epoch == 2)
    if saved.exists():
        assert load_tensors(saved)[1]["epoch"] == 1
