"""ONNX Runtime on a CPU: where a graph may lie, and how many threads a call has."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import onnxruntime
import pytest

import deitlt
from deitlt.classifier import Classifier

Png = Callable[[int], bytes]


def test_a_folder_may_have_a_name_that_is_no_unicode(
    bundle_path: Path, tmp_path: Path, classifier: Classifier, png: Png
) -> None:
    folder = shutil.copytree(bundle_path, tmp_path / os.fsdecode(b"b\xff"))
    (found,) = deitlt.load(folder, device="cpu", num_threads=1).predict([png(0)])
    assert found.label == classifier.predict([png(0)])[0].label


@pytest.mark.parametrize(("limit", "wanted"), [("max", 0), ("300000", 3), ("900000", 0)])
def test_a_containers_limit_bounds_the_threads_of_a_call(
    limit: str, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("deitlt.cores.CPU_LIMIT", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(f"{limit} 100000\n")
    session = Mock(wraps=onnxruntime.InferenceSession)
    monkeypatch.setattr("onnxruntime.InferenceSession", session)
    deitlt.load(device="cpu")
    assert session.call_args.args[1].intra_op_num_threads == wanted  # 0: as ONNX Runtime likes
    deitlt.load(device="cpu", num_threads=5)
    assert session.call_args.args[1].intra_op_num_threads == 5
