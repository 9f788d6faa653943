"""The text of a Triton model's `config.pbtxt`, and what may stand in it.

Every key is one of `ModelConfig` in Triton's model_config.proto; the `parameters` that tune ONNX
Runtime are those that the onnxruntime backend documents.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from deitlt.bundle import FLOAT32, Bundle
from deitlt.errors import DataError, UsageError
from deitlt.runtimes import CUDA_OPTIONS, FP16

Backend = Literal["onnxruntime", "python"]
Device = Literal["cpu", "gpu"]

CONFIG = "config.pbtxt"
LABELS = "labels.txt"
# Triton looks for warm-up data in a folder of this name beside config.pbtxt.
WARMUP_FOLDER, WARMUP_FILE = "warmup", "golden_image"
# Waiting for company this long costs little beside one batch of a ViT on a GPU.
GPU_QUEUE_DELAY_US = 2000
# Batches below this size leave a GPU idle; sizes from here on are preferred.
SMALLEST_PREFERRED = 8

# Of the Attention operator.
ATTENTION_OPSET = 23
SERVER_NEEDS = (
    "its server needs ONNX Runtime 1.23, which came with Triton 25.10; for an older one export the "
    "bundle with --attention matmul"
)
# https://github.com/microsoft/onnxruntime/pull/25156, and /pull/27542 for CUDA.
ATTENTION_ON_CPU = (
    "ONNX Runtime 1.23 computes attention on the CPU all the same; export the bundle with "
    f"--variants {FP16} or --attention matmul, unless the server has a newer one"
)

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_VERSION_LINE = re.compile(
    r'^parameters .*key: "bundle_version_(\d+)".*string_value: "(\w+)".*\n', re.M
)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How Triton is to run the model; None takes what suits the device.

    Attributes:
        backend: `onnxruntime` serves the graph itself; `python` serves it through `deitlt`, takes
            encoded images too, and needs `deitlt` in the server's Python.
        device: `cpu` or `gpu`.
        max_batch_size: most images in one request, and in one batch that Triton makes of several.
        instances: copies of the model that work at once; 2 on a CPU (as many as the server has
            cores is best), 1 a GPU.
        max_queue_delay_us: how long a request may wait for others to share a batch, microseconds;
            0 on a CPU, where batching does not pay and requests are run one by one.
        max_queue_size: requests that may wait; more are refused at once. 64 on a CPU, else 256.
    """

    backend: Backend = "onnxruntime"
    device: Device = "cpu"
    max_batch_size: int = 32
    instances: int | None = None
    max_queue_delay_us: int | None = None
    max_queue_size: int | None = None

    def __post_init__(self) -> None:
        for field, value, known in (
            ("backend", self.backend, get_args(Backend)),
            ("device", self.device, get_args(Device)),
        ):
            if value not in known:
                raise UsageError(f"{field} is {value!r}; it must be {' or '.join(known)}")
        for field, number, least in (
            ("max batch size", self.max_batch_size, 1),
            ("instances", self.instances, 1),
            ("max queue delay", self.max_queue_delay_us, 0),
            ("max queue size", self.max_queue_size, 1),
        ):
            if number is not None and not least <= number < 2**31:
                raise UsageError(f"{field} is {number}; it must be at least {least}, below 2**31")


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output: its name, Triton's name of its type, and its shape without the batch."""

    name: str
    kind: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Contract:
    """What a client relies on; every version of a model has the same.

    Attributes:
        image: the input for preprocessed images.
        outputs: logits, over the classes of labels.txt.
        parameters: texts for clients and for the Python backend, by key.
    """

    image: Tensor
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, str]


# The second input of the Python backend: the bytes of an image file.
ENCODED = Tensor("encoded", "TYPE_STRING", (1,))


def default_variant(bundle: Bundle, device: Device) -> str:
    """The form of the model that suits a server's device."""
    return FP16 if device == "gpu" and FP16 in bundle.variants else FLOAT32


def check_names(model: str, classes: list[str]) -> None:
    """Refuse names that Triton cannot take.

    Raises:
        UsageError: the model's.
        DataError: a class's.
    """
    if _NAME.fullmatch(model) is None:
        raise UsageError(
            f"{model!r} is no name for a Triton model (letters, digits, _ - .); pass --name"
        )
    for index, name in enumerate(classes):
        if len(name.splitlines()) > 1 or name != name.strip("\r\n"):
            raise DataError(
                f"class {index} has a line break in its name {name!r}; Triton takes none"
            )


