"""A fused student as an ONNX file that can be used without anything beside it."""

import json
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch

from deitlt.bundle import FEATURES, INPUT, NORMALISED_INPUT, OUTPUTS, ROLLOUTS
from deitlt.weights import Card
from export.fuse import FusedStudent

# 20 is the newest opset that every ONNX Runtime since 1.17 runs, and the first with Gelu; only the
# Attention operator needs 23.
OPSET = 20
ATTENTION_OPSET = 23
# ONNX files are protocol buffers, which end at 2 GB; the largest student has a fifth of that.
MAX_BYTES = 2**31 - 1
ROLLOUTS_ARE = "attention rollout of CLS and DIST over the patches, rows from the top"
FEATURES_ARE = "CLS and DIST token after the final norm, what the experts' heads read"


def export_onnx(model: FusedStudent, card: Card, path: Path) -> None:
    """Write the graph as one file, batch size free.

    In: uint8 `(B, S, S, 3)` or float32 `(B, 3, S, S)`, as the module takes; out: logits `(B, C)`
    and, with the experts, their features `(B, D)`; rollouts `(B, G, G)` where it explains.
    Class names, counts and preprocessing stand in the file's metadata, so that someone who has
    only the .onnx can use it.
    """
    graph = _trace(model, card.preprocess.img_size)
    metadata = {
        "classes": card.classes,
        "train_counts": card.train_counts,
        "preprocess": card.preprocess.to_dict(),
        "input": _describe_input(model, card.preprocess.img_size),
        "outputs": "logits (not probabilities): the mean of both experts"
        + (", CLS (head expert), DIST (tail expert)" if model.experts else ""),
        **({"features": FEATURES_ARE} if model.experts else {}),
        **({"rollouts": ROLLOUTS_ARE} if model.explain else {}),
    }
    onnx.helper.set_model_props(graph, {k: json.dumps(v) for k, v in metadata.items()})
    onnx.checker.check_model(graph, full_check=True)
    assert graph.ByteSize() < MAX_BYTES
    onnx.save(graph, str(path))


def describe_graph(path: Path) -> dict[str, Any]:
    """What a reader of the file has to support: the versions of its operators and of the format."""
    graph = onnx.load(str(path), load_external_data=False)
    opsets = {entry.domain or "ai.onnx": entry.version for entry in graph.opset_import}
    return {"opset": opsets, "ir_version": graph.ir_version}


def _trace(model: FusedStudent, side: int) -> onnx.ModelProto:
    # Batch 2: an example of one would let the exporter take the batch for a constant.
    if model.takes == "pixels":
        name, example = INPUT, torch.zeros(2, side, side, 3, dtype=torch.uint8)
    else:
        name, example = NORMALISED_INPUT, torch.zeros(2, 3, side, side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch 2.11's, of its own code
        program = torch.onnx.export(
            model,
            (example,),
            input_names=[name],
            output_names=_output_names(model),
            dynamic_shapes={"images": {0: "batch"}},
            opset_version=ATTENTION_OPSET if model.attention == "operator" else OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto  # a new copy each time it is asked for
    _strip_traces(graph)
    return graph


def _output_names(model: FusedStudent) -> list[str]:
    if not model.experts:
        return [OUTPUTS[0]]
    return [*OUTPUTS, *FEATURES, *(ROLLOUTS if model.explain else ())]


def _describe_input(model: FusedStudent, side: int) -> str:
    if model.takes == "pixels":
        return f"{INPUT}: uint8 RGB (batch, {side}, {side}, 3), 0 to 255; normalised by the graph"
    return f"{NORMALISED_INPUT}: float32 RGB (batch, 3, {side}, {side}), (x / 255 - mean) / std"


def _strip_traces(proto: onnx.ModelProto) -> None:
    """Remove what the exporter notes of itself: half the file, and the paths of this machine."""
    proto.graph.ClearField("metadata_props")
    # Shapes in between follow from the operators; the noted ones outlive a change to the graph.
    proto.graph.ClearField("value_info")
    for part in (*proto.graph.node, *proto.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
