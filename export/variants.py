"""The forms a student can be exported to beside model.onnx, and how each is written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from deitlt.bundle import EXPLAIN, FLOAT32, MODEL
from deitlt.student import DeiTLT
from deitlt.weights import Card
from export.fuse import Attention, FusedStudent
from export.to_onnx import export_onnx
from export.to_torch import export_program, export_torchscript

FP16, INT8 = "fp16", "int8"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One form of the model.

    Attributes:
        file: its file in the bundle.
        format: what loads it: onnx, torchscript or pt2.
        precision: float32 (held to torch's logits), float16 or int8 (held to torch's accuracy).
        input: what goes in, for people.
        attention: how ONNX graphs write attention down unless the user says otherwise. The
            Attention operator is faster on a CPU (RESULTS.md); on a GPU it was never measured.
        write: writes the file; None where it is made from the float32 graph.
    """

    file: str
    format: str
    precision: str = "float32"
    input: str = "images: uint8 (B, S, S, 3)"
    attention: Attention = "operator"
    write: Callable[[DeiTLT, Card, Attention, Path], None] | None = None


def _float32(model: DeiTLT, card: Card, attention: Attention, path: Path) -> None:
    export_onnx(FusedStudent(model, card.preprocess, attention=attention), card, path)


def half_student(model: DeiTLT, card: Card, attention: Attention = "matmul") -> FusedStudent:
    """What fp16 computes; with plain products the scores of attention are rounded, too."""
    return FusedStudent(model, card.preprocess, attention=attention, dtype=torch.float16)


def _float16(model: DeiTLT, card: Card, attention: Attention, path: Path) -> None:
    export_onnx(half_student(model, card, attention), card, path)


def _average(model: DeiTLT, card: Card, attention: Attention, path: Path) -> None:
    fused = FusedStudent(model, card.preprocess, attention=attention, experts=False)
    export_onnx(fused, card, path)


def _explain(model: DeiTLT, card: Card, attention: Attention, path: Path) -> None:
    # Rollout needs the attention that the other forms never write down.
    fused = FusedStudent(model, card.preprocess, attention="matmul", explain=True)
    export_onnx(fused, card, path)


def _normalised(model: DeiTLT, card: Card, attention: Attention, path: Path) -> None:
    fused = FusedStudent(model, card.preprocess, attention=attention, takes="normalised")
    export_onnx(fused, card, path)


def _torchscript(model: DeiTLT, card: Card, attention: Attention, path: Path) -> None:
    export_torchscript(FusedStudent(model, card.preprocess, attention="sdpa"), card, path)


def _pt2(model: DeiTLT, card: Card, attention: Attention, path: Path) -> None:
    export_program(FusedStudent(model, card.preprocess, attention="sdpa"), card, path)


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        FLOAT32: Variant(file=MODEL, format="onnx", write=_float32),
        FP16: Variant(
            file="model.fp16.onnx",
            format="onnx",
            precision="float16",
            attention="matmul",
            write=_float16,
        ),
        INT8: Variant(file="model.int8.onnx", format="onnx", precision="int8"),
        "torchscript": Variant(file="model.torchscript", format="torchscript", write=_torchscript),
        "pt2": Variant(file="model.pt2", format="pt2", write=_pt2),
        "average": Variant(file="model.average.onnx", format="onnx", write=_average),
        EXPLAIN: Variant(
            file="model.explain.onnx", format="onnx", attention="matmul", write=_explain
        ),
        "nchw": Variant(
            file="model.nchw.onnx",
            format="onnx",
            input="pixel_values: float32 (B, 3, S, S), normalised",
            write=_normalised,
        ),
    }
)

TRITON = "triton"
# What --variants takes.
OPTIONAL = (*(name for name in VARIANTS if name != FLOAT32), TRITON)
