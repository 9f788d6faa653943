"""What tests of the export share: students that are ready at once, and one-line complaints.

The transformer's weights are noise and only the heads are fitted, by least squares: that takes a
second and reads digits at 96 %, so its answers have margins like those of a trained student.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from deitlt.bundle import EXPLAIN, FLOAT32, MANIFEST, write_bundle
from deitlt.labelled import read_labelled
from deitlt.preprocess import Pixels, PreprocessSpec, load_batches, normalise, resize_crop
from deitlt.run_splits import FILES_HASH
from deitlt.student import DeiTLT, StudentConfig
from deitlt.weights import Card, save_weights
from export import to_bundle
from export.fuse import FusedStudent
from export.to_onnx import export_onnx
from tests.bundle_support import DIGITS
from tests.official_support import student_tensors

IMG_SIZE = 16
RIDGE = 1.0
STUDENT = "student.safetensors"
GRAPH = "model.explain.onnx"


def noise_student(config: StudentConfig) -> DeiTLT:
    """A student whose every weight is noise that matters, in eval mode."""
    model = DeiTLT(config)
    model.load_state_dict(student_tensors(config))
    model.eval()
    return model


def card_of(model: DeiTLT, preprocess: PreprocessSpec, **fields: Any) -> Card:
    """A card that fits the model: classes `c0`, `c1` ... in a long tail."""
    num_classes = model.config.num_classes
    facts = {
        "kind": "student",
        "architecture": model.architecture(),
        "classes": [f"c{i}" for i in range(num_classes)],
        "train_counts": [num_classes + 10 - i for i in range(num_classes)],
        "train_files_sha256": f"{FILES_HASH}0",
        "preprocess": preprocess,
        "recipe": {"name": "test"},
        "epoch": 1,
    }
    return Card(**{**facts, **fields})


def photo_tiles(count: int, seed: int = 0) -> list[Image.Image]:
    """Pieces of scikit-learn's two colour photographs, of many sizes."""
    photos = load_sample_images().images
    generator = np.random.default_rng(seed)
    tiles = []
    for number in range(count):
        photo = photos[number % len(photos)]
        height, width = generator.integers(20, 400, 2)
        top = generator.integers(photo.shape[0] - height)
        left = generator.integers(photo.shape[1] - width)
        tiles.append(Image.fromarray(photo[top : top + height, left : left + width]))
    return tiles


def photo_pixels(count: int, preprocess: PreprocessSpec) -> Pixels:
    """Those pieces as a model's input, `(count, S, S, 3)`."""
    return np.stack([resize_crop(tile, preprocess) for tile in photo_tiles(count)])


def pixels_of(folder: Path, split: str, preprocess: PreprocessSpec) -> tuple[Pixels, Any]:
    """Preprocessed images of a split and their labels."""
    images = read_labelled(folder)[split]
    return np.concatenate(list(load_batches(images.paths, preprocess, 128))), images.labels


def fitted_student(digits: Path) -> tuple[DeiTLT, Card]:
    """A student that reads the digits in `digits`."""
    spec = PreprocessSpec(IMG_SIZE)
    model = noise_student(
        StudentConfig(size="nano", img_size=IMG_SIZE, patch_size=8, num_classes=10)
    )
    fit_heads(model, digits, spec)
    names = [str(digit) for digit in range(10)]
    return model, card_of(model, spec, classes=names, train_counts=[130] * 10)


@torch.no_grad()
def fit_heads(model: DeiTLT, digits: Path, spec: PreprocessSpec) -> None:
    """Fit both heads to the training digits as the rest of the model stands."""
    pixels, labels = pixels_of(digits, "train", spec)
    tokens = model.tokens(torch.from_numpy(normalise(pixels, spec)))
    wanted = 2 * np.eye(10)[labels] - 1
    for head, features in ((model.head, tokens[:, 0]), (model.head_dist, tokens[:, 1])):
        _fit(head, features.numpy(), wanted)


def _fit(head: nn.Linear, features: Any, wanted: Any) -> None:
    rows = np.column_stack([features, np.ones(len(features))]).astype(np.float64)
    # Normed features are collinear: without a ridge the weights, and rounding with them, are huge.
    square = rows.T @ rows + RIDGE * np.eye(rows.shape[1])
    solution = torch.from_numpy(np.linalg.solve(square, rows.T @ wanted)).float()
    head.weight.copy_(solution[:-1].T)
    head.bias.copy_(solution[-1])


def save_student(folder: Path, model: DeiTLT, card: Card) -> Path:
    """Write `student.safetensors` into a folder, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / STUDENT, model, card)
    return folder


def write_explaining(folder: Path) -> Path:
    """The digits bundle with a variant explain; returns its folder.

    The variant is of another student, with noise for weights, so that no answer of the one can be
    taken for one of the other.
    """
    source = DIGITS
    manifest = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
    spec = PreprocessSpec.from_dict(manifest["preprocess"])
    config = StudentConfig(**{**manifest["architecture"], "size": "nano"})
    model = noise_student(config)

    def fill(new: Path) -> dict[str, Any]:
        for file in manifest["files"]:
            shutil.copy(source / file, new)
        fused = FusedStudent(model, spec, explain=True)
        export_onnx(fused, card_of(model, spec), new / GRAPH)
        artefact = {**manifest["artefacts"][FLOAT32], "file": GRAPH}
        artefacts = {**manifest["artefacts"], EXPLAIN: artefact}
        kept = {"schema_version", "files", "sha256"}
        fields = {name: value for name, value in manifest.items() if name not in kept}
        return {**fields, "artefacts": artefacts}

    return write_bundle(folder, fill).path


def export(run: Path, output: Path, data: Path, *options: str) -> int:
    """Exit status of `python -m export.to_bundle`."""
    where = ["--output", str(output), "--data", str(data)]
    return to_bundle.main([str(run), *where, *options])
