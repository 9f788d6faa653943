"""What a GPU runtime asks ONNX Runtime and PyTorch for, what it refuses, and what is timed on it.

There need be no GPU: stand-ins record the calls, or answer as ONNX Runtime does on one.
"""

import ctypes
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
import torch

import deitlt
from deitlt.bundle import Artefact, open_bundle
from deitlt.errors import DeviceLost, RuntimeUnavailable, UsageError
from deitlt.gpu import cause
from deitlt.preprocess import PreprocessSpec
from deitlt.runtimes import (
    CPU_PROVIDER,
    CUDA_OPTIONS,
    CUDA_PROVIDER,
    OnnxRuntime,
    cuda_works,
    default_variant,
    open_runtime,
)
from deitlt.student import StudentConfig
from deitlt.torch_runtime import TorchRuntime, load
from export.benchmark import operators
from export.fuse import FusedStudent
from export.to_torch import export_program
from tests.bundle_support import DIGITS
from tests.export_support import card_of, noise_student

MODEL = DIGITS / "model.onnx"
PIXELS = np.zeros((1, 16, 16, 3), np.uint8)
OLD_DRIVER = (
    "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/core/providers/cuda/cuda_call.cc:129 "
    "std::conditional_t<THRW, void, Status> CudaCall(ERRTYPE) [with ERRTYPE = cudaError] "
    f"{'x' * 200} CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; "
    "GPU=0 ; hostname=gpu-7 ; file=cuda_execution_provider.cc ; expr=cudaSetDevice(0); "
)


