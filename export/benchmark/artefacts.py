"""The files that rows open, written from one student."""

import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import onnx
import torch

from deitlt.bundle import FLOAT32, MODEL, Bundle, write_bundle
from deitlt.preprocess import Pixels
from deitlt.student import DeiTLT
from deitlt.weights import Card, save_weights
from export.benchmark.rows import (
    EXPLAIN_FILE,
    FLOAT32_FILE,
    FP16_ATTENTION_FILE,
    FP16_FILE,
    FP16_FUSED_FILE,
    INT8_FILE,
    MATMUL_FILE,
    OPTIMIZED_FILE,
    PLAIN_FILE,
    PT2_FILE,
    TORCHSCRIPT_FILE,
    WEIGHTS_FILE,
)
from export.fuse import FusedStudent
from export.gpu_form import write_gpu_form
from export.quantize import quantize_int8
from export.to_onnx import describe_graph, export_onnx
from export.to_torch import export_program, export_torchscript


@dataclass(frozen=True)
class Subject:
    """A student to write, and what its forms are made with.

    Attributes:
        model: in eval mode, on the CPU.
        card: of its weight file.
        calibration: `(N, S, S, 3)` pixels for int8.
        device: what it will run on.
        folder: where the files go.
    """

    model: DeiTLT
    card: Card
    calibration: Pixels
    device: str
    folder: Path


def write(subject: Subject, file: str) -> str:
    """Write a file of a student, and what it needs; returns a note on it for people."""
    source = SOURCES.get(file)
    if source and not (subject.folder / source).exists():
        WRITERS[source](subject)
    path = subject.folder / file
    if path.exists():
        return _describe(path)
    # The exporters say every step they take.
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            said = WRITERS[file](subject)
    finally:
        logging.disable(level)
    return ", ".join(part for part in (_describe(path), said) if part)


def write_minimal_bundle(
    subject: Subject, output: Path, golden: Callable[[Path], None] = lambda folder: None
) -> Bundle:
    """A bundle of the float32 graph alone, as `deitlt.load` reads it; its figures are empty.

    Args:
        subject: whose float32 graph has been written.
        output: the bundle's folder.
        golden: writes golden images into a folder.

    Raises:
        BundleError: there is something at `output`.
    """
    card, source = subject.card, subject.folder / FLOAT32_FILE

    def fill(folder: Path) -> dict[str, Any]:
        (folder / MODEL).write_bytes(source.read_bytes())
        golden(folder)
        artefact = {
            "file": MODEL,
            "format": "onnx",
            "precision": FLOAT32,
            "parity": {"num_images": 0, "max_abs_diff": 0.0, "same_top1": 1.0},
            "accuracy": dict.fromkeys(("overall", "head", "mid", "tail")),
        }
        return {
            "name": output.name,
            "architecture": card.architecture,
            "classes": card.classes,
            "train_counts": card.train_counts,
            "preprocess": card.preprocess.to_dict(),
            "artefacts": {FLOAT32: artefact},
            "refused": {},
        }

    return write_bundle(output, fill)


def _describe(path: Path) -> str:
    if path.suffix != ".onnx":
        return ""
    opsets = describe_graph(path)["opset"]
    return f"opset {opsets['ai.onnx']}"


def _weights(subject: Subject) -> str:
    save_weights(subject.folder / WEIGHTS_FILE, subject.model, subject.card)
    return ""


def _plain(subject: Subject) -> str:
    """What PyTorch's exporter makes of the timm model by its own settings."""
    side = subject.card.preprocess.img_size
    program = torch.onnx.export(
        subject.model,
        (torch.zeros(2, 3, side, side),),
        input_names=["pixel_values"],
        output_names=["cls_logits", "distillation_logits"],
        dynamic_shapes={"images": {0: "batch"}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    onnx.save(program.model_proto, str(subject.folder / PLAIN_FILE))
    return ""


def _optimized(subject: Subject) -> str:
    from onnxruntime.transformers.optimizer import optimize_model

    model = optimize_model(
        str(subject.folder / PLAIN_FILE),
        model_type="vit",
        num_heads=subject.model.blocks[0].attn.num_heads,
        hidden_size=subject.model.embed_dim,
        use_gpu=subject.device == "cuda",
    )
    model.save_model_to_file(str(subject.folder / OPTIMIZED_FILE))
    fused = {name: count for name, count in model.get_fused_operator_statistics().items() if count}
    return "fused: " + (", ".join(f"{n} {name}" for name, n in fused.items()) or "nothing")


def _fused(file: str, **how: Any) -> Callable[[Subject], str]:
    def write_one(subject: Subject) -> str:
        fused = FusedStudent(subject.model, subject.card.preprocess, **how)
        export_onnx(fused, subject.card, subject.folder / file)
        return ""

    return write_one


def _gpu_form(subject: Subject) -> str:
    write_gpu_form(subject.folder / FP16_ATTENTION_FILE, subject.folder / FP16_FUSED_FILE)
    return ""


def _int8(subject: Subject) -> str:
    quantize_int8(subject.folder / FLOAT32_FILE, subject.folder / INT8_FILE, subject.calibration)
    return ""


def _torchscript(subject: Subject) -> str:
    fused = FusedStudent(subject.model, subject.card.preprocess, attention="sdpa")
    export_torchscript(fused, subject.card, subject.folder / TORCHSCRIPT_FILE)
    return ""


def _pt2(subject: Subject) -> str:
    fused = FusedStudent(subject.model, subject.card.preprocess, attention="sdpa")
    export_program(fused, subject.card, subject.folder / PT2_FILE)
    return ""


# Files that are made from another one.
SOURCES = {
    OPTIMIZED_FILE: PLAIN_FILE,
    INT8_FILE: FLOAT32_FILE,
    FP16_FUSED_FILE: FP16_ATTENTION_FILE,
}
WRITERS: dict[str, Callable[[Subject], str]] = {
    WEIGHTS_FILE: _weights,
    PLAIN_FILE: _plain,
    OPTIMIZED_FILE: _optimized,
    FLOAT32_FILE: _fused(FLOAT32_FILE, attention="operator"),
    MATMUL_FILE: _fused(MATMUL_FILE, attention="matmul"),
    EXPLAIN_FILE: _fused(EXPLAIN_FILE, attention="matmul", explain=True),
    FP16_FILE: _fused(FP16_FILE, attention="matmul", dtype=torch.float16),
    FP16_ATTENTION_FILE: _fused(FP16_ATTENTION_FILE, attention="operator", dtype=torch.float16),
    FP16_FUSED_FILE: _gpu_form,
    INT8_FILE: _int8,
    TORCHSCRIPT_FILE: _torchscript,
    PT2_FILE: _pt2,
}
