"""The features in every kind of graph: timm's own, float32, and through to a prediction."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from deitlt.bundle import FEATURES, open_bundle
from deitlt.classifier import Classifier
from deitlt.prediction import Options
from deitlt.preprocess import normalise, resize_crop
from deitlt.runtimes import OnnxRuntime, Runtime
from deitlt.student import StudentConfig
from deitlt.torch_runtime import TorchRuntime
from export.variants import VARIANTS
from tests.bundle_support import DIGITS
from tests.export_support import card_of, noise_student, photo_pixels, photo_tiles

SPEC = open_bundle(DIGITS).preprocess
MODEL = noise_student(
    StudentConfig(size="pico", img_size=SPEC.img_size, patch_size=8, num_classes=10)
)
CARD = card_of(MODEL, SPEC)
PIXELS = photo_pixels(12, SPEC)


def write(variant: str, folder: Path) -> Runtime:
    """A form of the model, opened."""
    from deitlt.bundle import Artefact
    from export.quantize import quantize_int8

    entry, path = VARIANTS[variant], folder / VARIANTS[variant].file
    if entry.write is None:
        quantize_int8(write_float32(folder), path, PIXELS)
    else:
        entry.write(MODEL, CARD, "matmul", path)
    if entry.format == "onnx":
        return OnnxRuntime(path, device="cpu", num_threads=1, preprocess=SPEC)
    return TorchRuntime(Artefact(variant, path, entry.format, "float32", 0.0), device="cpu")


def write_float32(folder: Path) -> Path:
    path, writer = folder / "model.onnx", VARIANTS["float32"].write
    assert writer is not None
    writer(MODEL, CARD, "matmul", path)
    return path


@pytest.mark.parametrize(
    ("variant", "limit"),
    [
        ("float32", 1e-4),
        ("nchw", 1e-4),
        ("torchscript", 1e-4),
        ("pt2", 1e-4),
        ("fp16", 0.02),
        ("int8", 0.3),
    ],
)
@torch.no_grad()
def test_features_are_those_of_timm(variant: str, limit: float, tmp_path: Path) -> None:
    tokens = MODEL.forward_features(torch.from_numpy(normalise(PIXELS, SPEC))).numpy()
    found = write(variant, tmp_path).run(PIXELS).features()
    assert list(found) == list(FEATURES)
    for number, features in enumerate(found.values()):
        assert features.dtype == np.float32
        assert features.shape == (12, 64)
        assert np.abs(features - tokens[:, number]).max() < limit
        # Of the one token and not of the other, even in int8.
        assert np.abs(features - tokens[:, 1 - number]).max() > 2 * limit


def test_the_average_alone_has_no_features(tmp_path: Path) -> None:
    assert write("average", tmp_path).run(PIXELS).features() == {}


def test_a_prediction_holds_them_if_asked(tmp_path: Path) -> None:
    runtime = write("float32", tmp_path)
    classifier = Classifier(open_bundle(DIGITS), runtime)
    tiles = photo_tiles(3)
    inputs = np.stack([resize_crop(tile, SPEC) for tile in tiles])
    expected = [runtime.run(image[None]).features() for image in inputs]
    ways: list[Callable[[Options], list[object]]] = [
        lambda options: list(classifier.predict_each(tiles, options)),
        lambda options: list(classifier.predict_iter(tiles, options, num_workers=0)),
    ]
    for way in ways:
        for prediction, features in zip(way(Options(embeddings=True)), expected, strict=True):
            found = prediction.to_dict()["embeddings"]  # type: ignore[attr-defined]
            assert list(found) == list(FEATURES)
            for name in FEATURES:
                np.testing.assert_allclose(found[name], features[name][0], rtol=0, atol=1e-5)
        assert all("embeddings" not in p.to_dict() for p in way(Options()))  # type: ignore[attr-defined]