class Recorded:
    """A session that took a GPU: its arguments, and which operators are said to be where."""

    calls: ClassVar[list["Recorded"]] = []
    threads: ClassVar[set[int]] = set()
    failure: Exception | None = None
    on_cpu: tuple[str, ...] = ()

    def __init__(self, path: str, options: Any, **given: Any) -> None:
        self.path, self.options, self.given = path, options, given
        self.calls.append(self)
        self.threads.add(threading.get_ident())

    def run(self, outputs: list[str], feeds: dict[str, Any]) -> list[Any]:
        self.threads.add(threading.get_ident())
        if self.failure is not None:
            raise self.failure
        return [np.zeros((1, 10), np.float32) for _ in outputs]

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
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that offers a GPU."""
    monkeypatch.setattr("deitlt.runtimes.count_gpus", lambda: 1)


@pytest.fixture
def session(gpu: None, monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    monkeypatch.setattr(Recorded, "calls", [])
    monkeypatch.setattr(Recorded, "threads", set())
    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorded)
    return Recorded


def test_a_gpu_is_asked_for_alone_and_without_a_way_back(session: type[Recorded]) -> None:
    assert OnnxRuntime(MODEL, device="cuda").provider == CUDA_PROVIDER
    (call,) = session.calls
    assert call.given == {"providers": [(CUDA_PROVIDER, CUDA_OPTIONS)], "enable_fallback": 0}
    recording = "session.record_ep_graph_assignment_info"
    assert call.options.get_session_config_entry(recording) == "1"


def test_all_calls_of_a_gpu_come_from_one_thread(session: type[Recorded]) -> None:
    runtime = OnnxRuntime(MODEL, device="cuda")
    with ThreadPoolExecutor(4) as pool:
        together = threading.Barrier(4)
        callers = set(pool.map(lambda _: (together.wait(), threading.get_ident())[1], range(4)))
        list(pool.map(lambda _: runtime.run(PIXELS), range(16)))
    (caller,) = session.threads  # each thread would have streams and cuBLAS workspaces of its own
    assert caller not in {*callers, threading.get_ident()}


def test_calls_of_the_cpu_stay_in_the_thread_that_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = OnnxRuntime(MODEL, device="cpu")
    monkeypatch.setattr(Recorded, "threads", set())
    monkeypatch.setattr(runtime, "_session", Recorded("", None))
    monkeypatch.setattr(runtime, "_outputs", ["logits"])
    with ThreadPoolExecutor(1) as pool:
        caller = pool.submit(threading.get_ident).result()
        pool.submit(runtime.run, PIXELS).result()
    assert Recorded.threads == {threading.get_ident(), caller}


@pytest.mark.parametrize(("status", "lost"), [(700, True), (0, False), (201, False)])
def test_a_gpu_whose_context_is_dead_is_lost_and_one_out_of_memory_is_not(
    session: type[Recorded], monkeypatch: pytest.MonkeyPatch, status: int, lost: bool
) -> None:
    def name(code: int, pointer: Any) -> None:
        assert code == status
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_char_p))[0] = b"CUDA_ERROR_ILLEGAL_ADDRESS"

    driver = SimpleNamespace(cuCtxSynchronize=lambda: status, cuGetErrorName=name)
    monkeypatch.setattr("deitlt.gpu.cuda_driver", lambda: driver)
    runtime = OnnxRuntime(MODEL, device="cuda")
    failure = RuntimeError("in Gemm: CUBLAS failure 13: EXECUTION_FAILED ; GPU=0")
    monkeypatch.setattr(session, "failure", failure)
    with pytest.raises(RuntimeError if not lost else DeviceLost) as caught:
        runtime.run(PIXELS)
    if lost:
        text = "the GPU is lost to this process (CUDA_ERROR_ILLEGAL_ADDRESS): CUBLAS failure 13"
        assert str(caught.value).startswith(text)


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


def test_no_gpu_is_one_line_and_all_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deitlt.runtimes.count_gpus", lambda: 0)
    with pytest.raises(RuntimeUnavailable, match="driver offers no GPU; choose the device cpu"):
        OnnxRuntime(MODEL, device="cuda")
    assert capfd.readouterr() == ("", "")


def test_auto_runs_int8_on_the_cpu_it_is_for(
    session: type[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    providers = [CUDA_PROVIDER, CPU_PROVIDER]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr("deitlt.runtimes.cuda_works", lambda: True)
    packaged = open_bundle(DIGITS)
    forms = packaged.manifest["artefacts"]
    int8 = {**forms["float32"], "precision": "int8"}
    bundle = replace(packaged, manifest={"artefacts": {**forms, "int8": int8}})
    monkeypatch.setattr(session, "get_providers", lambda self: [self.given["providers"][0][0]])
    assert open_runtime(bundle, "float32", device="auto").provider == CUDA_PROVIDER
    assert open_runtime(bundle, "int8", device="auto").provider == CPU_PROVIDER
    assert open_runtime(bundle, "int8", device="cuda").provider == CUDA_PROVIDER


@pytest.mark.parametrize("device", ["gpu", "cuda:1", "CUDA", None])
def test_another_device_is_not_taken_for_the_cpu(device: Any) -> None:
    with pytest.raises(UsageError, match="must be auto, cpu or cuda"):
        deitlt.load(device=device)


@pytest.mark.usefixtures("gpu")
def test_a_gpu_without_libraries_is_one_error_that_names_what_is_missing(
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


@pytest.mark.usefixtures("gpu")
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
def broken_gpu(gpu: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU with a driver that ONNX Runtime finds too old."""
    create: Callable[..., None] = onnxruntime.InferenceSession._create_inference_session

    def fail(self: Any, providers: Any, *args: Any) -> None:
        if providers[0][0] == CUDA_PROVIDER:
            raise RuntimeError(OLD_DRIVER)
        create(self, providers, *args)

    providers = [CUDA_PROVIDER, CPU_PROVIDER]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fail)
    cuda_works.cache_clear()
    yield
    cuda_works.cache_clear()


@pytest.mark.usefixtures("broken_gpu")
def test_auto_takes_the_cpu_where_the_gpu_does_not_work_and_says_why_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bundle = open_bundle(DIGITS)
    forms = bundle.manifest["artefacts"]
    both = replace(bundle, manifest={"artefacts": {**forms, "fp16": forms["float32"]}})
    with caplog.at_level(logging.WARNING):
        assert default_variant(both, "auto") == "float32"
        assert OnnxRuntime(MODEL, device="auto").provider == CPU_PROVIDER
    (line,) = caplog.messages
    assert "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime" in line
    with pytest.raises(RuntimeUnavailable, match="CUDA failure 35: CUDA driver version is insuff"):
        OnnxRuntime(MODEL, device="cuda")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (OLD_DRIVER, OLD_DRIVER[OLD_DRIVER.index("CUDA failure") : OLD_DRIVER.index(" ; GPU")]),
        ("[Error] : 1 : x.cc:1 Failed to load libcudnn.so.9\nmore", "Failed to load libcudnn.so.9"),
        ("CUDNN_FE failure 7: no engine ; GPU=0", "CUDNN_FE failure 7: no engine"),
        ("first line\nsecond", "first line"),
        ("", "RuntimeError"),
    ],
)
def test_the_cause_is_found_in_what_a_runtime_says(text: str, wanted: str) -> None:
    assert cause(RuntimeError(text)) == wanted


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
