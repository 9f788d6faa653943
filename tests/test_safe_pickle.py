"""Pickles of others are read without running anything that is in them."""

import os
import pickle
import tarfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch

from deitlt.errors import CheckpointError
from export.import_checkpoint import main
from export.safe_pickle import read_checkpoint


class Call:
    """Pickles as a call that is made when it is read."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def payloads(trace: Path) -> dict[str, Call]:
    """Calls that leave `trace` behind if they are made, by what a refusal names."""
    return {
        f"{os.system.__module__}.system": Call(os.system, f"touch {trace}"),
        "eval": Call(eval, f"open({str(trace)!r}, 'w')"),
        "getattr": Call(getattr, Namespace(), "a"),
        f"{type(trace).__module__}.{type(trace).__name__}.touch": Call(type(trace).touch, trace),
    }


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("zipped", [True, False])
def test_a_call_is_refused_in_one_line_and_not_made(
    number: int, zipped: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace"
    name, payload = list(payloads(trace).items())[number]
    file = tmp_path / "evil.pth"
    content = {"model": {}, "args": Namespace(lr=payload)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    assert main([str(file), "--output", str(tmp_path / "run"), "--data", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"{file}: refused, and nothing of it was run: it calls for " in err
    assert name.split(".")[0] in err or "getattr" in err  # a method is fetched by getattr
    assert [entry.name for entry in tmp_path.iterdir()] == ["evil.pth"]


def test_the_payloads_of_this_test_are_live(tmp_path: Path) -> None:
    for name, payload in payloads(tmp_path / "trace").items():
        if name != "getattr":
            pickle.loads(pickle.dumps(payload))
            (tmp_path / "trace").unlink()


@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_what_official_files_hold_is_read_as_plain_values(module: bytes, tmp_path: Path) -> None:
    content = {
        "epoch": 5,
        "best": np.float64(87.5),
        "small": np.float32(0.5),
        "flag": np.bool_(True),
        "args": Namespace(output_dir=Path("a/b"), counts=[np.int64(3), np.int64(-2)], drw=None),
        "model": {"a": torch.arange(3.0)},
    }
    file = tmp_path / "a.pth"
    torch.save(content, file, _use_new_zipfile_serialization=False)
    # NumPy 2 writes the first name, NumPy 1 the second.
    current = type(np.float64(0)).__reduce__(np.float64(0))[0].__module__.encode()
    file.write_bytes(file.read_bytes().replace(current, module))
    read = read_checkpoint(file)
    args = read["args"]
    assert (read["epoch"], read["best"], read["small"], read["flag"]) == (5, 87.5, 0.5, True)
    assert (args.output_dir, args.counts, args.drw) == (PurePosixPath("a/b"), [3, -2], None)
    assert {type(value) for value in (read["best"], *args.counts)} == {float, int}
    assert torch.equal(read["model"]["a"], torch.arange(3.0))


def test_numpy_numbers_of_other_kinds_are_refused(tmp_path: Path) -> None:
    torch.save({"a": np.datetime64("2024-01-01")}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: damaged, or not a checkpoint"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_cut_file_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"model": {"a": torch.zeros(1000)}}, file)
    whole = file.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 10):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(file)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_text_is_no_checkpoint(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_text("<html>404</html>")
    with pytest.raises(CheckpointError, match="damaged, or not a checkpoint"):
        read_checkpoint(file)


def test_torchs_tar_format_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "a.pth.tar"
    with tarfile.open(file, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            (tmp_path / name).write_bytes(pickle.dumps({}))
            archive.add(tmp_path / name, name)
    with pytest.raises(CheckpointError, match="of torch's tar format of 2017 and before"):
        read_checkpoint(file)


def test_a_list_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="holds list, not a checkpoint"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.pth"
    assert main([str(file), "--output", str(tmp_path / "run"), "--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"import: {file}: there is no such file\n"
