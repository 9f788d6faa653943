"""The rows of the table: what is run, from which file, and why one may have to be left out."""

import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

How = Literal["torch", "compile", "onnx", "bound", "torchscript", "pt2", "openvino"]
Precision = Literal["float32", "float16", "int8"]
Provider = Literal["CPUExecutionProvider", "CUDAExecutionProvider"]

BOTH = ("cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to run a student.

    Attributes:
        key: its name on the command line.
        label: its name in the table.
        file: what it opens, of `artefacts.WRITERS`.
        how: what runs it; `bound` is ONNX Runtime with input and output on the device.
        takes: raw `pixels`, or `normalised` float32 images made beforehand.
        precision: of the blocks.
        devices: where it can run.
        graph: replay a CUDA graph.
        why_not: why it does not run on the other device.
    """

    key: str
    label: str
    file: str
    how: How
    takes: Literal["pixels", "normalised"] = "pixels"
    precision: Precision = "float32"
    devices: Collection[str] = BOTH
    graph: bool = False
    why_not: str = "it needs --device cuda"


BASELINE = "plain"
FLOAT32, INT8 = "float32", "int8"
WEIGHTS_FILE, PLAIN_FILE, OPTIMIZED_FILE = "student.safetensors", "plain.onnx", "optimized.onnx"
FLOAT32_FILE, MATMUL_FILE = "model.onnx", "model.matmul.onnx"
EXPLAIN_FILE = "model.explain.onnx"
INT8_FILE, FP16_FILE = "model.int8.onnx", "model.fp16.onnx"
FP16_ATTENTION_FILE, FP16_FUSED_FILE = "model.fp16.attention.onnx", "model.fp16.fused.onnx"
TORCHSCRIPT_FILE, PT2_FILE = "model.torchscript", "model.pt2"

_ON_CPU = "it runs on the CPU alone"


def _on_device(key: str, label: str, file: str, *, graph: bool = False) -> Row:
    return Row(
        key=key,
        label=label,
        file=file,
        how="bound",
        precision="float32" if file == FLOAT32_FILE else "float16",
        devices=("cuda",),
        graph=graph,
    )


_ALL = (
    Row(
        key="torch",
        label="PyTorch eager, timm model",
        file=WEIGHTS_FILE,
        how="torch",
        takes="normalised",
    ),
    Row(
        key="compile",
        label="torch.compile, timm model",
        file=WEIGHTS_FILE,
        how="compile",
        takes="normalised",
    ),
    Row(
        key=BASELINE,
        label="plain ONNX export (baseline)",
        file=PLAIN_FILE,
        how="onnx",
        takes="normalised",
    ),
    Row(
        key="optimized",
        label="plain export + onnxruntime.transformers",
        file=OPTIMIZED_FILE,
        how="onnx",
        takes="normalised",
    ),
    Row(key=FLOAT32, label="ours float32", file=FLOAT32_FILE, how="onnx"),
    Row(key="matmul", label="ours float32, plain attention", file=MATMUL_FILE, how="onnx"),
    Row(key="explain", label="ours explain, with rollouts", file=EXPLAIN_FILE, how="onnx"),
    Row(
        key=INT8,
        label="ours int8",
        file=INT8_FILE,
        how="onnx",
        precision="int8",
        devices=("cpu",),
        why_not="int8 is the form for CPUs; on a GPU fp16 is",
    ),
    Row(
        key="fp16",
        label="ours fp16",
        file=FP16_FILE,
        how="onnx",
        precision="float16",
        devices=("cuda",),
        why_not="fp16 is the form for GPUs, CPUs compute it in float32; it needs --device cuda",
    ),
    Row(key="torchscript", label="ours TorchScript", file=TORCHSCRIPT_FILE, how="torchscript"),
    Row(key="pt2", label="ours pt2 (torch.export)", file=PT2_FILE, how="pt2"),
    _on_device("float32-binding", "ours float32, IO binding", FLOAT32_FILE),
    _on_device("float32-graph", "ours float32, IO binding + CUDA graph", FLOAT32_FILE, graph=True),
    _on_device("fp16-binding", "ours fp16, IO binding", FP16_FILE),
    _on_device("fp16-graph", "ours fp16, IO binding + CUDA graph", FP16_FILE, graph=True),
    _on_device(
        "fp16-attention-graph",
        "ours fp16, Attention operator, CUDA graph",
        FP16_ATTENTION_FILE,
        graph=True,
    ),
    _on_device("fp16-fused-binding", "ours fp16, com.microsoft, IO binding", FP16_FUSED_FILE),
    _on_device(
        "fp16-fused-graph", "ours fp16, com.microsoft, CUDA graph", FP16_FUSED_FILE, graph=True
    ),
    Row(
        key="openvino-float32",
        label="ours float32 in OpenVINO",
        file=FLOAT32_FILE,
        how="openvino",
        devices=("cpu",),
        why_not=_ON_CPU,
    ),
    Row(
        key="openvino-int8",
        label="ours int8 in OpenVINO",
        file=INT8_FILE,
        how="openvino",
        precision="int8",
        devices=("cpu",),
        why_not=_ON_CPU,
    ),
)
ROWS: dict[str, Row] = {row.key: row for row in _ALL}


def provider(device: str) -> Provider:
    """The execution provider of ONNX Runtime on a device."""
    return "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"


def missing(row: Row, device: str) -> str | None:
    """Why a row cannot run on this machine, in a few words; None if it can, as far as one sees."""
    if device not in row.devices:
        return row.why_not
    if row.how == "openvino" and find_spec("openvino") is None:
        return "openvino is not installed (pip install openvino)"
    if row.how == "compile" and _compiler() is None:
        return "torch.compile needs a C++ compiler, and there is none"
    if row.how in ("onnx", "bound"):
        return _missing_provider(provider(device))
    return None


def _compiler() -> str | None:
    names = (os.environ.get("CXX"), "g++", "c++", "clang++", "cl")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def _missing_provider(name: Provider) -> str | None:
    import onnxruntime

    if name not in onnxruntime.get_available_providers():
        return f"this onnxruntime has no {name}"
    return None
