"""Random choices of operations: RandAugment, AutoAugment, 3-Augment, colour jitter.

Legend: `B` images, `S` image side, `K` operations that a policy adds to each image, in order.

A policy's `draw` returns operation codes `(B, K)` and their arguments `(B, K)`, drawn for all
images at once from one generator; a view concatenates its policies' columns.
"""

import re
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deitlt.errors import UsageError
from training.augmentation.operations import Codes, Floats, Op

Drawn = tuple[Codes, Floats]

# timm's list, and its order; "increasing" and plain variants differ in the arguments alone.
RAND_AUGMENT_OPS = (
    *(Op.AUTOCONTRAST, Op.EQUALIZE, Op.INVERT, Op.ROTATE, Op.POSTERIZE, Op.SOLARIZE),
    *(Op.SOLARIZE_ADD, Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS, Op.SHEAR_X, Op.SHEAR_Y),
    *(Op.TRANSLATE_X, Op.TRANSLATE_Y),
)
ENHANCE = (Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS)
MAX_LEVEL = 10.0
# A larger magnitude deviation means uniform magnitudes to timm.
UNIFORM_STD = 100.0

# (operation, probability, level) twice a row: Cubuk et al., "AutoAugment" (2019), CIFAR-10.
AUTO_AUGMENT_CIFAR10 = (
    ((Op.INVERT, 0.1, 0), (Op.CONTRAST, 0.2, 6)),
    ((Op.ROTATE, 0.7, 2), (Op.TRANSLATE_X, 0.3, 9)),
    ((Op.SHARPNESS, 0.8, 1), (Op.SHARPNESS, 0.9, 3)),
    ((Op.SHEAR_Y, 0.5, 8), (Op.TRANSLATE_Y, 0.7, 9)),
    ((Op.AUTOCONTRAST, 0.5, 0), (Op.EQUALIZE, 0.9, 0)),
    ((Op.SHEAR_Y, 0.2, 7), (Op.POSTERIZE, 0.3, 7)),
    ((Op.COLOR, 0.4, 3), (Op.BRIGHTNESS, 0.6, 7)),
    ((Op.SHARPNESS, 0.3, 9), (Op.BRIGHTNESS, 0.7, 9)),
    ((Op.EQUALIZE, 0.6, 0), (Op.EQUALIZE, 0.5, 0)),
    ((Op.CONTRAST, 0.6, 7), (Op.SHARPNESS, 0.6, 5)),
    ((Op.COLOR, 0.7, 7), (Op.TRANSLATE_X, 0.5, 8)),
    ((Op.EQUALIZE, 0.3, 0), (Op.AUTOCONTRAST, 0.4, 0)),
    ((Op.TRANSLATE_Y, 0.4, 3), (Op.SHARPNESS, 0.2, 6)),
    ((Op.BRIGHTNESS, 0.9, 6), (Op.COLOR, 0.2, 8)),
    ((Op.SOLARIZE, 0.5, 2), (Op.INVERT, 0.0, 0)),
    ((Op.EQUALIZE, 0.2, 0), (Op.AUTOCONTRAST, 0.6, 0)),
    ((Op.EQUALIZE, 0.2, 0), (Op.EQUALIZE, 0.6, 0)),
    ((Op.COLOR, 0.9, 9), (Op.EQUALIZE, 0.6, 0)),
    ((Op.AUTOCONTRAST, 0.8, 0), (Op.SOLARIZE, 0.2, 8)),
    ((Op.BRIGHTNESS, 0.1, 3), (Op.COLOR, 0.7, 0)),
    ((Op.SOLARIZE, 0.4, 5), (Op.AUTOCONTRAST, 0.9, 0)),
    ((Op.TRANSLATE_Y, 0.9, 9), (Op.TRANSLATE_Y, 0.7, 9)),
    ((Op.AUTOCONTRAST, 0.9, 0), (Op.SOLARIZE, 0.8, 3)),
    ((Op.EQUALIZE, 0.8, 0), (Op.INVERT, 0.1, 0)),
    ((Op.TRANSLATE_Y, 0.7, 9), (Op.AUTOCONTRAST, 0.9, 0)),
)


class Policy(Protocol):
    """Something that draws operations for images."""

    def draw(self, generator: np.random.Generator, num_images: int, side: int) -> Drawn:
        """Codes and arguments, both `(B, K)`, for images of side S."""
        ...


