"""Two processes, started by torchrun on this CPU, learn what one process learns."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deitlt.weights import Tensors, load_tensors
from training import train_student, train_teacher
from training.engine.distributed import World, join_world, pick_device
from training.engine.feed import MicroBatch
from training.recipes import teachers
from training.teachers.learner import TeacherLearner, build_method
from training.teachers.paco import PaCoMethod

Tree = Callable[[Path, Mapping[str, int]], Path]

# Runs programs one after the other in each process, which meet once for all of them. Of each:
# status, what was printed, and the weights at its end, in one folder a rank.
DRIVER = """
import contextlib, importlib, json, os, sys, traceback
from pathlib import Path
from torch import distributed
from deitlt.weights import save_tensors
from training.engine.loop import Training

distributed.init_process_group("gloo")
leave = distributed.destroy_process_group
distributed.init_process_group = lambda backend, **options: None
distributed.destroy_process_group = lambda: None
folder = Path(sys.argv[1]) / os.environ["RANK"]
folder.mkdir(parents=True)
train, status, name = Training.__call__, {}, ""

def and_keep(self):
    progress = train(self)
    save_tensors(folder / f"{name}.safetensors", self.learner.modules["model"].state_dict(), {})
    return progress

Training.__call__ = and_keep
for name, (program, arguments) in json.loads(sys.argv[2]).items():
    with open(folder / f"{name}.err", "w") as err, contextlib.redirect_stderr(err):
        with open(folder / f"{name}.out", "w") as out, contextlib.redirect_stdout(out):
            arguments = [os.path.expandvars(argument) for argument in arguments]
            try:
                status[name] = importlib.import_module(program).main(arguments)
            except BaseException:
                traceback.print_exc()
                status[name] = "crashed"
