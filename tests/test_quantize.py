"""int8: what is in the file, what it answers, and what the gate does with one that is broken."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from deitlt.bundle import open_bundle
from deitlt.preprocess import Pixels, PreprocessSpec
from deitlt.runtimes import OnnxRuntime
from deitlt.student import DeiTLT, StudentConfig
from export import bundle_writer
from export.fuse import FusedStudent
from export.gate import Gate, judge
from export.quantize import LAYERS, quantize_int8, rank_layers
from export.to_onnx import export_onnx
from export.verification_data import NUM_TRIAL
from tests.export_support import (
    card_of,
    export,
    fitted_student,
    noise_student,
    photo_pixels,
    save_student,
)

SPEC = PreprocessSpec(16, mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.05))
GIANT = 1e4


@pytest.fixture(scope="module")
def calibration() -> Pixels:
    return photo_pixels(16, SPEC)


@torch.no_grad()
def spoil_proj(model: DeiTLT) -> DeiTLT:
    """Give one input of every projection giant values, and undo it in the weights.

    The float32 answer is the same, attention being linear in the values; but the range of 256 steps
    is spent on that input, and its weights vanish beside the others.
    """
    for block in model.blocks:
        values = 2 * model.embed_dim  # after queries and keys
        block.attn.qkv.weight[values] *= GIANT
        block.attn.qkv.bias[values] *= GIANT
        block.attn.proj.weight[:, 0] /= GIANT
    return model


def graph_of(model: DeiTLT, folder: Path) -> Path:
    export_onnx(FusedStudent(model, SPEC), card_of(model, SPEC), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = StudentConfig(size="pico", img_size=16, patch_size=8, num_classes=10)
    return graph_of(noise_student(config), tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def int8(source: Path, calibration: Pixels) -> Path:
    target = source.with_name("int8.onnx")
    # Dark ones only: the range of the pixels must not follow what they happen to hold.
    quantize_int8(source, target, calibration // 2, keep_float=["fc2", "query"])
    return target


def layer_weights(path: Path) -> dict[str, tuple[Any, Any]]:
    """The stored weight of each linear layer, and its scales (None where it is float32)."""
    graph = onnx.load(str(path)).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    found: dict[str, tuple[Any, Any]] = {}
    for node in graph.node:
        if node.op_type == "Gemm":
            name = node.input[1]
            if name in stored:
                found[name] = (stored[name], None)
            else:
                weight, scale, *_ = made_by[name].input
                found[weight] = (stored[weight], stored[scale])
    return found


def test_weights_have_a_scale_a_channel_and_kept_layers_are_float32(
    source: Path, int8: Path
) -> None:
    plain = {name: weight for name, (weight, _) in layer_weights(source).items()}
    quantized = 0
    for name, (weight, scales) in layer_weights(int8).items():
        original = plain[name.removesuffix("_quantized")]
        layer = name.split(".")[-2]
        if layer in ("fc2", "query") or layer not in LAYERS:
            assert weight.dtype == np.float32, name
            assert scales is None
            assert np.array_equal(weight, original)
            continue
        quantized += 1
        assert weight.dtype == np.int8, name
        # Gemm keeps weights as (out, in): one scale a row, each the row's own range.
        assert scales.shape == (len(original),)
        assert len(np.unique(scales)) > len(scales) / 2
        restored = weight.astype(np.float32) * scales[:, None]
        assert (np.abs(restored - original) <= 0.51 * scales[:, None]).all()
    assert quantized == 1 + 4 * 4  # the patch embedding, and four layers of each block


def test_pixels_go_in_as_they_are(int8: Path) -> None:
    graph = onnx.load(str(int8)).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    (patch,) = (
        node
        for node in graph.node
        if node.op_type == "Gemm" and "patch" in made_by.get(node.input[1], node).input[0]
    )
    dequantize = made_by[patch.input[0]]
    quantize = made_by[dequantize.input[0]]
    for node in (quantize, dequantize):
        assert stored[node.input[1]] == 1
        assert stored[node.input[2]] == 0
        assert stored[node.input[2]].dtype == np.uint8


def test_an_image_is_answered_the_same_in_any_company(int8: Path, calibration: Pixels) -> None:
    runtime = OnnxRuntime(int8, device="cpu", num_threads=1)
    extremes = np.stack([np.zeros_like(calibration[0]), np.full_like(calibration[0], 255)])
    for number in range(4):
        image = calibration[number : number + 1]
        alone = runtime.run(image).logits
        among = runtime.run(np.concatenate([extremes, image, calibration])).logits[2:3]
        assert np.abs(alone - among).max() < 1e-5


def test_the_file_keeps_what_it_says_of_itself(source: Path, int8: Path) -> None:
    before, after = onnx.load(str(source)), onnx.load(str(int8))
    assert list(after.metadata_props) == list(before.metadata_props)
    assert {node.domain for node in after.graph.node} == {""}
    assert [entry.domain for entry in after.opset_import] == [""]
    assert after.graph.input == before.graph.input
    assert after.graph.output == before.graph.output


def test_the_layer_that_rounding_hurts_most_comes_first(
    calibration: Pixels, tmp_path: Path
) -> None:
    config = StudentConfig(size="pico", img_size=16, patch_size=8, num_classes=10)
    plain = graph_of(noise_student(config), tmp_path)
    expected = OnnxRuntime(plain, device="cpu").run(calibration).logits
    spoilt = graph_of(spoil_proj(noise_student(config)), tmp_path)
    actual = OnnxRuntime(spoilt, device="cpu").run(calibration).logits
    assert np.abs(actual - expected).max() < 1e-4, "the answer is another one in float32 too"
    ranked = rank_layers(spoilt, calibration)
    assert ranked[0] == "proj"
    assert sorted(ranked) == sorted(LAYERS)


def test_the_layer_that_costs_accuracy_stays_float32(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []

    def judge_noted(name: str, labels: Any, *arguments: Any, **limits: Any) -> Gate:
        judged.append(len(labels))
        return judge(name, labels, *arguments, **limits)

    monkeypatch.setattr(bundle_writer, "judge", judge_noted)
    model, card = fitted_student(digits)
    run = save_student(tmp_path / "run", spoil_proj(model), card)
    assert export(run, tmp_path / "bundle", digits, "--variants", "int8") == 0
    bundle = open_bundle(tmp_path / "bundle")
    entry = bundle.manifest["artefacts"]["int8"]
    assert entry["float32_layers"] == ["proj"]
    assert bundle.manifest["refused"] == {}
    # Two forms are tried on training images, and those it is judged on see the one that is chosen.
    assert judged == [NUM_TRIAL, NUM_TRIAL, entry["gate"]["overall"]["num_images"]]
    for name, (weight, _) in layer_weights(bundle.artefact("int8").path).items():
        layer = name.split(".")[-2]
        assert (weight.dtype == np.int8) == (layer in LAYERS and layer != "proj"), name


def test_a_broken_int8_is_left_out_and_everyone_told(
    fitted_run: Path,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(
        source: Path, target: Path, calibration: Pixels, *, keep_float: Collection[str] = ()
    ) -> None:
        quantize_int8(source, target, calibration, keep_float=keep_float)
        graph = onnx.load(str(target))
        (scale,) = (t for t in graph.graph.initializer if t.name == "patch.weight_scale")
        scale.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(scale), scale.name))
        onnx.save(graph, str(target))

    monkeypatch.setattr(bundle_writer, "quantize_int8", broken)
    monkeypatch.setattr(bundle_writer, "rank_layers", lambda *_: ["fc2", "fc1", "proj"])
    assert export(fitted_run, tmp_path / "bundle", digits, "--variants", "int8") == 3
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("export: int8 was not written: int8: loses ")
    assert "points overall (96." in captured.err
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.variants == ["float32"]
    reason = bundle.manifest["refused"]["int8"]
    assert reason in captured.err
    assert reason in (bundle.path / "README.md").read_text(encoding="utf-8")
    assert f"int8         refused at export: {reason}" in captured.out
    assert not list(bundle.path.glob("*int8*"))


def test_too_few_images_vouch_for_nothing_and_cost_no_work(
    fitted_run: Path,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bundle_writer, "quantize_int8", lambda *_, **__: pytest.fail("quantized"))
    options = ["--variants", "int8", "--max-images", "20"]
    assert export(fitted_run, tmp_path / "bundle", digits, *options) == 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "20 images are too few to tell a loss of 0.3 points, which takes 334" in err
    metrics = json.loads((tmp_path / "bundle" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["num_images"] == 20
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.variants == ["float32"]
    assert bundle.manifest["refused"]["int8"] in (bundle.path / "README.md").read_text("utf-8")