@dataclass(frozen=True)
class RandAugment:
    """timm's RandAugment: `num_ops` of 15 operations drawn with replacement, each then applied.

    Attributes:
        magnitude: level on the scale from 0 to 10.
        num_ops: operations drawn for each image.
        probability: with which a drawn operation is applied.
        magnitude_std: standard deviation of the level, which is clipped to [0, 10]; above 100 the
            level is uniform between 0 and `magnitude`.
        increasing: whether all operations grow stronger with the level.
    """

    magnitude: int = 10
    num_ops: int = 2
    probability: float = 0.5
    magnitude_std: float = 0.0
    increasing: bool = False

    @classmethod
    def parse(cls, text: str) -> "RandAugment":
        """The policy of one of timm's strings, such as `rand-m9-mstd0.5-inc1`.

        Raises:
            UsageError: not such a string, or with an option other than m, n, p, mstd and inc.
        """
        fields: dict[str, float] = {"m": 10, "n": 2, "p": 0.5, "mstd": 0, "inc": 0}
        name, *options = text.split("-")
        for option in options:
            match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?|inf)", option)
            if name == "rand" and match and match[1] in fields:
                fields[match[1]] = float(match[2])
                continue
            name = ""
        if name != "rand" or not fields["p"] <= 1 or fields["m"] % 1 or fields["n"] % 1:
            raise UsageError(
                f"augmentation policy {text!r} is not supported: write rand-m9-mstd0.5-inc1, with"
                " m and n whole, p at most 1"
            )
        return cls(
            magnitude=int(fields["m"]),
            num_ops=int(fields["n"]),
            probability=fields["p"],
            magnitude_std=fields["mstd"],
            increasing=bool(fields["inc"]),
        )

    def draw(self, generator: np.random.Generator, num_images: int, side: int) -> Drawn:
        """Codes and arguments, both `(B, num_ops)`."""
        shape = (num_images, self.num_ops)
        codes = np.array(RAND_AUGMENT_OPS, np.int8)[generator.integers(0, 15, shape)]
        codes[generator.random(shape) >= self.probability] = Op.IDENTITY
        levels = np.full(shape, float(self.magnitude))
        if self.magnitude_std > UNIFORM_STD:
            levels = generator.uniform(0, self.magnitude, shape)
        elif self.magnitude_std > 0:
            levels = generator.normal(self.magnitude, self.magnitude_std, shape)
        signs = np.where(generator.random(shape) < 0.5, -1.0, 1.0)
        return codes, rand_augment_args(codes, levels, signs, side, self.increasing)


def rand_augment_args(
    codes: Codes, levels: Floats, signs: Floats, side: int, increasing: bool
) -> Floats:
    """Arguments that timm gives operations at levels clipped to [0, 10], shaped as `codes`.

    Translations are relative: at level 10 by 0.45 of the side.
    """
    share = np.clip(levels, 0, MAX_LEVEL) / MAX_LEVEL
    bits, threshold = np.trunc(share * 4), np.minimum(256, np.trunc(share * 256))
    by_op = {
        Op.ROTATE: signs * share * 30,
        Op.POSTERIZE: 4 - bits if increasing else bits,
        Op.SOLARIZE: 256 - threshold if increasing else threshold,
        Op.SOLARIZE_ADD: np.trunc(share * 110),
        Op.SHEAR_X: signs * share * 0.3,
        Op.SHEAR_Y: signs * share * 0.3,
        Op.TRANSLATE_X: signs * share * 0.45 * side,
        Op.TRANSLATE_Y: signs * share * 0.45 * side,
    }
    enhanced = np.maximum(0.1, 1 + signs * share * 0.9) if increasing else share * 1.8 + 0.1
    args = np.where(np.isin(codes, ENHANCE), enhanced, 0.0)
    for op, values in by_op.items():
        args = np.where(codes == op, values, args)
    return args


@dataclass(frozen=True)
class AutoAugmentCifar10:
    """AutoAugment's CIFAR-10 policy with torchvision's ranges: one of 25 pairs of operations.

    PaCo's own table has ranges that differ by less than a level or a pixel, and transforms with
    a mixture of filters; the view's one filter is used here.
    """

    def draw(self, generator: np.random.Generator, num_images: int, side: int) -> Drawn:
        """Codes and arguments, both `(B, 2)`."""
        table = np.array(AUTO_AUGMENT_CIFAR10, dtype=np.float64)
        row = table[generator.integers(0, len(table), num_images)]
        codes = row[:, :, 0].astype(np.int8)
        shape = codes.shape
        codes[generator.random(shape) > row[:, :, 1]] = Op.IDENTITY
        signs = np.where(generator.random(shape) < 0.5, -1.0, 1.0)
        return codes, auto_augment_args(codes, row[:, :, 2], signs, side)


