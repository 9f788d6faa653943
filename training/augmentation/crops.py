"""Which part of an image a view shows, and which part of the view is blotted out.

Legend: `B` images, `S` image side, `U` uniform numbers an image. Boxes are `(B, 4)` whole numbers:
top, left, height, width, px. Everything is a function of numbers in [0, 1) that were drawn before
the sizes of the images were known; these functions run on the CPU.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitlt.errors import UsageError
from deitlt.preprocess import PreprocessSpec, resize_crop

Boxes = NDArray[np.int64]
Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Interpolation = Literal["bicubic", "bilinear"]

ATTEMPTS = 10
# Pixels of a source, a side, for one of a view: with two a filter that shrinks has enough.
SPARE = 2
ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = 0.3


@dataclass(frozen=True)
class ResizedCrop:
    """A rectangle of random area and aspect ratio, resized to S x S.

    timm's and torchvision's RandomResizedCrop: ten attempts, then the largest centred rectangle of
    an allowed aspect ratio. Unlike there, all attempts share one draw of where the rectangle lies;
    only the accepted attempt uses it, so the distribution is the same. And of photographs so large
    that every crop shrinks more than `SPARE` times, what is more is averaged away beforehand: not
    with images of ImageNet's size at 224 px.

    Attributes:
        scale: range of the area, as a share of the image's.
        ratio: range of width over height.
        interpolation: Pillow's filter of that name, antialiased where it shrinks.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"

    num_uniforms = 2 * ATTEMPTS + 2

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(f"crop scale {self.scale} is not a range within (0, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UsageError(f"crop ratio {self.ratio} is not a range of positive numbers")

    def boxes(self, uniforms: Floats, height: int, width: int, side: int) -> Boxes:
        """Boxes in images of one size from `(B, U)` numbers in [0, 1)."""
        area = _between(uniforms[:, :ATTEMPTS], *self.scale) * height * width
        low, high = np.log(self.ratio)
        aspect = np.exp(_between(uniforms[:, ATTEMPTS : 2 * ATTEMPTS], low, high))
        widths, heights = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        # Of an image of one or two pixels an attempt may have none.
        shown = (np.minimum(widths, heights) > 0) & (widths <= width) & (heights <= height)
        found, chosen = _first(shown)
        whole_height, whole_width = self._fallback(height, width)
        box_height = np.where(found, np.take_along_axis(heights, chosen, 1)[:, 0], whole_height)
        box_width = np.where(found, np.take_along_axis(widths, chosen, 1)[:, 0], whole_width)
        down = np.where(found, uniforms[:, -2] * (height - box_height + 1), 0)
        across = np.where(found, uniforms[:, -1] * (width - box_width + 1), 0)
        top = np.where(found, down, (height - whole_height) // 2)
        left = np.where(found, across, (width - whole_width) // 2)
        return np.stack([top, left, box_height, box_width], axis=1).astype(np.int64)

    def prepare(self, image: Image.Image, side: int) -> Pixels:
        """The image's own pixels, or of a large photograph averages of squares of them."""
        width, height = image.size
        narrow = min(self.ratio[0], 1 / self.ratio[1])
        least = math.sqrt(self.scale[0] * width * height * narrow)  # shortest side of a crop, px
        factor = int(least / (SPARE * side))
        return np.asarray(image.reduce(factor) if factor > 1 else image, dtype=np.uint8)

    def cut(self, pixels: Pixels, uniforms: Floats, side: int) -> Pixels:
        """One image's crop by Pillow, `(S, S, 3)`, from its `(U,)` numbers."""
        height, width = pixels.shape[:2]
        top, left, box_height, box_width = self.boxes(uniforms[None], height, width, side)[0]
        box = Image.fromarray(pixels[top : top + box_height, left : left + box_width])
        bicubic = self.interpolation == "bicubic"
        resampling = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
        return np.asarray(box.resize((side, side), resampling))

    def _fallback(self, height: int, width: int) -> tuple[int, int]:
        low, high = self.ratio
        if width / height < low:
            return round(width / low), width
        if width / height > high:
            return height, round(height * high)
        return height, width


@dataclass(frozen=True)
class PaddedCrop:
    """An S x S window of the image with a margin, pixel for pixel: torchvision's RandomCrop.

    Attributes:
        padding: width of the margin, px.
        reflect: whether the margin mirrors the image; else it is black.
        square: whether the image is first cut to S x S as for evaluation (`resize_crop`); else
            only its short side is resized to S, as 3-Augment does.
    """

    padding: int
    reflect: bool = False
    square: bool = True

    num_uniforms = 2

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise UsageError(f"crop padding must not be negative, not {self.padding}")

    def boxes(self, uniforms: Floats, height: int, width: int, side: int) -> Boxes:
        """Boxes in padded images; `height` and `width` are those without the margin."""
        if self.reflect and self.padding >= min(height, width):
            raise UsageError(
                f"a margin of {self.padding} px cannot mirror images of {width} x {height} px"
            )
        room = np.array([height, width]) + 2 * self.padding - side + 1
        if room.min() < 1:
            raise UsageError(
                f"images of {width} x {height} px with a margin of {self.padding} px"
                f" hold no window of {side} px"
            )
        corners = (uniforms * room).astype(np.int64)
        return np.concatenate([corners, np.full_like(corners, side)], axis=1)

    def prepare(self, image: Image.Image, side: int) -> Pixels:
        """The image at the size the window is cut from, without the margin."""
        if self.square:
            same = image.size == (side, side)
            return np.asarray(image) if same else resize_crop(image, PreprocessSpec(side))
        width, height = image.size
        short = min(width, height)
        size = (int(side * width / short), int(side * height / short))
        same = image.size == size
        return np.asarray(image if same else image.resize(size, Image.Resampling.BICUBIC))

    def cut(self, pixels: Pixels, uniforms: Floats, side: int) -> Pixels:
        """One image's window, `(S, S, 3)`, from its `(U,)` numbers."""
        prepared = self.prepare(Image.fromarray(pixels), side)
        height, width = prepared.shape[:2]
        top, left = self.boxes(uniforms[None], height, width, side)[0, :2]
        margin = [(self.padding, self.padding)] * 2 + [(0, 0)]
        padded = np.pad(prepared, margin, mode="reflect" if self.reflect else "constant")
        return padded[top : top + side, left : left + side]


Crop = ResizedCrop | PaddedCrop


def erased_boxes(
    generator: np.random.Generator, num_images: int, side: int, probability: float
) -> Boxes:
    """Rectangles of timm's random erasing, of no height where nothing is erased.

    Area 2 % to a third, log-uniform height over width from 0.3 to 1 / 0.3, both sides shorter than
    the image; ten attempts. Timm draws the place anew for each attempt, here all share one draw.
    """
    uniforms = generator.random((num_images, 2 * ATTEMPTS + 3))
    area = _between(uniforms[:, :ATTEMPTS], *ERASED_AREA) * side**2
    low, high = np.log([ERASED_ASPECT, 1 / ERASED_ASPECT])
    aspect = np.exp(_between(uniforms[:, ATTEMPTS : 2 * ATTEMPTS], low, high))
    heights, widths = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    found, chosen = _first((heights < side) & (widths < side))
    height = np.take_along_axis(heights, chosen, 1)[:, 0]
    width = np.take_along_axis(widths, chosen, 1)[:, 0]
    top, left = uniforms[:, -2] * (side - height + 1), uniforms[:, -1] * (side - width + 1)
    boxes = np.stack([top, left, height, width], axis=1).astype(np.int64)
    boxes[~found | (uniforms[:, -3] >= probability)] = 0
    return boxes


def cutout_boxes(generator: np.random.Generator, num_images: int, side: int, length: int) -> Boxes:
    """Squares of `length` px around a random pixel, cut off at the border (PaCo's Cutout)."""
    centres = generator.integers(0, side, (num_images, 2))
    start = np.clip(centres - length // 2, 0, side)
    stop = np.clip(centres + length // 2, 0, side)
    return np.concatenate([start, stop - start], axis=1)


def _between(uniforms: Floats, low: float, high: float) -> Floats:
    return low + (high - low) * uniforms


def _first(accepted: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether any attempt of an image was accepted, `(B,)`, and the first one, `(B, 1)`."""
    return np.asarray(accepted.any(axis=1)), accepted.argmax(axis=1)[:, None]
