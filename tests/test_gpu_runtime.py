"""What a GPU runtime asks ONNX Runtime and PyTorch for, what it refuses, and what is timed on it.

There need be no GPU: stand-ins record the calls, or answer as ONNX Runtime does on one.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
import torch

from deitlt.bundle import Artefact, default_bundle
from deitlt.errors import RuntimeUnavailable
from deitlt.preprocess import PreprocessSpec
from deitlt.runtimes import CUDA_OPTIONS, CUDA_PROVIDER, OnnxRuntime
from deitlt.student import StudentConfig
from deitlt.torch_runtime import TorchRuntime, load
from export.benchmark import operators
from export.fuse import FusedStudent
from export.to_torch import export_program
from tests.export_support import card_of, noise_student

MODEL = default_bundle() / "model.onnx"


class Recorded:
    """A session that took a GPU: its arguments, and which operators are said to be where."""

    calls: ClassVar[list["Recorded"]] = []
    on_cpu: tuple[str, ...] = ()

    def __init__(self, path: str, options: Any, **given: Any) -> None:
        self.path, self.options, self.given = path, options, given
        self.calls.append(self)

    def get_providers(self) -> list[str]:
        return [CUDA_PROVIDER, "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [part(CUDA_PROVIDER, "Gemm"), part("CPUExecutionProvider", *self.on_cpu)]

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="images")]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="logits")]


def part(provider: str, *operators: str) -> Any:
    nodes = [SimpleNamespace(op_type=operator) for operator in operators]
    return SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    monkeypatch.setattr(Recorded, "calls", [])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorded)
    return Recorded


def test_a_gpu_is_asked_for_alone_and_without_a_way_back(session: type[Recorded]) -> None:
    assert OnnxRuntime(MODEL, device="cuda").provider == CUDA_PROVIDER
    (call,) = session.calls
    assert call.given == {"providers": [(CUDA_PROVIDER, CUDA_OPTIONS)], "enable_fallback": 0}
    recording = "session.record_ep_graph_assignment_info"
    assert call.options.get_session_config_entry(recording) == "1"


def test_shapes_may_be_computed_on_the_cpu_and_nothing_else(
    session: type[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "on_cpu", ("Shape", "Concat"))
    OnnxRuntime(MODEL, device="cuda")
    monkeypatch.setattr(session, "on_cpu", ("Shape", "Pad", "Attention"))
    with pytest.raises(RuntimeUnavailable, match="no CUDA kernels for Attention, Pad; use a newer"):
        OnnxRuntime(MODEL, device="cuda")


def test_what_runs_where_is_told_by_the_real_session() -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    real = onnxruntime.InferenceSession(str(MODEL), options, providers=["CPUExecutionProvider"])
    parts = real.get_provider_graph_assignment_info()
    assert {part.ep_name for part in parts} == {"CPUExecutionProvider"}
    assert "Gemm" in {node.op_type for part in parts for node in part.get_nodes()}


def test_no_gpu_is_one_error_that_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def preload() -> None:
        print("Failed to load libcublasLt.so.13: no such file")
        print("Please install CUDA")

    real = onnxruntime.InferenceSession

    def without(path: str, options: Any, **given: Any) -> Any:
        """As ONNX Runtime answers where CUDA's libraries cannot be loaded: with the CPU."""
        assert given["enable_fallback"] == 0
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    monkeypatch.setattr(onnxruntime, "InferenceSession", without)
    with pytest.raises(RuntimeUnavailable) as caught:
        OnnxRuntime(MODEL, device="cuda")
    assert "CUDAExecutionProvider was asked for but CPUExecutionProvider came" in str(caught.value)
    assert "(Failed to load libcublasLt.so.13: no such file)" in str(caught.value)
    assert capfd.readouterr().out == ""


def test_a_gpu_that_cannot_be_set_up_is_not_replaced_by_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(self: Any, providers: Any, *_: Any) -> None:
        raise RuntimeError(f"CUDA failure 35: driver too old, with {providers[0][0]}")

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fail)
    with pytest.raises(RuntimeUnavailable, match="CUDA failure 35: driver too old"):
        OnnxRuntime(MODEL, device="cuda")
    assert capfd.readouterr().out == ""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    spec, path = PreprocessSpec(16), tmp_path / "model.pt2"
    model = noise_student(StudentConfig(size="pico", img_size=16, patch_size=4, num_classes=10))
    export_program(FusedStudent(model, spec, attention="sdpa"), card_of(model, spec), path)
    return path


def test_a_torch_program_moves_to_a_gpu_with_all_it_says_of_devices(program: Path) -> None:
    # "meta" is a device without numbers, but not the CPU that the program was exported on.
    moved: Any = load(program, "pt2", torch.device("meta"))
    outputs = moved(torch.zeros(3, 16, 16, 3, dtype=torch.uint8, device="meta"))
    assert [tuple(output.shape) for output in outputs[:3]] == [(3, 10)] * 3
    devices = [n.kwargs["device"] for n in moved.graph.nodes if "device" in n.kwargs]
    assert set(map(str, devices)) == {"meta"}, "it would refuse tensors of the device it runs on"


def test_a_gpu_has_its_number_where_programs_compare_devices(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("deitlt.torch_runtime.load", lambda path, kind, on: wanted.append(on))
    artefact = Artefact("pt2", program, "pt2", "float32", 0.0)
    assert TorchRuntime(artefact, device="auto").provider == "PyTorch cuda"
    assert wanted == [torch.device("cuda:0")]


def test_cuda_is_loaded_only_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: pytest.fail("loaded for a CPU"))
    outputs = OnnxRuntime(MODEL, device="cpu").run(np.zeros((1, 16, 16, 3), np.uint8))
    assert outputs.logits.shape[0] == 1


def test_shares_of_a_gpus_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    class Profile:
        """What CUDA tells torch: names and times of kernels."""

        def __init__(self, activities: list[object]) -> None:
            assert activities == [torch.profiler.ProfilerActivity.CUDA]

        def __enter__(self) -> "Profile":
            assert calls == [0], "the first call, which sets things up, is not to be seen"
            return self

        def __exit__(self, *_: object) -> None:
            assert len(calls) == 1 + operators.CALLS

        def key_averages(self) -> list[Any]:
            times = {"gemm": 30.0, "softmax": 10.0}
            return [SimpleNamespace(key=k, self_device_time_total=t) for k, t in times.items()]

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    found = operators.kernel_shares(lambda: calls.append(len(calls)))
    assert found == {"gemm": 0.75, "softmax": 0.25}
