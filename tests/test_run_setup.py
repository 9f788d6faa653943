"""Whether a student is compiled: by default where that can be, and said where it cannot."""

from pathlib import Path

import pytest
import torch

from deitlt.errors import UsageError
from training.engine.run_setup import is_compiled

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SETUP = "training.engine.run_setup"


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs with a compiler alone, on a machine with Python's header."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(f"{SETUP}.sysconfig.get_path", lambda _: str(tmp_path))
    (tmp_path / "gcc").touch(mode=0o755)
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
