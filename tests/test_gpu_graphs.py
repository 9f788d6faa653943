"""Exported graphs hold nothing that ONNX Runtime would not run on the GPU itself.

A CPU cannot place a graph on a GPU, but by what rule it is placed is known. An operator is placed
there if a kernel is registered for just its version: one registered without an end counts for the
version it begins with alone (`KernelRegistry::VerifyVersion`). What computes with shapes is placed
on the CPU all the same (`GetCpuPreferredNodes`).
"""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from deitlt.preprocess import PreprocessSpec
from deitlt.runtimes import OnnxRuntime
from deitlt.student import StudentConfig
from export.fuse import FusedStudent
from export.gpu_form import DOMAIN, write_gpu_form
from export.parity import PlainStudent
from export.to_onnx import ATTENTION_OPSET, export_onnx
from export.variants import VARIANTS
from tests.export_support import card_of, noise_student, photo_pixels

# From `docs/OperatorKernels.md` of ONNX Runtime, CUDAExecutionProvider: the versions for which
# kernels of float32 and float16 (Reshape, Transpose and Cast: of uint8 too) are registered.
OPEN = math.inf
CUDA_KERNELS = {
    "Add": [(13, 13), (14, OPEN)],
    "Attention": [(23, 23), (24, OPEN)],
    "Cast": [(13, 18), (19, 20), (21, 22), (23, OPEN)],
    "Concat": [(13, OPEN)],
    "Div": [(13, 13), (14, OPEN)],
    "Gather": [(13, OPEN)],
    "Gelu": [(20, OPEN)],
    "Gemm": [(13, OPEN)],
    "LayerNormalization": [(17, OPEN)],
    "MatMul": [(13, OPEN)],
    "Mul": [(13, 13), (14, OPEN)],
    "Pad": [(13, 17), (18, OPEN)],
    "ReduceMean": [(18, OPEN)],
    "Reshape": [(14, 18), (19, 20), (21, 22), (23, OPEN)],
    "Slice": [(13, OPEN)],
    "Softmax": [(13, OPEN)],
    "Sub": [(13, 13), (14, OPEN)],
    "Transpose": [(13, 20), (21, 22), (23, OPEN)],
}
ON_GPU = [
    name
    for name, variant in VARIANTS.items()
    if variant.format == "onnx" and variant.write is not None
]


def has_cuda_kernel(operator: str, opset: int) -> bool:
    version = onnx.defs.get_schema(operator, opset).since_version
    return any(
        first == version or (first < version <= last < OPEN)
        for first, last in CUDA_KERNELS.get(operator, [])
    )


def test_the_rule_tells_versions_apart() -> None:
    assert has_cuda_kernel("Reshape", 20)
    assert has_cuda_kernel("Gemm", 23)  # as it was in opset 13
    assert not has_cuda_kernel("Pad", 20)  # of opset 19, for which nothing is registered
    assert not has_cuda_kernel("Shape", 20)  # has a kernel, but what reads it goes to the CPU


@pytest.mark.parametrize("name", ON_GPU)
def test_every_operator_has_a_kernel_of_its_version_on_a_gpu(name: str, tmp_path: Path) -> None:
    spec = PreprocessSpec(16)
    model = noise_student(StudentConfig(size="pico", img_size=16, patch_size=4, num_classes=10))
    variant, path = VARIANTS[name], tmp_path / "model.onnx"
    assert variant.write is not None
    variant.write(model, card_of(model, spec), variant.attention, path)
    graph = onnx.load(str(path))
    (opset,) = (entry.version for entry in graph.opset_import if not entry.domain)
    missing = {n.op_type for n in graph.graph.node if not has_cuda_kernel(n.op_type, opset)}
    assert not missing


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 0.02)])
def test_the_gpu_form_answers_as_torch_does(
    dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    spec = PreprocessSpec(16)
    model = noise_student(StudentConfig(size="pico", img_size=16, patch_size=4, num_classes=10))
    card, pixels = card_of(model, spec), photo_pixels(24, spec)
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    export_onnx(FusedStudent(model, spec, attention="operator", dtype=dtype), card, source)
    write_gpu_form(source, target)
    graph = onnx.load(str(target))
    onnx.checker.check_model(graph, full_check=True)
    own = Counter(node.op_type for node in graph.graph.node if node.domain == DOMAIN)
    # Four blocks: the last has two queries and so no fused attention; its norms are the final one.
    assert own == {"MultiHeadAttention": 3, "BiasGelu": 4, "SkipLayerNormalization": 8}
    standard = {node.op_type for node in graph.graph.node if not node.domain}
    assert all(has_cuda_kernel(operator, ATTENTION_OPSET) for operator in standard)
    expected = PlainStudent(model, card).run(pixels).parts()
    assert min(part.std() for part in expected.values()) > 10 * tolerance
    for batch in (1, 24):
        for name, actual in OnnxRuntime(target, device="cpu").run(pixels[:batch]).parts().items():
            np.testing.assert_allclose(actual, expected[name][:batch], rtol=0, atol=tolerance)
