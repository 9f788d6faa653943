"""What runs a bundle's graph, and on which device.

Legend: `B` images, `S` image side, `C` classes, `D` width.
"""

import logging
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from deitlt.bundle import (
    FEATURES,
    FLOAT32,
    NORMALISED_INPUT,
    OUTPUTS,
    ROLLOUTS,
    Bundle,
    default_bundle,
    open_bundle,
)
from deitlt.cores import usable_cores
from deitlt.errors import RuntimeUnavailable, UsageError
from deitlt.gpu import GpuThread, cause, count_gpus
from deitlt.preprocess import Pixels, PreprocessSpec, normalise

logger = logging.getLogger("deitlt.runtimes")

Logits = NDArray[np.float32]
Features = NDArray[np.float32]
Rollout = NDArray[np.float32]
Device = Literal["auto", "cpu", "cuda"]
FP16 = "fp16"
CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"
CUDA_OPTIONS = {
    # Float32 is float32: TF32, which ONNX Runtime would take, keeps 10 bits of a number's fraction.
    "use_tf32": "0",
    # What it fuses a sum and its LayerNorm into would add up in fp16.
    "enable_skip_layer_norm_strict_mode": "1",
}
# Of what is left on the CPU, harmless: shapes of tensors, a few numbers each.
SHAPE_OPERATORS = {"Concat", "Gather", "Shape", "Squeeze", "Unsqueeze"}


class Outputs(NamedTuple):
    """What a graph gives, float32; the field names are its own.

    The logits are `(B, C)`, the features that both heads read `(B, D)`, the rollouts `(B, G, G)`
    with `G` patches a side. A graph exported without its experts gives the mean alone, one of an
    older bundle no features; rollouts come of the variant `explain`.
    """

    logits: Logits
    cls_logits: Logits | None = None
    distillation_logits: Logits | None = None
    cls_features: Features | None = None
    distillation_features: Features | None = None
    cls_rollout: Rollout | None = None
    distillation_rollout: Rollout | None = None

    def heads(self) -> dict[str, Logits]:
        """The scores that are there, by name."""
        return self._present(OUTPUTS)

    def features(self) -> dict[str, Features]:
        """The features that are there, by name."""
        return self._present(FEATURES)

    def rollouts(self) -> dict[str, Rollout]:
        """The rollouts that are there, by name."""
        return self._present(ROLLOUTS)

    def parts(self) -> dict[str, NDArray[np.float32]]:
        """All that is there, by name."""
        return self._present(self._fields)

    def rows(self, start: int, stop: int) -> "Outputs":
        """Those of some of the images."""
        return Outputs(**{name: part[start:stop] for name, part in self.parts().items()})

    def _present(self, names: tuple[str, ...]) -> dict[str, NDArray[np.float32]]:
        return {name: part for name in names if (part := getattr(self, name)) is not None}


class Runtime(Protocol):
    """Anything that maps `(B, S, S, 3)` uint8 pixels to `Outputs`, from many threads."""

    @property
    def provider(self) -> str:
        """Where it really runs, for answers, logs and metrics."""
        ...

    def run(self, pixels: Pixels) -> Outputs:
        """Logits of a batch."""
        ...


