"""What runs a bundle's graph, and on which device.

Legend: `B` images, `S` image side, `C` classes.
"""

import ctypes
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from deitlt.bundle import INPUT, OUTPUTS
from deitlt.errors import RuntimeUnavailable
from deitlt.preprocess import Pixels

Logits = NDArray[np.float32]
Device = Literal["auto", "cpu", "cuda"]


class Outputs(NamedTuple):
    """Scores of both experts and their mean, each `(B, C)` float32."""

    logits: Logits
    cls_logits: Logits
    distillation_logits: Logits


class Runtime(Protocol):
    """Anything that maps `(B, S, S, 3)` uint8 pixels to `Outputs`, from many threads."""

    @property
    def provider(self) -> str:
        """Where it really runs, for answers, logs and metrics."""
        ...

    def run(self, pixels: Pixels) -> Outputs:
        """Logits of a batch."""
        ...


class OnnxRuntime:
    """ONNX Runtime on CPU or CUDA."""

    def __init__(
        self, model: str | Path, *, device: Device = "auto", num_threads: int | None = None
    ) -> None:
        """Load a graph.

        Args:
            model: path of the .onnx file.
            device: `cpu`; `cuda`, which refuses to start where it would fall back to the CPU; or
                `auto`, which takes CUDA where there is a GPU.
            num_threads: threads inside one call; None leaves it to ONNX Runtime (all cores).

        Raises:
            RuntimeUnavailable: no onnxruntime, two of them, or the device cannot be had.
        """
        _refuse_two_runtimes()
        try:
            import onnxruntime
        except ImportError as error:
            raise RuntimeUnavailable(
                "onnxruntime is not installed; pip install onnxruntime-gpu (or onnxruntime)"
            ) from error
        options = onnxruntime.SessionOptions()
        # Spinning threads burn the cores that other images need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        providers = ["CPUExecutionProvider"]
        if device == "cuda" or (
            device == "auto"
            and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
            and count_gpus() > 0
        ):
            providers = ["CUDAExecutionProvider"]
            # Without this ONNX Runtime answers a missing GPU by silently using the CPU.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            self._session = onnxruntime.InferenceSession(str(model), options, providers=providers)
        except Exception as error:  # onnxruntime raises its own pybind types, all unrelated
            raise RuntimeUnavailable(
                f"{model}: ONNX Runtime cannot run it on {providers[0]} ({_first_line(error)})"
            ) from error
        self._provider: str = self._session.get_providers()[0]
        if self._provider != providers[0]:
            raise RuntimeUnavailable(
                f"{providers[0]} was asked for but {self._provider} came; "
                "check the CUDA and cuDNN libraries, or use --device cpu"
            )

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of the execution provider in use."""
        return self._provider

    def run(self, pixels: Pixels) -> Outputs:
        """Logits of `(B, S, S, 3)` uint8 pixels."""
        results: list[Any] = self._session.run(list(OUTPUTS), {INPUT: pixels})
        return Outputs(*results)


def count_gpus() -> int:
    """NVIDIA GPUs that the driver offers; 0 without a driver."""
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            cuda = ctypes.CDLL(library)
        except OSError:
            continue
        count = ctypes.c_int(0)
        if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0:
            return count.value
    return 0


def _refuse_two_runtimes() -> None:
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _is_installed(name)]
    if len(installed) == 2:
        raise RuntimeUnavailable(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "uninstall both, then install one"
        )


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
