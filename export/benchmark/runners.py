"""What opens a row's file and runs it. Each runtime is imported only by the row that needs it.

A call takes images in the host's memory and gives logits there, except with IO binding, where both
stay on the device and a call ends when the device is done.

Legend: `B` images, `S` image side, `C` classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deitlt.errors import RuntimeUnavailable
from deitlt.runtimes import CPU_PROVIDER, CUDA_OPTIONS, CUDA_PROVIDER, Logits, load_cuda
from export.benchmark.rows import How, Provider

Images = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How to open a row, in JSON types: it also travels to fresh processes.

    Attributes:
        how: what runs it.
        path: the file.
        device: cpu or cuda.
        threads: inside one call.
        provider: of ONNX Runtime.
        graph: replay a CUDA graph.
    """

    how: How
    path: str
    device: str
    threads: int
    provider: Provider = "CPUExecutionProvider"
    graph: bool = False


class Runner(Protocol):
    """An opened row."""

    def prepare(self, images: Images) -> Callable[[], Any]:
        """A call that runs `images`, `(B, S, S, 3)` pixels or `(B, 3, S, S)` normalised."""
        ...

    def logits(self, result: Any) -> Logits:
        """The averaged logits, `(B, C)`, of what the call just made gave."""
        ...


def import_runtime(how: How) -> None:
    """Import what `open_runner` needs, so that its time is not counted as loading."""
    import_module(_MODULES[how])


_MODULES: dict[How, str] = {
    "torch": "deitlt.student",
    "compile": "deitlt.student",
    "onnx": "onnxruntime",
    "bound": "onnxruntime",
    "torchscript": "deitlt.torch_runtime",
    "pt2": "deitlt.torch_runtime",
    "openvino": "openvino",
}


def open_runner(opening: Opening) -> Runner:
    """The runner of a row.

    Raises:
        RuntimeUnavailable: the device came out as another one.
    """
    kinds: dict[How, Callable[[Opening], Runner]] = {
        "torch": _TorchModel,
        "compile": _TorchModel,
        "onnx": OnnxModel,
        "bound": BoundOnnx,
        "torchscript": _Deployed,
        "pt2": _Deployed,
        "openvino": _OpenVino,
    }
    return kinds[opening.how](opening)


class _TorchModel:
    """The un-fused student in PyTorch."""

    def __init__(self, opening: Opening) -> None:
        import torch

        from deitlt.student import load_student

        torch.set_num_threads(opening.threads)
        model, _ = load_student(opening.path)
        self._device = torch.device(opening.device)
        self._model: Any = model.to(self._device)
        if opening.how == "compile":
            # A program for each batch size: the fastest that torch.compile has to offer.
            self._model = torch.compile(self._model, dynamic=False)

    def prepare(self, images: Images) -> Callable[[], Any]:
        import torch

        tensor = torch.from_numpy(images)

        def run() -> Any:
            with torch.inference_mode():
                cls_logits, dist_logits = self._model(tensor.to(self._device))
                return cls_logits.cpu(), dist_logits.cpu()

        return run

    def logits(self, result: Any) -> Logits:
        from deitlt.student import average_logits

        averaged: Logits = average_logits(*result).numpy()
        return averaged


class _Deployed:
    """TorchScript or pt2, as a bundle runs it."""

    def __init__(self, opening: Opening) -> None:
        from deitlt.bundle import Artefact
        from deitlt.torch_runtime import TorchRuntime

        artefact = Artefact(opening.how, Path(opening.path), opening.how, "float32", 0.0)
        device: Any = opening.device
        self._runtime = TorchRuntime(artefact, device=device, num_threads=opening.threads)

    def prepare(self, images: Images) -> Callable[[], Any]:
        return lambda: self._runtime.run(images)

    def logits(self, result: Any) -> Logits:
        logits: Logits = result.logits
        return logits


def open_session(opening: Opening, options: Any = None) -> Any:
    """An ONNX Runtime session with the settings of `deitlt.runtimes.OnnxRuntime`."""
    import onnxruntime

    if options is None:
        options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = opening.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    if opening.provider != CPU_PROVIDER:
        load_cuda(onnxruntime)  # from NVIDIA's wheels, where torch has not loaded it
    # Else it would print why a graph cannot be captured, and time the CPU.
    session = onnxruntime.InferenceSession(
        opening.path, options, providers=_providers(opening), enable_fallback=0
    )
    if session.get_providers()[0] != opening.provider:
        raise RuntimeUnavailable(
            f"{opening.provider} was asked for but {session.get_providers()[0]} came"
        )
    return session


