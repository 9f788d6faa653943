"""A graph in the operators that ONNX Runtime's CUDA provider has fast kernels for.

The standard operators leave time on a GPU: a Gemm first fills its whole output with the bias and
then adds the product (`onnxruntime/core/providers/cuda/math/gemm.cc`), and every sum and every norm
reads and writes all tokens once more. ONNX Runtime's own operators (domain com.microsoft) take the
bias along:

- `MatMul, BiasGelu` for the first layer of an MLP and its GELU,
- `MatMul, SkipLayerNormalization` for a layer, the sum with what skipped it, and the next norm,
- `MultiHeadAttention` for Attention, with flash attention in ONNX Runtime of any age.

The numbers are the same but for rounding. Only ONNX Runtime runs such a graph.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import NodeProto, helper, numpy_helper

DOMAIN = "com.microsoft"


def write_gpu_form(source: Path, target: Path) -> None:
    """Rewrite a graph of `to_onnx.export_onnx` with the Attention operator.

    Args:
        source: the graph; its precision stays.
        target: the file to write.
    """
    proto = onnx.load(str(source))
    _Rewriting(proto.graph).rewrite()
    proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    onnx.save(proto, str(target))


class _Rewriting:
    """The graph, and who makes and who reads each of its tensors."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.maker = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def rewrite(self) -> None:
        """Replace what can be replaced, in place and in order."""
        replaced: dict[str, list[NodeProto]] = {}  # by the first output of what goes
        for node in self.graph.node:
            if node.op_type == "Attention":
                replaced[node.output[0]] = [_attention(node)]
            elif node.op_type == "Gelu" and (layer := self._layer(node.input[0])):
                replaced[layer.output[0]] = []
                product = self._product(layer)
                gelu = _own("BiasGelu", [product.output[0], layer.input[2]], node.output)
                replaced[node.output[0]] = [product, gelu]
            elif node.op_type == "LayerNormalization":
                replaced |= self._skip(node)
        nodes = [n for node in self.graph.node for n in replaced.get(node.output[0], [node])]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input}
        kept = [tensor for name, tensor in self.weights.items() if name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _skip(self, norm: NodeProto) -> dict[str, list[NodeProto]]:
        """A norm after a sum with a layer's answer; nothing for the norm of what comes first."""
        total = self.maker.get(norm.input[0])
        if total is None or total.op_type != "Add":
            return {}
        layer = self._layer(total.input[1])
        if layer is None:
            return {}
        product = self._product(layer)
        skip = _own(
            "SkipLayerNormalization",
            [product.output[0], total.input[0], *norm.input[1:], layer.input[2]],
            [norm.output[0], "", "", total.output[0]],
            epsilon=_attributes(norm)["epsilon"],
        )
        # Where the sum was made, as it may be read before the norm is.
        return {layer.output[0]: [], total.output[0]: [product, skip], norm.output[0]: []}

    def _layer(self, name: str) -> NodeProto | None:
        """The Gemm that makes a tensor for one reader alone."""
        node = self.maker.get(name)
        only = node is not None and node.op_type == "Gemm" and len(self.readers[name]) == 1
        return node if only else None

    def _product(self, layer: NodeProto) -> NodeProto:
        """A Gemm without its bias."""
        data, weight, _ = layer.input
        assert _attributes(layer)["transB"] == 1
        transposed = numpy_helper.to_array(self.weights[weight]).T
        name = f"{weight}.transposed"
        self.weights[name] = numpy_helper.from_array(transposed.copy(), name)
        return helper.make_node("MatMul", [data, name], [f"{layer.output[0]}.product"])


def _attention(node: NodeProto) -> NodeProto:
    given = _attributes(node)
    return _own(
        "MultiHeadAttention",
        node.input,
        node.output[:1],
        num_heads=given["q_num_heads"],
        scale=given["scale"],
    )


def _own(
    operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
) -> NodeProto:
    return helper.make_node(operator, inputs, outputs, domain=DOMAIN, **attributes)


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