def auto_augment_args(codes: Codes, levels: Floats, signs: Floats, side: int) -> Floats:
    """Arguments that torchvision gives AutoAugment operations at levels 0 to 9."""
    share = levels / 9
    shift = signs * np.trunc(share * 150 / 331 * side)
    by_op = {
        Op.ROTATE: signs * share * 30,
        Op.POSTERIZE: 8 - np.rint(share * 4),
        Op.SOLARIZE: 255 - share * 255,
        Op.SHEAR_X: signs * share * 0.3,
        Op.SHEAR_Y: signs * share * 0.3,
        Op.TRANSLATE_X: shift,
        Op.TRANSLATE_Y: shift,
    }
    args = np.where(np.isin(codes, ENHANCE), 1 + signs * share * 0.9, 0.0)
    for op, values in by_op.items():
        args = np.where(codes == op, values, args)
    return args


@dataclass(frozen=True)
class ColorJitter:
    """torchvision's ColorJitter: factors uniform around 1, in random order.

    Attributes:
        brightness: factor from `max(0, 1 - brightness)` to `1 + brightness`; 0 leaves it out.
        contrast: likewise.
        saturation: likewise.
        hue: turn from `-hue` to `hue`, at most 0.5.
        probability: with which an image is jittered at all.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        if min(self.brightness, self.contrast, self.saturation) < 0 or not 0 <= self.hue <= 0.5:
            raise UsageError("colour jitter needs strengths that are not negative, hue up to 0.5")

    def draw(self, generator: np.random.Generator, num_images: int, side: int) -> Drawn:
        """Codes and arguments, `(B, K)` for the K components that are not left out."""
        strengths = {
            Op.BRIGHTNESS: self.brightness,
            Op.CONTRAST: self.contrast,
            Op.COLOR: self.saturation,
            Op.HUE: self.hue,
        }
        ops = [op for op, strength in strengths.items() if strength > 0]
        middle = np.array([0.0 if op is Op.HUE else 1.0 for op in ops])
        width = np.array([strengths[op] for op in ops])
        low = np.where(middle == 1, np.maximum(0, middle - width), -width)
        values = generator.uniform(low, middle + width, (num_images, len(ops)))
        order = generator.random(values.shape).argsort(axis=1)
        codes = np.array(ops, dtype=np.int8)[order]
        codes[generator.random(num_images) >= self.probability] = Op.IDENTITY
        return codes, np.take_along_axis(values, order, axis=1)


@dataclass(frozen=True)
class Grayscale:
    """Grey with a probability."""

    probability: float

    def draw(self, generator: np.random.Generator, num_images: int, side: int) -> Drawn:
        """Codes and arguments, both `(B, 1)`."""
        drew = generator.random((num_images, 1)) < self.probability
        return np.where(drew, Op.GRAYSCALE, Op.IDENTITY).astype(np.int8), np.zeros(drew.shape)


@dataclass(frozen=True)
class GaussianBlur:
    """Pillow's Gaussian blur with a probability; sigma uniform in px (SimCLR, MoCo v2)."""

    probability: float
    sigma: tuple[float, float] = (0.1, 2.0)

    def draw(self, generator: np.random.Generator, num_images: int, side: int) -> Drawn:
        """Codes and arguments, both `(B, 1)`."""
        drew = generator.random((num_images, 1)) < self.probability
        sigmas = generator.uniform(*self.sigma, drew.shape)
        return np.where(drew, Op.BLUR, Op.IDENTITY).astype(np.int8), sigmas


@dataclass(frozen=True)
class ThreeAugment:
    """DeiT III's: exactly one of grayscale, solarize at 128, Gaussian blur of 0.1 to 2 px."""

    def draw(self, generator: np.random.Generator, num_images: int, side: int) -> Drawn:
        """Codes and arguments, both `(B, 1)`."""
        ops = np.array([Op.GRAYSCALE, Op.SOLARIZE, Op.BLUR], dtype=np.int8)
        codes = ops[generator.integers(0, 3, (num_images, 1))]
        sigmas = generator.uniform(0.1, 2.0, codes.shape)
        return codes, np.where(codes == Op.BLUR, sigmas, np.where(codes == Op.SOLARIZE, 128.0, 0.0))


def draw_all(
    policies: tuple[Policy, ...], generator: np.random.Generator, num_images: int, side: int
) -> Drawn:
    """The columns of several policies side by side; none without any."""
    drawn = [policy.draw(generator, num_images, side) for policy in policies]
    none: NDArray[np.float64] = np.zeros((num_images, 0))
    codes = np.concatenate([none.astype(np.int8), *(codes for codes, _ in drawn)], axis=1)
    return codes, np.concatenate([none, *(args for _, args in drawn)], axis=1)