(folder / "status.json").write_text(json.dumps(status))
leave()
# What torch's threads make of an interpreter that ends, now and then an abort, is no matter here.
os._exit(0)
"""

COMMON = ["digits", "--epochs", "2", "--drw-epoch", "1", "--warmup-epochs", "1"]
COMMON += ["--imbalance-factor", "None", "--val-fraction", "0.2", "--device", "cpu"]
# 34 training images make 8 micro-batches of 4.
LDAM = [*COMMON, "--batch-size", "8", "--micro-batch-size", "4"]
PACO = [*COMMON, "--batch-size", "16", "--micro-batch-size", "4", "--paco-queue", "32"]
PACO += ["--method", "paco", "--classifier", "linear", "--view", "paco_small"]
# Its cutout of 16 px leaves nothing of a small image; gentle, for rounding grows in small batches.
PACO += ["--img-size", "32", "--paco-temperature", "1", "--lr", "0.003", "--rho", "0.01"]
# Steps of 6 micro-batches: a whole one, and an incomplete one of 2.
STUDENT = [*COMMON, "--batch-size", "24", "--micro-batch-size", "4", "--drop-path-rate", "0.3"]
# Muon orthogonalises in bfloat16, which makes much of the last bits.
STUDENT += ["--ema-decay", "0.9", "--optimizer", "adamw"]
OTHER_SPLIT = [*STUDENT, "--split-seed", "1", "--epochs", "1", "--allow-weak-teacher"]
RUNS = {
    "ldam": ("training.train_teacher", LDAM),
    "paco": ("training.train_teacher", PACO),
    "student": ("training.train_student", [*STUDENT, "--allow-weak-teacher"]),
}
TOLERANCES = {"ldam": 1e-5, "paco": 1e-4, "student": 1e-5}
# Three micro-batches cannot be shared by two; a teacher of one epoch at this rate knows nothing.
UNEVEN = [*STUDENT, "--batch-size", "12", "--allow-weak-teacher"]
# Four micro-batches of 8 images alone, eight of 4 by two; loss and gradients small.
CUT = [*COMMON, "--epochs", "1", "--batch-size", "8", "--lr", "1e-4"]
OTHERS = {
    "cut": ("training.train_teacher", [*CUT, "--resume"]),
    "uneven": ("training.train_student", UNEVEN),
    "warned": ("training.train_student", OTHER_SPLIT),
    "weak": ("training.train_student", STUDENT),
    "elsewhere": ("training.train_student", STUDENT),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, class_tree: Tree) -> Path:
    """42 images, 34 of them trained on."""
    counts = {"a": 16, "b": 12, "c": 8, "d": 6}
    return class_tree(tmp_path_factory.mktemp("distributed") / "data", counts)


def arguments_of(name: str, data: Path, teacher: Path, output: Path) -> tuple[str, list[str]]:
    program, arguments = (RUNS | OTHERS)[name]
    where = ["--data", str(data), "--output", str(output)]
    if program == "training.train_student":
        where += ["--teacher", str(teacher)]
    return program, [*arguments, *where]


@pytest.fixture(scope="module")
def alone(data: Path) -> Path:
    """The runs by one process."""
    folder = data.parent / "alone"
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the two: with more, sums are made in another order
    for name in RUNS:
        program, arguments = arguments_of(name, data, folder / "ldam", folder / name)
        main = {"training.train_teacher": train_teacher.main}.get(program, train_student.main)
        assert main(arguments) == 0
    torch.set_num_threads(num_threads)
    return folder


def stop_in_the_middle(data: Path, teacher: Path, run: Path) -> None:
    """Begin the run `cut` in this process and stop it after three of its four steps."""
    arguments = arguments_of("cut", data, teacher, run)[1]
    step, left = TeacherLearner.step, [3]

    def stopped_at_last(self: TeacherLearner, *where: Any) -> Tensor:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TeacherLearner, "step", stopped_at_last)
        assert train_teacher.main(arguments) == 143


@pytest.fixture(scope="module")
def together(data: Path, alone: Path) -> Path:
    """The runs by two processes, and what each of these said."""
    folder = data.parent / "together"
    jobs = {
        name: arguments_of(name, data, alone / "ldam", folder / name) for name in (RUNS | OTHERS)
    }
    jobs["elsewhere"][1][-5:-4] = [str(data.parent / "of-$RANK")]
    (data.parent / "of-0").symlink_to(data)  # the second machine lacks it
    stop_in_the_middle(data, alone / "ldam", folder / "cut")
    driver = data.parent / "driver.py"
    driver.write_text(DRIVER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    # It finds a port by itself: one looked for here could be taken before it starts.
    command += ["--standalone", "--local-addr", "127.0.0.1"]
    command += [str(driver), str(folder / "ranks"), json.dumps(jobs)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as torchrun:
        try:
            _, complaint = torchrun.communicate(timeout=120)
        finally:
            if torchrun.poll() is None:
                os.killpg(torchrun.pid, signal.SIGKILL)
    assert torchrun.returncode == 0, complaint
    return folder


def said(together: Path, name: str, kind: str) -> list[list[str]]:
    """Lines of each process."""
    files = [together / "ranks" / str(rank) / f"{name}.{kind}" for rank in (0, 1)]
    return [file.read_text().splitlines() for file in files]


def statuses(together: Path, name: str) -> list[object]:
    files = [together / "ranks" / str(rank) / "status.json" for rank in (0, 1)]
    return [json.loads(file.read_text())[name] for file in files]


def states(together: Path, name: str) -> list[Tensors]:
    ranks = [together / "ranks" / str(rank) / f"{name}.safetensors" for rank in (0, 1)]
    return [load_tensors(file)[0] for file in ranks]


def results(run: Path) -> list[dict[str, str]]:
    with (run / "results.csv").open() as file:
        return list(csv.DictReader(file))


def is_running_statistic(name: str) -> bool:
    return "running_" in name or "num_batches" in name


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_have_the_losses_of_one(name: str, alone: Path, together: Path) -> None:
    assert statuses(together, name) == [0, 0]
    ours, theirs = results(together / name), results(alone / name)
    figures = [f for f in theirs[0] if f != "seconds" and not f.startswith(("val_", "images"))]
    assert "loss" in figures
    for our, their in zip(ours, theirs, strict=True):
        for figure in figures:
            expected = pytest.approx(float(their[figure]), rel=TOLERANCES[name])
            assert float(our[figure]) == expected, (figure, our["epoch"])


@pytest.mark.parametrize("name", ["ldam", "student"])
def test_two_processes_end_at_the_weights_of_one(name: str, alone: Path, together: Path) -> None:
    saved, _ = load_tensors(alone / name / "resume.safetensors")
    expected = {k.removeprefix("model."): v for k, v in saved.items() if k.startswith("model.")}
    ours = states(together, name)[0]
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        if value.is_floating_point() and not is_running_statistic(key):
            torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", RUNS)
def test_all_processes_hold_the_same_weights_and_queue(name: str, together: Path) -> None:
    first, second = states(together, name)
    for key, value in first.items():
        if not is_running_statistic(key):
            assert torch.equal(value, second[key]), key
    if name == "paco":
        # 16 training steps of 8 keys, or the rest of them, went round the queue.
        assert first["queue_start"] == second["queue_start"] == 64 % 32


@pytest.mark.parametrize("name", RUNS)
def test_one_process_writes_and_speaks(name: str, together: Path, alone: Path) -> None:
    first, second = said(together, name, "out")
    assert second == []
    assert sum(line.startswith("epoch ") for line in first) == 2
    for errors in said(together, name, "err"):
        assert errors == []
    files = {path.name for path in (together / name).iterdir()}
    assert files == {path.name for path in (alone / name).iterdir()}


def test_the_average_of_weights_is_that_of_one_process(alone: Path, together: Path) -> None:
    ours, theirs = (
        load_tensors(r / "student" / "resume.safetensors")[0] for r in (together, alone)
    )
    averaged = [key for key in theirs if key.startswith("ema.")]
    assert averaged
    for key in averaged:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-4, msg=key)


def test_batch_norms_statistics_are_those_of_all_processes(together: Path) -> None:
    """What is saved and evaluated has seen the images of both."""
    first, second = states(together, "ldam")
    statistics = [key for key in first if "running_" in key]
    assert statistics
    for key in statistics:
        torch.testing.assert_close(first[key], second[key], msg=key)


@pytest.mark.parametrize(
    ("name", "words"), [("uneven", "do not divide among 2 processes"), ("weak", "near chance")]
)
def test_a_users_mistake_is_told_once(name: str, words: str, together: Path) -> None:
    assert statuses(together, name) == [2, 2]
    first, second = said(together, name, "err")
    assert second == []
    (line,) = first
    assert line.startswith("training.train_student: ")
    assert words in line
    assert not (together / name).exists()


def test_what_only_one_process_lacks_is_told_by_that_one(together: Path) -> None:
    assert statuses(together, "elsewhere") == [2, 2]
    first, second = said(together, "elsewhere", "err")
    assert first == []
    (line,) = second
    assert line.startswith("process 1: training.train_student: ")
    assert "of-1: there is no such folder" in line
    assert not (together / "elsewhere").exists()


def test_a_warning_is_told_once(together: Path) -> None:
    first, second = said(together, "warned", "err")
    assert second == []
    (line,) = first
    assert "trained on other images" in line


def test_an_epoch_begun_by_one_process_and_ended_by_two_has_its_true_loss(
    data: Path, together: Path
) -> None:
    arguments = arguments_of("cut", data, together, together / "whole")[1]
    assert train_teacher.main(arguments) == 0
    assert statuses(together, "cut") == [0, 0]
    (ours,), (theirs,) = results(together / "cut"), results(together / "whole")
    # Views are drawn a micro-batch, so those of the last step are others.
    assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=0.1)


def test_one_process_alone_needs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_world("cpu") as world:
        assert (world.rank, world.size, world.leads) == (0, 1, True)
        values = torch.tensor([1.0, 2.0])
        assert world.total(values) is values
        assert world.any(True)
        assert not world.any(False)
        world.barrier()
        layer = torch.nn.Linear(2, 2)
        assert world.wrap(layer) is layer
    assert not World(torch.device("cpu"), 1, 2).leads
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("num_micro", [1, 3])
def test_pacos_momentum_encoder_follows_once_a_step(num_micro: int) -> None:
    """However a step is cut, or dealt out to processes, its keys are of one encoder."""
    recipe = replace(teachers.cifar_paco(), paco_momentum=0.5, paco_queue=256, rho=0.0)
    torch.manual_seed(0)
    method = build_method(recipe, [8, 4], 2)
    assert isinstance(method, PaCoMethod)
    slow, fast = (list(part.parameters()) for part in (method.momentum_encoder, method.encoder))
    with torch.no_grad():
        for parameter in fast:
            parameter.add_(torch.rand_like(parameter))
    expected = [(a.detach() + b.detach()) / 2 for a, b in zip(slow, fast, strict=True)]
    learner = TeacherLearner(recipe, method, World(torch.device("cpu")), graphed=False)
    learner.start_epoch(0)
    views = [torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)]
    labels = torch.tensor([0, 0, 1, 1])
    learner.step(0, 0, [MicroBatch(views, labels, number) for number in range(num_micro)])
    for value, right in zip(slow, expected, strict=True):
        torch.testing.assert_close(value, right)
    assert method.queue_start == 4 * num_micro
