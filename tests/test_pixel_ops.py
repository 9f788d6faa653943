"""Colour and sharpness operations: every level must be Pillow's, through timm's own functions."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from training.augmentation.crops import Pixels
from training.augmentation.operations import Op
from training.augmentation.pixel_ops import apply_operations, box_weights, histogram
from training.augmentation.report import COLOUR, STRENGTHS, photographs, to_tensor


@pytest.fixture(scope="module")
def images() -> Pixels:
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    flat = np.full((1, 40, 40, 3), 77, dtype=np.uint8)
    two_levels = np.where(noise[:1] < 90, 10, 200).astype(np.uint8)
    black = np.zeros((1, 40, 40, 3), dtype=np.uint8)
    return np.concatenate([photographs(3, 40, 40), noise, flat, two_levels, black])


@pytest.mark.parametrize("op", COLOUR, ids=lambda op: op.name.lower())
def test_an_operation_is_pillows_at_every_strength(op: Op, images: Pixels) -> None:
    generator = np.random.default_rng(1)
    strengths = STRENGTHS.get(op, (0.0,))
    between = generator.uniform(min(strengths), max(strengths), 4)
    if op in (Op.POSTERIZE, Op.SOLARIZE_ADD):
        between = np.rint(between)
    for strength in (*strengths, *between):
        made = apply_operations(
            to_tensor(images), np.full(len(images), op, np.int8), np.full(len(images), strength)
        )
        wanted = [np.asarray(COLOUR[op](Image.fromarray(i), float(strength))) for i in images]
        assert torch.equal(made, to_tensor(np.stack(wanted))), f"{op.name} {strength}"


def test_every_image_gets_its_own_operation(images: Pixels) -> None:
    generator = np.random.default_rng(2)
    codes = np.array([*COLOUR, Op.IDENTITY, Op.ROTATE], dtype=np.int8)
    many = images[generator.integers(0, len(images), len(codes))]
    args = np.array([generator.choice(STRENGTHS.get(Op(code), (0.0,))) for code in codes])
    made = apply_operations(to_tensor(many), codes, args)
    for i, (code, argument) in enumerate(zip(codes, args, strict=True)):
        wanted = Image.fromarray(many[i])
        if code in COLOUR:
            wanted = COLOUR[Op(code)](wanted, float(argument))
        assert torch.equal(made[i], to_tensor(np.asarray(wanted)[None])[0]), Op(code).name


def test_strong_blur_is_pillows() -> None:
    image = photographs(1, 50, 50)
    for sigma in (3.0, 7.5):
        made = apply_operations(to_tensor(image), np.array([Op.BLUR], np.int8), np.array([sigma]))
        wanted = Image.fromarray(image[0]).filter(ImageFilter.GaussianBlur(sigma))
        assert torch.equal(made, to_tensor(np.asarray(wanted)[None]))


def test_box_weights_sum_to_one() -> None:
    total = box_weights(np.array([0.1, 1.0, 2.0])).sum(axis=1) / (1 << 24)
    assert np.allclose(total, 1, atol=1e-6)


def test_histogram_counts_like_numpy(images: Pixels) -> None:
    counts = histogram(to_tensor(images))
    for i, image in enumerate(images):
        for channel in range(3):
            wanted = np.bincount(image[..., channel].ravel(), minlength=256)
            assert np.array_equal(counts[i, channel].numpy(), wanted)