def _providers(opening: Opening) -> list[Any]:
    if opening.provider == CPU_PROVIDER:
        return [CPU_PROVIDER]
    graph = {"enable_cuda_graph": "1" if opening.graph else "0"}
    return [(CUDA_PROVIDER, CUDA_OPTIONS | graph), CPU_PROVIDER]


class OnnxModel:
    """ONNX Runtime, images in and logits out by the host's memory."""

    def __init__(self, opening: Opening) -> None:
        self._session = open_session(opening)
        self._input: str = self._session.get_inputs()[0].name
        self._names = [output.name for output in self._session.get_outputs()]

    def prepare(self, images: Images) -> Callable[[], Any]:
        """See `Runner`."""
        feed = {self._input: images}
        return lambda: self._session.run(None, feed)

    def logits(self, result: Any) -> Logits:
        """See `Runner`."""
        return _averaged(dict(zip(self._names, result, strict=True)))


@dataclass
class _Buffers:
    binding: Any
    images: Any
    outputs: dict[str, Any]
    options: Any


class BoundOnnx:
    """ONNX Runtime with buffers of its own on the device, the same ones for a batch size.

    With a CUDA graph they are what the graph was captured on, each batch size being a graph.
    """

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._session = open_session(opening)
        self._buffers: dict[int, _Buffers] = {}

    def prepare(self, images: Images) -> Callable[[], Any]:
        """See `Runner`; the images are on the device when this returns."""
        if len(images) not in self._buffers:
            self._buffers[len(images)] = self._allocate(images)
        buffers = self._buffers[len(images)]
        buffers.images.update_inplace(images)

        def run() -> _Buffers:
            self._session.run_with_iobinding(buffers.binding, buffers.options)
            buffers.binding.synchronize_outputs()
            return buffers

        return run

    def logits(self, result: Any) -> Logits:
        """See `Runner`."""
        return _averaged({name: value.numpy() for name, value in result.outputs.items()})

    def _allocate(self, images: Images) -> _Buffers:
        import onnxruntime

        device = self._opening.device
        # A copy, because on a CPU the buffer is the array itself.
        on_device = onnxruntime.OrtValue.ortvalue_from_numpy(images.copy(), device, 0)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._session.get_inputs()[0].name, on_device)
        outputs = {}
        for output in self._session.get_outputs():
            shape = [len(images), *output.shape[1:]]
            value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, device, 0)
            binding.bind_ortvalue_output(output.name, value)
            outputs[output.name] = value
        options = onnxruntime.RunOptions()
        if self._opening.graph:
            options.add_run_config_entry("gpu_graph_id", str(1 + len(self._buffers)))
        return _Buffers(binding, on_device, outputs, options)


class _OpenVino:
    """OpenVINO on the CPU, by its documented settings for latency."""

    def __init__(self, opening: Opening) -> None:
        # By its name, because type checkers find it only where it is installed.
        self._core = import_module("openvino").Core()
        self._path = opening.path
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": opening.threads,
            # Where the processor has bfloat16, OpenVINO would take it for float32 graphs.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._compiled: dict[int, Any] = {}

    def prepare(self, images: Images) -> Callable[[], Any]:
        # Fixed shapes run faster than free ones.
        if len(images) not in self._compiled:
            model = self._core.read_model(self._path)
            model.reshape(list(images.shape))
            self._compiled[len(images)] = self._core.compile_model(model, "CPU", self._settings)
        request = self._compiled[len(images)].create_infer_request()
        return lambda: request.infer([images])

    def logits(self, result: Any) -> Logits:
        named = {name: value for key, value in result.items() for name in key.get_names()}
        return _averaged(named)


def _averaged(outputs: dict[str, Any]) -> Logits:
    """The output `logits`; of a graph without one, the mean of its two heads."""
    logits = outputs["logits"] if "logits" in outputs else sum(outputs.values()) / 2
    return np.asarray(logits, dtype=np.float32)
