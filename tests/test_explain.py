"""Where both experts looked, from the variant `explain`."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deitlt import load
from deitlt.classifier import Classifier
from deitlt.errors import BundleError, UsageError
from deitlt.prediction import Options
from deitlt.preprocess import Pixels, PreprocessSpec
from deitlt.runtimes import OnnxRuntime, Outputs
from deitlt.student import DeiTLT, StudentConfig
from export.fuse import FusedStudent
from export.parity import PlainStudent, check_rollouts
from export.to_onnx import export_onnx
from tests.export_support import card_of, noise_student, photo_pixels

SIDE, PATCH = 24, 4
GRID = SIDE // PATCH
SPEC = PreprocessSpec(SIDE)
CONFIG = StudentConfig(size="pico", img_size=SIDE, patch_size=PATCH, num_classes=10)


@pytest.fixture(scope="module")
def model() -> DeiTLT:
    return noise_student(CONFIG)


@pytest.fixture(scope="module")
def images() -> Pixels:
    return photo_pixels(5, SPEC)


@torch.no_grad()
def rollouts(model: DeiTLT, images: Pixels) -> NDArray[np.float32]:
    fused = FusedStudent(model, SPEC, explain=True)
    return torch.stack(fused(torch.from_numpy(images))[-2:], dim=1).numpy()


def test_the_fused_rollouts_are_the_plain_ones(model: DeiTLT, images: Pixels) -> None:
    plain = PlainStudent(model, card_of(model, SPEC)).rollouts(images)
    assert plain.shape == (5, 2, GRID, GRID)
    assert plain.std(axis=(2, 3)).min() > 0, "a constant map proves little"
    assert np.abs(plain[:, 0] - plain[:, 1]).max() > 1e-4, "equal experts prove little"
    np.testing.assert_allclose(rollouts(model, images), plain, rtol=1e-4)


def test_uniform_attention_reaches_every_patch_alike(images: Pixels) -> None:
    """By hand: the product of L times (I + U) / 2 is I / 2^L + (1 - 1 / 2^L) U, as U U = U."""
    model = noise_student(CONFIG)
    for block in model.blocks:
        block.attn.qkv.weight.data[: 2 * model.embed_dim] = 0
        block.attn.qkv.bias.data[: 2 * model.embed_dim] = 0
    num_blocks, num_tokens = len(model.blocks), 2 + GRID**2
    expected = (1 - 0.5**num_blocks) / num_tokens
    np.testing.assert_allclose(rollouts(model, images), expected, rtol=1e-5)
    plain = PlainStudent(model, card_of(model, SPEC)).rollouts(images)
    np.testing.assert_allclose(plain, expected, rtol=1e-5)


def test_the_graph_gives_them_in_any_batch(model: DeiTLT, images: Pixels, tmp_path: Path) -> None:
    fused = FusedStudent(model, SPEC, explain=True)
    export_onnx(fused, card_of(model, SPEC), tmp_path / "model.onnx")
    runtime = OnnxRuntime(tmp_path / "model.onnx", device="cpu", num_threads=1)
    plain = PlainStudent(model, card_of(model, SPEC))
    expected = plain.rollouts(images)
    for size in (1, 2, 5):
        outputs = runtime.run(images[:size])
        assert list(outputs.rollouts()) == ["cls_rollout", "distillation_rollout"]
        actual = np.stack(list(outputs.rollouts().values()), axis=1)
        np.testing.assert_allclose(actual, expected[:size], rtol=1e-4)
        np.testing.assert_allclose(outputs.logits, plain.run(images[:size]).logits, atol=1e-4)
    check_rollouts("it", runtime, images, expected)

    class Swapped:
        provider = "it"

        def run(self, pixels: Pixels) -> Outputs:
            outputs = runtime.run(pixels)
            return outputs._replace(
                cls_rollout=outputs.distillation_rollout, distillation_rollout=outputs.cls_rollout
            )

    with pytest.raises(BundleError, match="its rollouts differ from torch's by"):
        check_rollouts("it", Swapped(), images, expected)


def test_a_classifier_gives_them_on_request(whole_bundle: Path, digits: Path) -> None:
    explaining = load(whole_bundle, variant="explain", device="cpu", num_threads=1)
    image = next((digits / "test").rglob("*.png"))
    options = Options(rollouts=True)
    prediction = explaining.predict_one(image, options)
    raw = explaining.runtime.run(explaining.load_pixels(image)[None])
    assert prediction.rollouts == {name: maps[0].tolist() for name, maps in raw.rollouts().items()}
    assert "rollouts" in prediction.to_dict()
    plain = explaining.predict_one(image)
    assert plain.rollouts is None
    assert replace(prediction, rollouts=None) == plain
    assert "rollouts" not in plain.to_dict()


def test_another_variant_says_what_to_do(classifier: Classifier) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(UsageError, match="export and use the variant explain"):
        classifier.predict_one(image, Options(rollouts=True))
