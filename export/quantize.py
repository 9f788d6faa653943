"""int8 for CPUs: weights a channel at a time, activations by what calibration images show.

Every linear layer of the blocks and the patch embedding computes in int8; LayerNorm, softmax,
attention's products, GELU and the heads stay float32. Ranges are fixed at export (static), so an
image's answer does not depend on the images it shares a batch with, as it does where ranges are
taken as the model runs (dynamic).
"""

import logging
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import InferenceSession
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from deitlt.bundle import INPUT
from deitlt.preprocess import Pixels

# What a layer computes, by the last part of its weight's name.
LAYERS = ("patch", "query", "key", "value", "proj", "fc1", "fc2")
BATCH = 8


def quantize_int8(
    source: Path, target: Path, calibration: Pixels, *, keep_float: Collection[str] = ()
) -> None:
    """Write the int8 graph of a float32 one, in ONNX's QuantizeLinear / DequantizeLinear form.

    Args:
        source: a graph of `to_onnx.export_onnx` that takes pixels.
        target: the file to write.
        calibration: `(N, S, S, 3)` pixels of training images.
        keep_float: those of `LAYERS` that stay float32.
    """
    graph = onnx.load(str(source))
    layers = {node.name: _layer(node) for node in graph.graph.node if node.op_type == "Gemm"}
    quantized = [
        name for name, layer in layers.items() if layer in LAYERS and layer not in keep_float
    ]
    pixels = {node.input[0] for node in graph.graph.node if layers.get(node.name) == "patch"}
    with tempfile.TemporaryDirectory() as folder, _without_advice():
        quantize_static(
            graph,
            Path(folder) / "int8.onnx",
            _Images(calibration),
            quant_format=QuantFormat.QDQ,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_quantize=quantized,
            op_types_to_quantize=["Gemm"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                # What follows a layer is float32: rounding its output too would gain nothing.
                "OpTypesToExcludeOutputQuantization": ["Gemm"],
                # Bytes are bytes: scale 1 loses nothing, whatever the calibration images hold.
                "TensorQuantOverrides": {name: [_EXACT] for name in pixels},
            },
        )
        result = onnx.load(Path(folder) / "int8.onnx")
    result.graph.ClearField("value_info")
    del result.metadata_props[:]
    result.metadata_props.extend(graph.metadata_props)
    result.producer_name, result.producer_version = graph.producer_name, graph.producer_version
    onnx.save(result, str(target))


_EXACT = {"scale": np.array(1, np.float32), "zero_point": np.array(0, np.uint8)}


def rank_layers(source: Path, calibration: Pixels) -> list[str]:
    """`LAYERS`, those first whose rounding alone moves the averaged logits most.

    Args:
        source: the float32 graph.
        calibration: `(N, S, S, 3)` pixels; the movement is measured on them too.
    """
    expected = _average(source, calibration)
    moved = {}
    with tempfile.TemporaryDirectory() as folder:
        for layer in LAYERS:
            alone = Path(folder) / f"{layer}.onnx"
            others = [name for name in LAYERS if name != layer]
            quantize_int8(source, alone, calibration, keep_float=others)
            moved[layer] = float(np.square(_average(alone, calibration) - expected).mean())
    return sorted(LAYERS, key=lambda layer: -moved[layer])


@contextmanager
def _without_advice() -> Iterator[None]:
    """Onnxruntime advises, on the root logger, an optimisation that this graph has no use for."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _layer(node: onnx.NodeProto) -> str:
    """`fc1` of `blocks.3.fc1.weight`, however the exporter may have named the node."""
    parts = node.input[1].split(".")
    return parts[-2] if len(parts) > 1 else ""


def _average(graph: Path, pixels: Pixels) -> Any:
    session = InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], feed)[0] for feed in _feeds(pixels)])


def _feeds(pixels: Pixels) -> Iterator[dict[str, Pixels]]:
    for start in range(0, len(pixels), BATCH):
        yield {INPUT: pixels[start : start + BATCH]}


class _Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
    def __init__(self, pixels: Pixels) -> None:
        self._feeds = _feeds(pixels)

    def get_next(self) -> dict[str, Pixels] | None:
        return next(self._feeds, None)
