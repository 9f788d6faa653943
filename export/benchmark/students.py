"""The students that are measured, the images they see, and how right each row is.

Legend: `B` images, `S` image side, `C` classes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from deitlt.errors import DataError, UsageError
from deitlt.labelled import read_labelled
from deitlt.longtail import IntArray, exponential_counts
from deitlt.metrics import report
from deitlt.preprocess import Pixels, PreprocessSpec, load_batches, normalise
from deitlt.runtimes import Logits
from deitlt.student import DeiTLT, StudentConfig, load_student
from deitlt.weights import Card
from export.benchmark.runners import Images, Runner
from export.parity import PlainStudent
from export.verification_data import (
    calibration_pixels,
    judged_images,
    spread,
    training_images,
)

SEED = 0
# An exporter drops biases that are zero, as a fresh student's are; a trained one has none such.
NOISE = 0.02
NUM_MADE_UP = 64
NUM_CALIBRATION = 32


@dataclass(frozen=True)
class Student:
    """A student and what it is tried on.

    Attributes:
        name: for people.
        model: in eval mode, on the CPU.
        card: of its weight file.
        pixels: `(B, S, S, 3)` images.
        labels: their classes, `(B,)`; None where the student does not know them.
        calibration: pixels for int8.
        images: what the images are, for people.
        expected: PyTorch's averaged logits of them, `(B, C)`.
    """

    name: str
    model: DeiTLT
    card: Card
    pixels: Pixels
    labels: IntArray | None
    calibration: Pixels
    images: str
    expected: Logits

    def normalised(self) -> Images:
        """The images as the un-fused model takes them, `(B, 3, S, S)` float32."""
        return normalise(self.pixels, self.card.preprocess)


@dataclass(frozen=True)
class Rightness:
    """How right a row is; shares in [0, 1].

    Attributes:
        same_top1: images with the top-1 class that PyTorch gives.
        overall: images with the right class; None without labels.
        tail: mean recall of the tail classes; None without labels or tail images.
    """

    same_top1: float
    overall: float | None = None
    tail: float | None = None


def trained(checkpoint: Path, data: Path | None, max_images: int) -> Student:
    """A trained student, on labelled images if there are any.

    Raises:
        DeitLTError: one of its kinds.
    """
    model, card = load_student(checkpoint)
    name = f"{checkpoint}: {describe(model.config)}"
    if data is None:
        return _on_made_up_images(name, model, card)
    split, images = judged_images(data, card, None, max_images)
    pixels = np.concatenate(list(load_batches(images.paths, card.preprocess, 32)))
    try:
        training = training_images(data, None, card)
        calibration = calibration_pixels(training, card.preprocess)
    except DataError:
        calibration = pixels  # only the accuracy of int8 depends on it, and that is then flattered
        split += ", int8 calibrated on them"
    what = f"{len(pixels)} labelled images of {data} ({split})"
    expected = _torch_says(model, card, pixels)
    return Student(name, model, card, pixels, images.labels, calibration, what, expected)


def untrained(config: StudentConfig, data: Path | None, max_images: int) -> Student:
    """A student with random weights, none of them zero, on real images if there are any.

    Raises:
        DeitLTError: one of its kinds.
        UsageError: the patches do not divide the image.
    """
    if config.img_size % config.patch_size:
        raise UsageError(
            f"--img-size {config.img_size} is not a multiple of --patch-size {config.patch_size}"
        )
    generator = torch.Generator().manual_seed(SEED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = DeiTLT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(NOISE * torch.randn(parameter.shape, generator=generator))
    card = Card(
        kind="student",
        architecture=model.architecture(),
        classes=[str(number) for number in range(config.num_classes)],
        train_counts=exponential_counts(500, config.num_classes, 100).tolist(),
        train_files_sha256="",
        preprocess=PreprocessSpec(config.img_size),
        recipe={},
        epoch=0,
    )
    name = f"{describe(config)}, random weights"
    if data is None:
        return _on_made_up_images(name, model, card)
    paths = [path for split in read_labelled(data).values() for path in split.paths]
    chosen = [paths[index] for index in spread(len(paths), max_images)]
    pixels = np.concatenate(list(load_batches(chosen, card.preprocess, 32)))
    what = f"{len(pixels)} images of {data}"
    expected = _torch_says(model, card, pixels)
    return Student(name, model, card, pixels, None, pixels, what, expected)


def describe(config: StudentConfig) -> str:
    """A student's shape for people."""
    return (
        f"{config.size}, {config.img_size} px, patch {config.patch_size}, "
        f"{config.num_classes} classes"
    )


def made_up_images(number: int, side: int, seed: int) -> Pixels:
    """Coarse noise under fine noise, `(B, S, S, 3)`: no two alike, and not all grey on average."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 200, (number, 4, 4, 3))
    repeat = -(-side // 4)
    blocks = coarse.repeat(repeat, axis=1).repeat(repeat, axis=2)[:, :side, :side]
    fine = generator.integers(0, 56, (number, side, side, 3))
    return (blocks + fine).astype(np.uint8)


def batches(images: Images, batch_size: int) -> list[Images]:
    """Batches of one size; the last is filled up with images from the start."""
    count = -(-len(images) // batch_size)
    filled = np.resize(images, (count * batch_size, *images.shape[1:]))
    return [np.ascontiguousarray(part) for part in np.split(filled, count)]


def judge(student: Student, runner: Runner, images: Images, batch_size: int) -> Rightness:
    """Run all images through a row in batches of one size."""
    parts = [runner.logits(runner.prepare(batch)()).copy() for batch in batches(images, batch_size)]
    logits = np.concatenate(parts)[: len(images)]
    same = float((logits.argmax(axis=1) == student.expected.argmax(axis=1)).mean())
    if student.labels is None:
        return Rightness(same)
    found = report(student.labels, logits, student.card.train_counts)
    return Rightness(same, found.overall.value, found.groups["tail"].value)


def _on_made_up_images(name: str, model: DeiTLT, card: Card) -> Student:
    side = card.preprocess.img_size
    pixels = made_up_images(NUM_MADE_UP, side, seed=1)
    calibration = made_up_images(NUM_CALIBRATION, side, seed=2)
    what = f"{len(pixels)} made-up images"
    expected = _torch_says(model, card, pixels)
    return Student(name, model, card, pixels, None, calibration, what, expected)


def _torch_says(model: DeiTLT, card: Card, pixels: Pixels) -> Logits:
    plain = PlainStudent(model, card)
    parts = [plain.run(pixels[start : start + 32]).logits for start in range(0, len(pixels), 32)]
    return np.concatenate(parts)
