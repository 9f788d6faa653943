"""A fused student as an ONNX file that can be used without anything beside it."""

import json
from pathlib import Path

import onnx
import torch

from deitlt.bundle import INPUT, OUTPUTS
from deitlt.weights import Card
from export.fuse import FusedStudent

# 20 is the newest opset that every ONNX Runtime since 1.17 runs; nothing newer is needed.
OPSET = 20


def export_onnx(model: FusedStudent, card: Card, path: Path) -> None:
    """Write the graph: uint8 `(B, S, S, 3)` in, three `(B, C)` logits out, batch size free.

    Class names, counts and preprocessing stand in the file's metadata, so that someone who has
    only the .onnx can use it.
    """
    side = card.preprocess.img_size
    # Batch 2: an example of one would let the exporter take the batch for a constant.
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    program = torch.onnx.export(
        model,
        (example,),
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        dynamic_shapes={"images": {0: "batch"}},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    graph = program.model_proto
    _strip_traces(graph)
    metadata = {
        "classes": card.classes,
        "train_counts": card.train_counts,
        "preprocess": card.preprocess.to_dict(),
        "outputs": "logits (not probabilities): the mean of both experts, CLS, DIST",
    }
    onnx.helper.set_model_props(graph, {k: json.dumps(v) for k, v in metadata.items()})
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, str(path))


def _strip_traces(proto: onnx.ModelProto) -> None:
    """Remove what the exporter notes of itself: half the file, and the paths of this machine."""
    proto.graph.ClearField("metadata_props")
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
