"""Which device a run takes, and whether its student is compiled: said where that cannot be."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from deitlt.errors import UsageError
from training.engine.distributed import join_world, pick_device
from training.engine.run_setup import is_compiled

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SETUP = "training.engine.run_setup"


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs with compilers alone, on a machine with Python's header."""
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(f"{SETUP}.sysconfig.get_path", lambda _: str(tmp_path))
    for name in ("gcc", "g++"):
        (tmp_path / name).touch(mode=0o755)
    return tmp_path / "gcc"


@pytest.mark.usefixtures("compiler")
def test_a_gpu_compiles_unless_told_not_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert is_compiled(None, GPU)
    assert is_compiled(True, GPU)
    assert not is_compiled(False, GPU)
    assert not is_compiled(None, CPU)
    assert is_compiled(True, CPU)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("file", "what"), [("gcc", "C compiler"), ("Python.h", "header")])
def test_without_what_it_needs_a_gpu_goes_on_and_says_so(
    file: str, what: str, compiler: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler.with_name(file).unlink()
    assert not is_compiled(None, GPU)
    assert what in (line := capsys.readouterr().err)
    assert line.count("\n") == 1
    with pytest.raises(UsageError, match=f"--compile True needs .*{what}"):
        is_compiled(True, GPU)


def test_a_cpu_needs_a_compiler_of_another_language(compiler: Path) -> None:
    compiler.with_name("g++").unlink()
    assert is_compiled(None, GPU)
    with pytest.raises(UsageError, match=r"--compile True needs a C\+\+ compiler"):
        is_compiled(True, CPU)


@pytest.mark.parametrize(("gpus", "name", "said"), [
    (0, "auto", ""), (1, "cpu", ""), (1, "auto", "torch 9 (CUDA: none) cannot use it; the CPU is"),
])  # fmt: skip
def test_a_gpu_that_torch_cannot_use_is_spoken_of(
    gpus: int,
    name: Literal["auto", "cpu"],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch, "__version__", "9")
    monkeypatch.setattr("training.engine.distributed.count_gpus", lambda: gpus)
    assert pick_device(name) == torch.device("cpu")
    complaint = capsys.readouterr().err
    assert said in complaint
    assert complaint.count("\n") == bool(said)
    with pytest.raises(UsageError, match="torch sees no CUDA GPU; use --device cpu"):
        pick_device("cuda")


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert pick_device("auto") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")  # all of the eight know it, not the last six alone
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match=r"8 processes .* sees 2 CUDA GPUs.*--nproc-per-node 2"):
        pick_device("auto")


@pytest.mark.parametrize("gpus", [0, 2])
def test_processes_meet_by_the_gpu_of_each(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL, not told which, guesses at the first barrier, and says so."""
    met: list[tuple[str, Any]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for name, value in {"WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *own, **options: (
        met.append((*own, options["device_id"]))
    ))  # fmt: skip
    for name, answer in {"get_rank": 3, "get_world_size": 4, "destroy_process_group": None}.items():
        monkeypatch.setattr(torch.distributed, name, lambda answer=answer: answer)
    with join_world("auto") as world:
        assert (world.rank, world.size) == (3, 4)
    assert met == [("nccl", torch.device("cuda", 1)) if gpus else ("gloo", None)]
