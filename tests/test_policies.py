"""Policies: operations, arguments and frequencies against timm's and torchvision's own."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import LEVEL_TO_ARG, rand_augment_transform
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, ColorJitter
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.functional import InterpolationMode

from deitlt.errors import UsageError
from training.augmentation.operations import Op
from training.augmentation.policies import (
    AUTO_AUGMENT_CIFAR10,
    RAND_AUGMENT_OPS,
    AutoAugmentCifar10,
    GaussianBlur,
    Grayscale,
    RandAugment,
    ThreeAugment,
    auto_augment_args,
    rand_augment_args,
)
from training.augmentation.policies import ColorJitter as OurColorJitter
from training.augmentation.report import ks_statistic, one_operation, photographs

# Two equal distributions of 2000 draws each are further apart once in ten thousand times.
KS_LIMIT = 2.23 * np.sqrt(2 / 2000)


@pytest.mark.parametrize("increasing", [False, True])
def test_rand_augment_has_timms_operations_and_arguments(increasing: bool) -> None:
    policy = rand_augment_transform(f"rand-m9-inc{int(increasing)}", {"translate_const": 43})
    names = [operation.name for operation in policy.ops]
    ours = [op.name.replace("_", "") for op in RAND_AUGMENT_OPS]
    theirs = [name.removesuffix("Increasing").removesuffix("Rel").upper() for name in names]
    assert ours == theirs
    for level in (0.0, 0.7, 4.95, 8.99, 9.0, 10.0):
        for op, name in zip(RAND_AUGMENT_OPS, names, strict=True):
            if LEVEL_TO_ARG[name] is None:
                continue
            scale = 96 if name.startswith("Translate") else 1
            wanted = {scale * LEVEL_TO_ARG[name](level, {})[0] for _ in range(40)}
            code = np.full(2, op, dtype=np.int8)
            args = rand_augment_args(code, np.full(2, level), np.array([-1.0, 1.0]), 96, increasing)
            assert sorted(set(args)) == pytest.approx(sorted(wanted))


def test_levels_are_clipped_like_timms() -> None:
    codes = np.full(3, Op.ROTATE, dtype=np.int8)
    args = rand_augment_args(codes, np.array([-1.0, 5.0, 12.0]), np.ones(3), 96, True)
    assert args.tolist() == [0, 15, 30]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("rand-m9-mstd0.5-inc1", RandAugment(9, 2, 0.5, 0.5, True)),
        ("rand-n2-m10-mstd0.5", RandAugment(10, 2, 0.5, 0.5, False)),
        ("rand-m7-n3-p0.8-mstd101-inc1", RandAugment(7, 3, 0.8, 101, True)),
        ("rand-mstdinf", RandAugment(10, 2, 0.5, float("inf"), False)),
    ],
)
def test_timms_policy_strings_are_read(text: str, wanted: RandAugment) -> None:
    assert RandAugment.parse(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "augmix-m3", "rand-m9-tweights", "rand-mmax10", "rand-m", "rand-p2", "rand-n1.5"]
)
def test_other_policy_strings_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="not supported: write rand-m9") as caught:
        RandAugment.parse(text)
    assert "\n" not in str(caught.value)


def test_rand_augment_draws_each_operation_equally_often_in_each_place() -> None:
    codes, args = RandAugment(9, 3, 0.4, 0.5, True).draw(np.random.default_rng(0), 20_000, 96)
    assert codes.shape == args.shape == (20_000, 3)
    for column in codes.T:
        counts = np.bincount(column, minlength=19)[list(RAND_AUGMENT_OPS)]
        assert np.abs(counts / 20_000 - 0.4 / 15).max() < 0.006
        assert abs((column == Op.IDENTITY).mean() - 0.6) < 0.02
    degrees = args[codes == Op.ROTATE]
    assert abs((degrees > 0).mean() - 0.5) < 0.06
    wanted = np.clip(np.random.default_rng(1).normal(9, 0.5, 2000), 0, 10) * 3
    assert ks_statistic(np.abs(degrees), wanted) < KS_LIMIT


def test_infinite_deviation_is_a_uniform_level() -> None:
    codes, args = RandAugment.parse("rand-m8-mstd101-p1").draw(np.random.default_rng(0), 9000, 96)
    degrees = np.abs(args[codes == Op.ROTATE])
    assert ks_statistic(degrees, np.random.default_rng(1).uniform(0, 24, 2000)) < 0.08


def test_the_autoaugment_table_is_torchvisions() -> None:
    def named(operation: tuple[str, float, int | None]) -> tuple[Op, float, int]:
        name, probability, level = operation
        spelled = {"ShearX": "SHEAR_X", "ShearY": "SHEAR_Y"}.get(name, name.upper())
        spelled = spelled.replace("TRANSLATEX", "TRANSLATE_X").replace("TRANSLATEY", "TRANSLATE_Y")
        return Op[spelled], probability, level or 0

    table = AutoAugment(AutoAugmentPolicy.CIFAR10).policies
    assert tuple((named(a), named(b)) for a, b in table) == AUTO_AUGMENT_CIFAR10


@pytest.mark.parametrize(
    ("name", "op"),
    [
        *[("Posterize", Op.POSTERIZE), ("Solarize", Op.SOLARIZE), ("Color", Op.COLOR)],
        *[("Rotate", Op.ROTATE), ("Sharpness", Op.SHARPNESS), ("Contrast", Op.CONTRAST)],
        *[("ShearX", Op.SHEAR_X), ("ShearY", Op.SHEAR_Y), ("Brightness", Op.BRIGHTNESS)],
        *[("TranslateX", Op.TRANSLATE_X), ("TranslateY", Op.TRANSLATE_Y)],
    ],
)
def test_autoaugment_arguments_do_what_torchvisions_do(name: str, op: Op) -> None:
    image = Image.fromarray(photographs(1, 32, 32)[0])
    space: dict[str, Any] = AutoAugment()._augmentation_space(10, (32, 32))
    magnitudes, signed = space[name]
    fill = [128.0, 128.0, 128.0]
    for level in (0, 3, 7, 9):
        magnitude = float(magnitudes[level])
        bicubic = InterpolationMode.BICUBIC
        wanted = [
            np.asarray(_apply_op(image, name, sign * magnitude, bicubic, fill)).astype(int)
            for sign in ((1, -1) if signed else (1,))
        ]
        code = np.full(1, op, dtype=np.int8)
        for sign in (1.0, -1.0):
            args = auto_augment_args(code, np.full(1, float(level)), np.full(1, sign), 32)
            made = np.asarray(one_operation(image, op, float(args[0]), (128, 128, 128)))
            # Either sign is drawn equally often, so it does not matter which is which.
            assert min(np.abs(made - other).mean() for other in wanted) < 0.1


def test_autoaugment_draws_pairs_with_their_probabilities() -> None:
    codes, _ = AutoAugmentCifar10().draw(np.random.default_rng(0), 50_000, 32)
    wanted = np.zeros((2, 19))
    for pair in AUTO_AUGMENT_CIFAR10:
        for place, (op, probability, _) in enumerate(pair):
            wanted[place, op] += probability / len(AUTO_AUGMENT_CIFAR10)
    for place in range(2):
        counts = np.bincount(codes[:, place], minlength=19) / len(codes)
        assert np.abs(counts - wanted[place])[1:].max() < 0.006


def test_colour_jitter_is_drawn_like_torchvisions() -> None:
    codes, args = OurColorJitter(0.4, 0.3, 1.2, 0.1).draw(np.random.default_rng(0), 2000, 32)
    jitter = ColorJitter(0.4, 0.3, 1.2, 0.1)
    torch.manual_seed(0)
    ranges = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    drawn = [ColorJitter.get_params(*ranges) for _ in range(2000)]
    ops = (Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.HUE)
    for component, op in enumerate(ops):
        theirs = np.array([parameters[1 + component] for parameters in drawn])
        assert ks_statistic(args[codes == op], theirs) < KS_LIMIT
        first = np.mean([parameters[0][0] == component for parameters in drawn])
        assert abs((codes[:, 0] == op).mean() - first) < 0.06
    assert all(sorted(row) == sorted(ops) for row in codes.tolist())


def test_colour_jitter_leaves_out_what_has_no_strength() -> None:
    codes, args = OurColorJitter(0.4, 0, 0.4, probability=0.8).draw(
        np.random.default_rng(0), 5000, 32
    )
    assert codes.shape == args.shape == (5000, 2)
    untouched = (codes == Op.IDENTITY).all(axis=1)
    assert abs(untouched.mean() - 0.2) < 0.025
    assert {tuple(sorted(row)) for row in codes[~untouched].tolist()} == {(Op.COLOR, Op.BRIGHTNESS)}


def test_blur_and_grey_are_drawn_with_their_probability() -> None:
    codes, args = GaussianBlur(0.3, (0.5, 1.5)).draw(np.random.default_rng(0), 5000, 32)
    assert abs((codes == Op.BLUR).mean() - 0.3) < 0.03
    assert 0.5 <= args.min() < 0.51 < 1.49 < args.max() <= 1.5
    codes, _ = Grayscale(0.2).draw(np.random.default_rng(0), 5000, 32)
    assert abs((codes == Op.GRAYSCALE).mean() - 0.2) < 0.03


def test_three_augment_is_exactly_one_of_three() -> None:
    codes, args = ThreeAugment().draw(np.random.default_rng(0), 6000, 32)
    for op in (Op.GRAYSCALE, Op.SOLARIZE, Op.BLUR):
        assert abs((codes == op).mean() - 1 / 3) < 0.03
    assert set(args[codes == Op.SOLARIZE]) == {128.0}


def test_wrong_jitter_is_refused() -> None:
    with pytest.raises(UsageError):
        OurColorJitter(0.4, 0.4, 0.4, 0.6)
