"""The ONNX graph: it answers as torch does on real images, and it is what it says it is."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from deitlt.bundle import FEATURES, OUTPUTS
from deitlt.errors import BundleError
from deitlt.preprocess import Pixels, PreprocessSpec
from deitlt.runtimes import OnnxRuntime, Outputs
from deitlt.student import DeiTLT, StudentConfig
from deitlt.weights import Card
from export import variants
from export.fuse import FusedStudent
from export.parity import (
    MAX_ABS_DIFF,
    PlainStudent,
    answers,
    check_batch_sizes,
    check_exact,
    compare,
)
from export.to_onnx import export_onnx
from tests.export_support import card_of, export, noise_student, photo_pixels

SPEC = PreprocessSpec(16, mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.05))
NUM_IMAGES = 96


@pytest.fixture(scope="module")
def model() -> DeiTLT:
    return noise_student(StudentConfig(size="pico", img_size=16, patch_size=4, num_classes=10))


@pytest.fixture(scope="module")
def card(model: DeiTLT) -> Card:
    return card_of(model, SPEC, train_counts=[50 - i for i in range(10)])


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    """Real images, as deployment prepares them."""
    return photo_pixels(NUM_IMAGES, SPEC)


@pytest.fixture(scope="module")
def expected(model: DeiTLT, card: Card, pixels: Pixels) -> Outputs:
    return PlainStudent(model, card).run(pixels)


@pytest.fixture(scope="module")
def graph(model: DeiTLT, card: Card, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_onnx(FusedStudent(model, SPEC), card, path)
    return path


def assert_equals_torch(graph: Path, pixels: Pixels, expected: Outputs, batch_size: int) -> None:
    runtime = OnnxRuntime(graph, device="cpu")
    for start in range(0, len(pixels), batch_size):
        outputs = runtime.run(pixels[start : start + batch_size])
        assert list(outputs.heads()) == list(OUTPUTS)
        for name, wanted in expected.heads().items():
            actual = outputs.heads()[name]
            assert actual.dtype == np.float32
            assert np.abs(actual - wanted[start : start + batch_size]).max() < 1e-4
        assert list(outputs.features()) == list(FEATURES)
        for name, wanted in expected.features().items():
            actual = outputs.features()[name]
            assert actual.dtype == np.float32
            assert np.abs(actual - wanted[start : start + batch_size]).max() < 1e-4
        top1 = expected.logits[start : start + batch_size].argmax(axis=1)
        assert np.array_equal(outputs.logits.argmax(axis=1), top1)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_the_graph_equals_torch_on_real_images(
    graph: Path, pixels: Pixels, expected: Outputs, batch_size: int
) -> None:
    assert len(np.unique(expected.logits.argmax(axis=1))) > 2, "one answer for all proves little"
    assert_equals_torch(graph, pixels, expected, batch_size)


def test_the_attention_operator_equals_torch_on_real_images(
    model: DeiTLT, card: Card, pixels: Pixels, expected: Outputs, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(FusedStudent(model, SPEC, attention="operator"), card, path)
    proto = onnx.load(str(path))
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 23)]
    # The last block, with two queries an image, is plain products.
    assert [node.op_type for node in proto.graph.node].count("Attention") == 3
    assert_equals_torch(path, pixels, expected, 32)


def test_deit_tiny_equals_torch(tmp_path: Path) -> None:
    model = noise_student(StudentConfig(size="tiny", img_size=224, patch_size=16, num_classes=1000))
    spec = PreprocessSpec(224, crop_pct=0.875)
    card = card_of(model, spec)
    export_onnx(FusedStudent(model, spec), card, tmp_path / "model.onnx")
    images = photo_pixels(4, spec)
    expected = PlainStudent(model, card).run(images)
    assert_equals_torch(tmp_path / "model.onnx", images, expected, 3)


def test_the_file_alone_says_how_to_use_it(graph: Path) -> None:
    proto = onnx.load(str(graph))
    assert [i.name for i in proto.graph.input] == ["images"]
    shape = proto.graph.input[0].type.tensor_type
    assert shape.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value or d.dim_param for d in shape.shape.dim] == ["batch", 16, 16, 3]
    assert [output.name for output in proto.graph.output] == [*OUTPUTS, *FEATURES]
    for output, width in zip(proto.graph.output, (10, 10, 10, 64, 64), strict=True):
        dims = output.type.tensor_type.shape.dim
        assert [d.dim_value or d.dim_param for d in dims] == ["batch", width]
    metadata = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    assert metadata["classes"] == [f"c{i}" for i in range(10)]
    assert metadata["train_counts"][0] == 50
    assert metadata["preprocess"]["img_size"] == 16
    assert "not probabilities" in metadata["outputs"]


def test_the_graph_needs_nothing_but_standard_onnx(graph: Path) -> None:
    proto = onnx.load(str(graph), load_external_data=False)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 20)]
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    locations = {tensor.data_location for tensor in proto.graph.initializer}
    assert locations == {onnx.TensorProto.DEFAULT}
    assert [file.name for file in graph.parent.iterdir()] == ["model.onnx"]


def test_the_file_holds_no_trace_of_the_machine_it_was_made_on(graph: Path) -> None:
    content = graph.read_bytes()
    for trace in (str(Path.cwd()), "site-packages", "stack_trace", "export/fuse.py"):
        assert trace.encode() not in content


class Changed:
    """A runtime whose answers are off, in all batches or in those of one size."""

    provider = "test"

    def __init__(self, outputs: Outputs, shift: float, batch_size: int | None = None) -> None:
        self.outputs, self.shift, self.batch_size = outputs, np.float32(shift), batch_size
        self.position = 0

    def run(self, pixels: Pixels) -> Outputs:
        rows = slice(self.position, self.position + len(pixels))
        self.position = rows.stop % len(self.outputs.logits)
        heads = {name: logits[rows].copy() for name, logits in self.outputs.heads().items()}
        if self.batch_size in (None, len(pixels)):
            heads["distillation_logits"][-1, -1] += self.shift
        return Outputs(**heads)


@pytest.mark.parametrize("shift", [1.1e-4, -1.1e-4, np.nan, np.inf])
def test_a_graph_that_differs_in_one_logit_is_refused(
    pixels: Pixels, expected: Outputs, shift: float
) -> None:
    same = compare(answers(Changed(expected, 0.0), [pixels]), expected)
    assert (same.num_images, same.max_abs_diff, same.same_top1) == (NUM_IMAGES, 0, 1)
    check_exact("model.onnx", same)
    parity = compare(answers(Changed(expected, shift), [pixels]), expected)
    with pytest.raises(BundleError, match=r"model\.onnx differs from torch on 96 images") as caught:
        check_exact("model.onnx", parity)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_graph_that_differs_in_small_batches_is_refused(
    pixels: Pixels, expected: Outputs, batch_size: int
) -> None:
    check_batch_sizes("model.onnx", Changed(expected, 0.0), pixels, expected)
    with pytest.raises(BundleError, match=rf"model\.onnx, {batch_size} at a time, differs"):
        check_batch_sizes("model.onnx", Changed(expected, 0.1, batch_size), pixels, expected)


class Swapped(PlainStudent):
    """A runtime that takes the experts' features for one another."""

    def run(self, pixels: Pixels) -> Outputs:
        right = super().run(pixels)
        cls, dist = right.cls_features, right.distillation_features
        return right._replace(cls_features=dist, distillation_features=cls)