def open_runtime(
    bundle: Bundle,
    variant: str = FLOAT32,
    *,
    device: Device = "auto",
    num_threads: int | None = None,
) -> Runtime:
    """What runs one form of a bundle's model.

    Args:
        bundle: the bundle.
        variant: name of the artefact.
        device: `cpu`; `cuda`, which fails rather than fall back; or `auto`, which takes CUDA where
            there is a GPU that works, but for int8, the form for CPUs.
        num_threads: threads inside one call; None means all usable cores. PyTorch's are the
            process's.

    Raises:
        UsageError: another device, or less than one thread.
        BundleError: the bundle has no such variant.
        RuntimeUnavailable: its runtime is not installed, or the device cannot be had.
    """
    if device not in get_args(Device):
        raise UsageError(
            f"device is {device!r}; it must be auto, cpu or cuda, which is the first GPU that "
            "CUDA_VISIBLE_DEVICES leaves"
        )
    if num_threads is not None and num_threads < 1:
        raise UsageError(f"{num_threads} threads; at least 1 is needed")
    artefact = bundle.artefact(variant)
    if device == "auto" and artefact.precision == "int8":
        device = "cpu"
    if artefact.format == "onnx":
        return OnnxRuntime(
            artefact.path, device=device, num_threads=num_threads, preprocess=bundle.preprocess
        )
    try:
        from deitlt.torch_runtime import TorchRuntime  # the one runtime that needs torch
    except ImportError as error:
        raise RuntimeUnavailable(
            f"{artefact.path}: PyTorch is not installed; use another variant of the bundle"
        ) from error
    return TorchRuntime(artefact, device=device, num_threads=num_threads)


def default_variant(bundle: Bundle, device: Device = "auto") -> str:
    """The form of the model that suits a device: fp16 on a GPU, if the bundle has it, or float32.

    For who leaves the choice to the program: answers in fp16 differ in the third digit.

    Raises:
        RuntimeUnavailable: onnxruntime is not installed.
    """
    return FP16 if FP16 in bundle.variants and _wants_cuda(device) else FLOAT32


class OnnxRuntime:
    """ONNX Runtime on CPU or CUDA."""

    def __init__(
        self,
        model: str | Path,
        *,
        device: Device = "auto",
        num_threads: int | None = None,
        preprocess: PreprocessSpec | None = None,
    ) -> None:
        """Load a graph.

        Args:
            model: path of the .onnx file.
            device: `cpu`; `cuda`, which refuses to start where it would fall back to the CPU; or
                `auto`, which takes CUDA where there is a GPU that works.
            num_threads: threads inside one call; None leaves it to ONNX Runtime (all cores), unless
                this process may use fewer.
            preprocess: mean and standard deviation, for a graph that takes normalised images.

        Raises:
            RuntimeUnavailable: no onnxruntime, two of them, or the device cannot be had.
        """
        _refuse_two_runtimes()
        onnxruntime = _import_onnxruntime()
        options = onnxruntime.SessionOptions()
        # Spinning threads burn the cores that other images need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # int8 on CPUs without VNNI: else sums of two products are cut off at 16 bits.
        options.add_session_config_entry("session.x64quantprecision", "1")
        if num_threads is None and usable_cores() < (os.cpu_count() or 1):
            num_threads = usable_cores()  # ONNX Runtime knows of no container's limit
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        wanted, settings, complaint = CPU_PROVIDER, dict[str, str](), ""
        self._gpu: GpuThread | None = None
        if _wants_cuda(device):
            if count_gpus() == 0:  # ONNX Runtime would log pages of its own before it said so
                raise RuntimeUnavailable("NVIDIA's driver offers no GPU; choose the device cpu")
            wanted, settings = CUDA_PROVIDER, CUDA_OPTIONS
            # What runs where is checked below. "session.disable_cpu_ep_fallback" would refuse
            # shapes on the CPU too, which graphs of other exporters compute there.
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            complaint = load_cuda(onnxruntime)
            self._gpu = GpuThread()
        try:
            # Of itself it prints what went wrong on standard output and goes on without the GPU,
            # at the start and in the middle of the work.
            self._session = self._call(
                onnxruntime.InferenceSession,
                _as_it_opens(model),
                options,
                providers=[(wanted, settings)],
                enable_fallback=0,
            )
        except Exception as error:  # onnxruntime raises its own pybind types, all unrelated
            raise RuntimeUnavailable(
                f"{model}: ONNX Runtime cannot run it on {wanted} ({cause(error)})"
            ) from error
        self._provider: str = self._session.get_providers()[0]
        if self._provider != wanted:
            built_for = getattr(onnxruntime, "cuda_version", "")
            raise RuntimeUnavailable(
                f"{wanted} was asked for but {self._provider} came; onnxruntime "
                f"{onnxruntime.__version__} needs a GPU with its driver, "
                f"{f'CUDA {built_for}' if built_for else 'CUDA'} and cuDNN 9"
                f"{f' ({complaint})' if complaint else ''}; install them, or use --device cpu"
            )
        if wanted == CUDA_PROVIDER:
            _refuse_cpu_operators(self._session, model)
        self._input: str = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._preprocess = preprocess if self._input == NORMALISED_INPUT else None
        self.num_threads = num_threads

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of the execution provider in use."""
        return self._provider

    def run(self, pixels: Pixels) -> Outputs:
        """Logits of `(B, S, S, 3)` uint8 pixels.

        Raises:
            DeviceLost: the GPU can no longer be used by this process.
        """
        images: Any = normalise(pixels, self._preprocess) if self._preprocess else pixels
        results = self._call(self._session.run, self._outputs, {self._input: images})
        return Outputs(**dict(zip(self._outputs, results, strict=True)))

    def _call(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """On the CPU in the thread that asks, so that calls run side by side there."""
        return self._gpu.run(call, *args, **kwargs) if self._gpu else call(*args, **kwargs)


def _as_it_opens(model: str | Path) -> str | bytes:
    """A graph's path for ONNX Runtime, which takes UTF-8 alone; else its content."""
    try:
        str(model).encode()
    except UnicodeEncodeError:
        return Path(model).read_bytes()
    return str(model)


