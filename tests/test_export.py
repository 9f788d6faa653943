"""Exact surgery, and the proof on real images that a bundle answers as torch does."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from deitlt.errors import BundleError
from deitlt.preprocess import Pixels, PreprocessSpec, normalise, resize_crop
from deitlt.runtimes import OnnxRuntime, Outputs
from deitlt.student import DeiTLT, StudentConfig
from deitlt.weights import Card, save_weights
from export import to_bundle
from export.fuse import FusedStudent, average_heads, fold_normalisation
from export.parity import check_parity, torch_outputs
from export.to_onnx import export_onnx
from training.digits import write_digits

SPEC = PreprocessSpec(16, mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.05))


@pytest.fixture(scope="module")
def model() -> DeiTLT:
    torch.manual_seed(0)
    config = StudentConfig(size="nano", img_size=16, patch_size=4, num_classes=10)
    student = DeiTLT(config)
    with torch.no_grad():  # initial weights are so small that any mistake would hide in rounding
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    student.eval()
    return student


@pytest.fixture(scope="module")
def card(model: DeiTLT) -> Card:
    return Card(
        kind="student",
        architecture=model.architecture(),
        classes=[str(i) for i in range(10)],
        train_counts=[50 - i for i in range(10)],
        train_files_sha256="",
        preprocess=SPEC,
        recipe={"name": "test"},
        epoch=1,
    )


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    """100 real images, as deployment prepares them."""
    scans = load_digits().images[:100]
    images = [Image.fromarray((scan * 15.9).astype(np.uint8)).convert("RGB") for scan in scans]
    return np.stack([resize_crop(image, SPEC) for image in images])


@pytest.fixture(scope="module")
def graph(model: DeiTLT, card: Card, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_onnx(FusedStudent(model, SPEC), card, path)
    return path


def test_folding_is_exact(model: DeiTLT, pixels: Pixels) -> None:
    folded = fold_normalisation(model.patch_embed.proj, SPEC)
    raw = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    plain = model.patch_embed.proj(torch.from_numpy(normalise(pixels, SPEC)))
    torch.testing.assert_close(folded(raw), plain, rtol=1e-4, atol=1e-4)


def test_the_average_is_one_product(model: DeiTLT) -> None:
    c, d = torch.randn(4, 128), torch.randn(4, 128)
    product = average_heads(model.head, model.head_dist)
    expected = (model.head(c) + model.head_dist(d)) / 2
    torch.testing.assert_close(product(torch.cat([c, d], dim=1)), expected)


@torch.no_grad()
def test_the_fused_module_is_the_plain_one(model: DeiTLT, pixels: Pixels) -> None:
    cls, dist = model(torch.from_numpy(normalise(pixels, SPEC)))
    fused = FusedStudent(model, SPEC)(torch.from_numpy(pixels))
    for actual, expected in zip(fused, ((cls + dist) / 2, cls, dist), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_onnx_equals_torch_on_100_real_images(
    model: DeiTLT, card: Card, graph: Path, pixels: Pixels, batch_size: int
) -> None:
    expected = torch_outputs(model, card, pixels)
    runtime = OnnxRuntime(graph, device="cpu")
    for start in range(0, len(pixels), batch_size):
        outputs = runtime.run(pixels[start : start + batch_size])
        for actual, logits in zip(outputs, expected, strict=True):
            wanted = logits[start : start + batch_size]
            assert np.abs(actual - wanted).max() < 1e-4
        top1 = expected.logits[start : start + batch_size].argmax(axis=1)
        assert np.array_equal(outputs.logits.argmax(axis=1), top1)


def test_the_file_alone_says_how_to_use_it(graph: Path) -> None:
    proto = onnx.load(str(graph))
    assert [i.name for i in proto.graph.input] == ["images"]
    shape = proto.graph.input[0].type.tensor_type
    assert shape.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value or d.dim_param for d in shape.shape.dim] == ["batch", 16, 16, 3]
    names = [output.name for output in proto.graph.output]
    assert names == ["logits", "cls_logits", "distillation_logits"]
    assert proto.opset_import[0].version == 20
    metadata = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    assert metadata["classes"] == [str(i) for i in range(10)]
    assert metadata["train_counts"][0] == 50
    assert metadata["preprocess"]["img_size"] == 16
    assert "not probabilities" in metadata["outputs"]
    assert not list(graph.parent.glob("*.data"))


def test_the_file_holds_no_trace_of_the_machine_it_was_made_on(graph: Path) -> None:
    content = graph.read_bytes()
    for trace in (str(Path.cwd()), "site-packages", "stack_trace", "export/fuse.py"):
        assert trace.encode() not in content


class Shifted:
    """A runtime whose answers are off."""

    provider = "test"

    def __init__(self, graph: Path, shift: float) -> None:
        self.runtime, self.shift = OnnxRuntime(graph, device="cpu"), np.float32(shift)

    def run(self, pixels: Pixels) -> Outputs:
        logits, cls, dist = self.runtime.run(pixels)
        return Outputs(logits, cls, dist + self.shift)


@pytest.mark.parametrize("shift", [1e-3, -1e-3, np.nan])
def test_a_graph_that_differs_is_refused(
    model: DeiTLT, card: Card, graph: Path, pixels: Pixels, shift: float
) -> None:
    expected = torch_outputs(model, card, pixels)
    assert check_parity(Shifted(graph, 0.0), expected, pixels).same_top1 == 1
    with pytest.raises(BundleError, match="differs from torch"):
        check_parity(Shifted(graph, shift), expected, pixels)


def test_no_bundle_is_written_if_the_graph_differs(
    model: DeiTLT,
    card: Card,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_digits(tmp_path / "data")
    save_weights(tmp_path / "student.safetensors", model, card)

    def shifted_graph(fused: FusedStudent, card: Card, path: Path) -> None:
        assert fused.average.bias is not None
        fused.average.bias.data += 0.01
        export_onnx(fused, card, path)

    monkeypatch.setattr(to_bundle, "export_onnx", shifted_graph)
    where = ["--output", str(tmp_path / "bundle"), "--data", str(tmp_path / "data")]
    assert to_bundle.main([str(tmp_path / "student.safetensors"), *where]) == 2
    assert "differs from torch" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "student.safetensors"]