def test_features_are_compared_too(
    model: DeiTLT, card: Card, pixels: Pixels, expected: Outputs
) -> None:
    check_batch_sizes("model.onnx", PlainStudent(model, card), pixels[:6], expected.rows(0, 6))
    with pytest.raises(BundleError, match=r"model\.onnx, 1 at a time, differs"):
        check_batch_sizes("model.onnx", Swapped(model, card), pixels[:6], expected.rows(0, 6))


@pytest.mark.parametrize("off", [0.99e-4, 1.01e-4])
@pytest.mark.parametrize("gap", [1e-6, 1.9e-4, 2.1e-4, 1e-2])
def test_another_top1_is_refused_unless_the_logits_are_tied(gap: float, off: float) -> None:
    torch_says = np.array([[0.0, gap], [0.0, 1.0]], dtype=np.float32)
    # The worst that logits off by so much can do: they go towards each other.
    shift = np.array([[off, -off], [0.0, 0.0]], dtype=np.float32)
    parity = compare(Outputs(torch_says + shift), Outputs(torch_says))
    assert parity.same_top1 == (0.5 if gap < 2 * off else 1)
    if off < MAX_ABS_DIFF:
        assert parity.same_top1 == 1 or gap < 2 * MAX_ABS_DIFF
        check_exact("model.onnx", parity)
    else:
        with pytest.raises(BundleError, match=r"same top-1 (0\.500|1\.000)"):
            check_exact("model.onnx", parity)


def test_no_bundle_is_written_if_the_graph_differs(
    fitted_run: Path,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def shifted_graph(fused: FusedStudent, card: Card, path: Path) -> None:
        fused.average.bias.data += 0.01
        export_onnx(fused, card, path)

    monkeypatch.setattr(variants, "export_onnx", shifted_graph)
    assert export(fitted_run, tmp_path / "bundle", digits, "--max-images", "20") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("export: not written: model.onnx differs from torch on 20 ima")
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