def load_cuda(onnxruntime: Any) -> str:
    """Load CUDA and cuDNN from NVIDIA's wheels; the system's loader does not look there.

    What is missing it prints, on standard output, where programs write their results. It is not
    always wanted: the first line of it is returned, for the error if the session then fails.
    """
    with redirect_stdout(StringIO()) as said:
        onnxruntime.preload_dlls()
    return next(iter(said.getvalue().splitlines()), "")


def _refuse_cpu_operators(session: Any, model: str | Path) -> None:
    """Refuse a graph of which the GPU runs only a part; each change of place copies and waits."""
    on_cpu = {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == CPU_PROVIDER
        for node in part.get_nodes()
    }
    if left := sorted(on_cpu - SHAPE_OPERATORS):
        raise RuntimeUnavailable(
            f"{model}: this ONNX Runtime has no CUDA kernels for {', '.join(left)}; use a newer "
            "one, export the bundle again, or use --device cpu"
        )


def _wants_cuda(device: Device) -> bool:
    """Whether CUDA is asked for, or is there and the choice is free."""
    if device != "auto":
        return device == "cuda"
    onnxruntime = _import_onnxruntime()
    there = CUDA_PROVIDER in onnxruntime.get_available_providers() and count_gpus() > 0
    return there and cuda_works()


@cache
def cuda_works() -> bool:
    """Whether ONNX Runtime runs a small graph on the GPU; if not, the log says once why.

    That a GPU is there does not mean so: its driver may be older than CUDA's libraries, or they may
    be missing, or have no kernels for a GPU of its age.
    """
    bundle = open_bundle(default_bundle())
    try:
        probe = OnnxRuntime(bundle.artefact(FLOAT32).path, device="cuda", num_threads=1)
        size = bundle.preprocess.img_size
        probe.run(np.zeros((1, size, size, 3), np.uint8))
    except Exception as error:  # of ONNX Runtime, where it loads and then cannot run
        reason = str(error) if isinstance(error, RuntimeUnavailable) else cause(error)
        logger.warning("there is a GPU, but the CPU is used: %s", reason)
        return False
    return True


def _import_onnxruntime() -> Any:
    # Since 1.29 it tells Microsoft of every model it loads, unless this is set beforehand.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeUnavailable(
            "onnxruntime is not installed; pip install onnxruntime-gpu (or onnxruntime)"
        ) from error
    return onnxruntime


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
