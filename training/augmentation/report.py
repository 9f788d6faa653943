"""How far the batched augmentation is from timm's and Pillow's, as a table: `python -m` this.

Three comparisons and a stopwatch: every operation at several strengths on synthetic photographs and
on noise; whole student views under the same decisions; the distributions of the decisions against
timm's own draws; the time for one view. Differences are in 8-bit levels, distributions in the
two-sample Kolmogorov-Smirnov statistic. Exit status 1 if a tolerance is exceeded; time has none.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import functional as vision

from deitlt.preprocess import IMAGENET_MEAN, IMAGENET_STD
from training.augmentation.crops import ERASED_ASPECT, PaddedCrop, Pixels, ResizedCrop, erased_boxes
from training.augmentation.named_views import student_view
from training.augmentation.operations import Op
from training.augmentation.policies import RandAugment
from training.augmentation.views import Plan, RandomView

POLICY = "rand-m9-mstd0.5-inc1"
FILL = (124, 116, 104)

# One image through one operation, by timm, Pillow or torchvision.
COLOUR: dict[Op, Callable[[Image.Image, float], Image.Image]] = {
    Op.AUTOCONTRAST: lambda image, _: auto_augment.auto_contrast(image),
    Op.EQUALIZE: lambda image, _: auto_augment.equalize(image),
    Op.INVERT: lambda image, _: auto_augment.invert(image),
    # Pillow came to refuse 0 bits, which used to be black.
    Op.POSTERIZE: lambda image, bits: (
        auto_augment.posterize(image, int(bits)) if bits else Image.new("RGB", image.size)
    ),
    Op.SOLARIZE: auto_augment.solarize,
    Op.SOLARIZE_ADD: lambda image, amount: auto_augment.solarize_add(image, int(amount)),
    Op.COLOR: auto_augment.color,
    Op.CONTRAST: auto_augment.contrast,
    Op.BRIGHTNESS: auto_augment.brightness,
    Op.SHARPNESS: auto_augment.sharpness,
    Op.GRAYSCALE: lambda image, _: vision.to_grayscale(image, 3),
    Op.HUE: vision.adjust_hue,
    Op.BLUR: auto_augment.gaussian_blur,
}
GEOMETRIC: dict[Op, Callable[..., Image.Image]] = {
    Op.ROTATE: auto_augment.rotate,
    Op.SHEAR_X: auto_augment.shear_x,
    Op.SHEAR_Y: auto_augment.shear_y,
    Op.TRANSLATE_X: auto_augment.translate_x_abs,
    Op.TRANSLATE_Y: auto_augment.translate_y_abs,
}
STRENGTHS: dict[Op, tuple[float, ...]] = {
    Op.POSTERIZE: (0, 1, 4, 8),
    Op.SOLARIZE: (0, 26, 128, 256),
    Op.SOLARIZE_ADD: (0, 55, 110),
    Op.COLOR: (0.1, 0.5, 1, 1.9),
    Op.CONTRAST: (0.1, 0.5, 1, 1.9),
    Op.BRIGHTNESS: (0.1, 0.5, 1, 1.9),
    Op.SHARPNESS: (0.1, 0.5, 1, 1.9),
    Op.HUE: (-0.5, -0.1, 0.03, 0.5),
    Op.BLUR: (0.1, 0.5, 1, 2),
    Op.ROTATE: (-30, -7, 15.5, 30),
    Op.SHEAR_X: (-0.3, 0.1, 0.3),
    Op.SHEAR_Y: (-0.3, 0.1, 0.3),
    Op.TRANSLATE_X: (-9.5, 3, 14.2),
    Op.TRANSLATE_Y: (-9.5, 3, 14.2),
}


@dataclass(frozen=True)
class Line:
    """One figure of the report.

    Attributes:
        name: what is compared.
        detail: under which circumstances.
        value: the figure that is held to the tolerance.
        tolerance: largest value accepted.
        note: other figures, for people.
    """

    name: str
    detail: str
    value: float
    tolerance: float
    note: str = ""

    def __str__(self) -> str:
        verdict = "ok" if self.value <= self.tolerance else "EXCEEDED"
        figures = f"{self.value:9.4f} {self.tolerance:9.4f}"
        return f"{self.name:14} {self.detail:28} {figures}  {verdict:8} {self.note}"


def photographs(num_images: int, height: int, width: int, seed: int = 0) -> Pixels:
    """Smooth coloured waves with a few hard edges and sensor noise, `(B, H, W, 3)` uint8."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves, phase = generator.uniform(2, 12, (2, num_images, 3, 1, 1)), generator.random(3) * 6
    images = 127 + 70 * np.sin(waves[0] * x + phase.reshape(3, 1, 1)) * np.cos(waves[1] * y)
    centres = generator.random((2, num_images, 3, 1, 1))
    images += 50 * ((x - centres[0]) ** 2 + (y - centres[1]) ** 2 < 0.05)
    images += generator.normal(0, 3, images.shape)
    return np.asarray(images.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


def step_by_step(view: RandomView, image: Pixels, plan: Plan, i: int) -> Pixels:
    """Image `i` of a plan through Pillow, operation after operation, `(S, S, 3)`, not erased."""
    picture = Image.fromarray(view.crop(image, plan, i))
    if plan.flips[i]:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for code, argument in zip(plan.codes[i], plan.args[i], strict=True):
        picture = one_operation(picture, Op(code), float(argument), view.fill)
    return np.asarray(picture)


def one_operation(
    image: Image.Image, op: Op, argument: float, fill: tuple[int, ...] = FILL
) -> Image.Image:
    """The image after one operation by timm, Pillow or torchvision."""
    if op in GEOMETRIC:
        bicubic = Image.Resampling.BICUBIC
        return GEOMETRIC[op](image, argument, resample=bicubic, fillcolor=fill)
    return image if op is Op.IDENTITY else COLOUR[op](image, argument)


def operation_lines(side: int) -> Iterable[Line]:
    """Every operation at several strengths against its Pillow counterpart.

    Colours must be equal; geometric operations may differ by one level where a coordinate falls on
    the other side of a rounding.
    """
    noise = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    kinds = {"photo": photographs(4, side, side), "noise": noise}
    view = RandomView(
        img_size=side, mean=(0, 0, 0), std=(1, 1, 1), crop=PaddedCrop(0), flip=0, fill=FILL
    )
    for op in [*COLOUR, *GEOMETRIC]:
        for strength in STRENGTHS.get(op, (0,)):
            for kind, images in kinds.items():
                plan = one_operation_plan(view, len(images), op, strength)
                made = to_levels(view.apply(to_tensor(images), plan), view)
                wanted = np.stack([step_by_step(view, images[i], plan, i) for i in range(4)])
                difference = np.abs(made.astype(int) - wanted)
                tolerance = 0.05 if op in GEOMETRIC else 0.0
                detail = f"{strength:g}, {kind}"
                note = f"max {difference.max()}"
                yield Line(op.name.lower(), detail, float(difference.mean()), tolerance, note)


def one_operation_plan(view: RandomView, num_images: int, op: Op, argument: float) -> Plan:
    """Decisions of a view without chance that apply one operation to every image."""
    drawn = view.draw(np.random.default_rng(0), num_images)
    codes = np.full((num_images, 1), op, dtype=np.int8)
    return replace(drawn, codes=codes, args=np.full(codes.shape, float(argument)))


def view_lines(num_images: int) -> Iterable[Line]:
    """Whole student views against Pillow's steps with the same crops, flips and operations."""
    for height, width, side in ((32, 32, 96), (120, 160, 64)):
        images = photographs(num_images, height, width)
        view = student_view(side, IMAGENET_MEAN, IMAGENET_STD, policy=POLICY, random_erasing=0)
        plan = view.draw(np.random.default_rng(0), num_images)
        wanted = np.stack([step_by_step(view, images[i], plan, i) for i in range(num_images)])
        cropped = np.stack([view.crop(images[i], plan, i) for i in range(num_images)])
        made = {
            "from the source": view.apply(to_tensor(images), plan),
            "from Pillow's crop": view.apply_cropped(to_tensor(cropped), plan),
        }
        for name, views in made.items():
            difference = np.abs(to_levels(views, view).astype(int) - wanted)
            worst = difference.mean(axis=(1, 2, 3)).max()
            detail = f"{width}x{height} to {side}, {name[5:]}"
            yield Line("view", detail, float(difference.mean()), 0.5, f"worst image {worst:.2f}")


def distribution_lines(num_draws: int) -> Iterable[Line]:
    """Distributions of our decisions against timm's."""
    generator = np.random.default_rng(0)
    random.seed(0)
    np.random.seed(0)
    # Chance exceeds this once in ten thousand comparisons of equal distributions.
    limit = 2.23 * np.sqrt(2 / num_draws)

    crop, height, width = ResizedCrop(), 180, 240
    boxes = crop.boxes(generator.random((num_draws, crop.num_uniforms)), height, width, 96)
    blank = Image.new("RGB", (width, height))
    theirs = np.array(
        [
            RandomResizedCropAndInterpolation.get_params(blank, crop.scale, crop.ratio)
            for _ in range(num_draws)
        ]
    )
    for name, measure in RECTANGLE_MEASURES.items():
        value = ks_statistic(measure(boxes), measure(theirs))
        yield Line("crop", name, value, limit)

    erased = erased_boxes(generator, num_draws, 64, 1.0)
    erasing = RandomErasing(1.0, min_aspect=ERASED_ASPECT, mode="const", device="cpu")
    rectangles = np.array([hole(erasing(torch.ones(1, 64, 64))) for _ in range(num_draws)])
    for name, measure in RECTANGLE_MEASURES.items():
        yield Line("erasing", name, ks_statistic(measure(erased), measure(rectangles)), limit)

    drawn = RandAugment.parse(POLICY).draw(generator, num_draws, 96)
    codes, args = timm_rand_augment(num_draws)
    share = np.bincount(drawn[0].ravel(), minlength=32) - np.bincount(codes, minlength=32)
    yield Line("RandAugment", "share of each operation", np.abs(share).max() / num_draws, limit)
    for op in sorted({Op(code) for code in codes} - {Op.IDENTITY}):
        ours, reference = drawn[1][drawn[0] == op], args[codes == op]
        few = 2.23 * np.sqrt(1 / len(ours) + 1 / len(reference))
        yield Line("RandAugment", op.name.lower(), ks_statistic(ours, reference), few)


def timm_rand_augment(
    num_draws: int, side: int = 96
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Operations and arguments that timm applies to `num_draws` images, two entries an image."""
    seen: list[tuple[int, float]] = []
    policy = rand_augment_transform(POLICY, {"translate_const": int(0.45 * side)})

    def recorder(code: int, factor: float) -> Callable[..., None]:
        return lambda _, *level, **__: seen.append((code, factor * level[0] if level else 0.0))

    for operation in policy.ops:
        name = operation.aug_fn.__name__.removesuffix("_rel").upper().replace("AUTO_", "AUTO")
        factor = side if name.startswith("TRANSLATE") else 1
        operation.aug_fn = recorder(Op[name], factor)
    for _ in range(num_draws):
        policy(None)
    seen += [(Op.IDENTITY, 0.0)] * (2 * num_draws - len(seen))
    codes, args = zip(*seen, strict=True)
    return np.array(codes, dtype=np.int8), np.array(args, dtype=np.float64)


def hole(image: Tensor) -> tuple[int, int, int, int]:
    """Top, left, height and width of the zeros in an image of ones, `(1, S, S)`."""
    rows, columns = (np.flatnonzero((image[0] == 0).any(dim).numpy()) for dim in (1, 0))
    return int(rows[0]), int(columns[0]), len(rows), len(columns)


RECTANGLE_MEASURES: dict[str, Callable[[NDArray[np.int64]], NDArray[np.float64]]] = {
    "area": lambda boxes: np.asarray(boxes[:, 2] * boxes[:, 3], dtype=np.float64),
    "aspect ratio": lambda boxes: np.asarray(boxes[:, 3] / boxes[:, 2]),
    "top": lambda boxes: np.asarray(boxes[:, 0], dtype=np.float64),
    "left": lambda boxes: np.asarray(boxes[:, 1], dtype=np.float64),
}


def ks_statistic(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Largest distance between the two empirical distribution functions."""
    ours, theirs = np.sort(ours), np.sort(theirs)
    values = np.concatenate([ours, theirs])
    shares = [
        np.searchsorted(sample, values, side="right") / len(sample) for sample in (ours, theirs)
    ]
    return float(np.abs(shares[0] - shares[1]).max())


def speed_lines(num_images: int) -> Iterable[str]:
    """Time for one student view of a 32 px image, ours in a batch on the CPU and timm's by itself.

    Both on one thread, best of three. The batched code is written for a GPU, where a CPU's time for
    it says little.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = photographs(num_images, 32, 32)
    tensor, pictures = to_tensor(images), [Image.fromarray(image) for image in images]
    generator = np.random.default_rng(0)
    for side in (32, 224):
        view = student_view(side, IMAGENET_MEAN, IMAGENET_STD)
        transform = create_transform(
            side,
            is_training=True,
            color_jitter=None,
            # Without a deviation, or the strongest posterize would raise with newer Pillow.
            auto_augment="rand-m9-inc1",
            interpolation="bicubic",
            re_prob=0.25,
            re_mode="pixel",
        )
        times = []
        for _ in range(3):
            start = time.perf_counter()
            plan = view.draw(generator, num_images)
            drawn = time.perf_counter()
            view.apply(tensor, plan)
            applied = time.perf_counter()
            for picture in pictures:
                transform(picture)
            times.append([drawn - start, applied - start, time.perf_counter() - applied])
        draw, ours, theirs = np.min(times, axis=0) / num_images * 1000
        yield (
            f"speed: {num_images} views of {side} px: {ours:.3f} ms each, {1000 * draw:.1f} us"
            f" of it for draws; timm {theirs:.3f} ms: {theirs / ours:.2f} times as fast"
        )
    torch.set_num_threads(threads)


def to_tensor(images: Pixels) -> Tensor:
    """`(B, H, W, 3)` to a `(B, 3, H, W)` tensor of its own memory."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def to_levels(views: Tensor, view: RandomView) -> Pixels:
    """Normalised `(B, 3, S, S)` back to 8-bit `(B, S, S, 3)`."""
    mean, std = (torch.tensor(channel).view(3, 1, 1) for channel in (view.mean, view.std))
    levels = ((views * std + mean) * 255).round().to(torch.uint8)
    return np.asarray(levels.permute(0, 2, 3, 1).numpy())


def main(arguments: list[str] | None = None) -> int:
    """Print the report; 1 if a tolerance is exceeded."""
    parser = argparse.ArgumentParser(prog="python -m training.augmentation.report")
    parser.add_argument("--images", type=int, default=128, help="images for views and speed")
    parser.add_argument("--draws", type=int, default=5000, help="draws for the distributions")
    parser.add_argument("--side", type=int, default=64, help="side for single operations, px")
    options = parser.parse_args(arguments)
    print(f"{'what':14} {'detail':28} {'value':>9} {'tolerance':>9}")
    failed = False
    for lines in (
        operation_lines(options.side),
        view_lines(options.images),
        distribution_lines(options.draws),
    ):
        for line in lines:
            print(line)
            failed |= line.value > line.tolerance
    print(*speed_lines(options.images), sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