def config_text(
    name: str, contract: Contract, options: ServerOptions, bundle_versions: Mapping[int, str]
) -> str:
    """The whole of config.pbtxt; equal arguments give equal text.

    Args:
        name: the model's name, which is also its folder's.
        contract: inputs, outputs and what clients must know.
        options: how to run it.
        bundle_versions: which bundle each version of the model was exported from.
    """
    python, image = options.backend == "python", contract.image
    optional = ["optional: true"] if python else []
    layout = "FORMAT_NHWC" if image.dims[-1] == 3 else "FORMAT_NCHW"
    parameters = dict(contract.parameters)
    if not python and options.device == "cpu":
        # One thread an instance: instances fill the cores, and threads would only share them.
        parameters |= {
            "intra_op_thread_count": "1",
            "inter_op_thread_count": "1",
            "execution_mode": "0",
        }
    parameters |= {f"bundle_version_{n}": bundle_versions[n] for n in sorted(bundle_versions)}
    lines = [
        f"name: {_quoted(name)}",
        f"backend: {_quoted(options.backend)}",
        f"max_batch_size: {options.max_batch_size}",
        *_block("input", image, f"format: {layout}", *optional),
        *(_block("input", ENCODED, *optional) if python else []),
    ]
    for output in contract.outputs:
        lines += _block("output", output, f"label_filename: {_quoted(LABELS)}")
    lines += [*_instances(options), *_batching(options), *_accelerator(options)]
    lines += [
        "# Only the newest version is served.",
        "version_policy { latest { num_versions: 1 } }",
    ]
    for size in _preferred(options) if options.device == "gpu" else [1]:
        lines += _warmup(size, image)
    lines += [
        f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(text)} }} }}"
        for key, text in parameters.items()
    ]
    return "\n".join(lines) + "\n"


def bundle_versions_in(text: str) -> dict[int, str]:
    """The `bundle_versions` that a config.pbtxt was written with."""
    return {int(number): version for number, version in _VERSION_LINE.findall(text)}


def _block(kind: str, tensor: Tensor, *more: str) -> list[str]:
    lines = [f"name: {_quoted(tensor.name)}", f"data_type: {tensor.kind}", _dims(tensor), *more]
    return [f"{kind} {{", *(f"  {line}" for line in lines), "}"]


def _dims(tensor: Tensor) -> str:
    return f"dims: [ {', '.join(map(str, tensor.dims))} ]"


def _instances(options: ServerOptions) -> list[str]:
    if options.device == "cpu":
        return [f"instance_group {{ kind: KIND_CPU count: {options.instances or 2} }}"]
    # deitlt runs on the first GPU; the onnxruntime backend takes every one there is.
    gpus = " gpus: [ 0 ]" if options.backend == "python" else ""
    return [f"instance_group {{ kind: KIND_GPU count: {options.instances or 1}{gpus} }}"]


def _batching(options: ServerOptions) -> list[str]:
    on_gpu = options.device == "gpu"
    delay = options.max_queue_delay_us
    if delay is None:
        delay = GPU_QUEUE_DELAY_US if on_gpu else 0
    size = options.max_queue_size or (256 if on_gpu else 64)
    # Without a delay on a CPU the preferred size of one keeps requests from being put together.
    preferred = _preferred(options) if on_gpu else [] if delay else [1]
    return [
        "dynamic_batching {",
        *([f"  preferred_batch_size: [ {', '.join(map(str, preferred))} ]"] if preferred else []),
        f"  max_queue_delay_microseconds: {delay}",
        f"  default_queue_policy {{ timeout_action: REJECT max_queue_size: {size} }}",
        "}",
    ]


def _accelerator(options: ServerOptions) -> list[str]:
    """The settings that `deitlt.runtimes` gives CUDA; left to itself it would compute in TF32."""
    if options.backend == "python" or options.device == "cpu":
        return []
    return [
        "optimization { execution_accelerators { gpu_execution_accelerator: [ {",
        '  name: "cuda"',
        *(
            f"  parameters {{ key: {_quoted(key)} value: {_quoted(setting)} }}"
            for key, setting in CUDA_OPTIONS.items()
        ),
        "} ] } }",
    ]


def _preferred(options: ServerOptions) -> list[int]:
    """Powers of two up to the largest batch: few sizes, so few shapes to prepare for."""
    sizes = [2**n for n in range(31) if SMALLEST_PREFERRED <= 2**n < options.max_batch_size]
    return [*sizes, options.max_batch_size]


def _warmup(batch_size: int, image: Tensor) -> list[str]:
    return [
        "model_warmup {",
        f'  name: "golden image, batch {batch_size}"',
        f"  batch_size: {batch_size}",
        "  inputs {",
        f"    key: {_quoted(image.name)}",
        "    value {",
        f"      data_type: {image.kind}",
        f"      {_dims(image)}",
        f"      input_data_file: {_quoted(WARMUP_FILE)}",
        "    }",
        "  }",
        "}",
    ]


def _quoted(text: str) -> str:
    """A string of protobuf's text format; its escapes are those of JSON for printable text."""
    return json.dumps(text, ensure_ascii=False)
