"""Random views of images, drawn on the CPU and made in batches on the training device.

Legend: `B` images, `S` side of the views, `H` and `W` size of the sources, `L` operations an image
goes through, `U` uniform numbers that place its crop.

A view is made in two halves. `draw` decides everything with one NumPy generator, for all images of
a micro-batch at once; the `Plan` it returns is small and can be sent to worker processes. `apply`
has no chance in it: the same plan on the same kind of device gives the same views.

Deviations from timm's image-by-image pipeline, which resamples and rounds to 8 bits at every step:

- crop, flip and the geometric operations of an image are one resampling of its source
  (`training.augmentation.resample`), so that nothing is blurred twice;
- an operation on colours that looks at each pixel alone (solarize, posterize, ...) and was drawn
  before a geometric one therefore acts on resampled levels. After one that looks at more
  (equalize, autocontrast, contrast, sharpness, blur) the image is resampled a second time.

Fill colours go through those operations, and only those, that follow the one that brought them in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from deitlt.errors import UsageError
from training.augmentation.crops import (
    Boxes,
    Crop,
    PaddedCrop,
    Pixels,
    ResizedCrop,
    cutout_boxes,
    erased_boxes,
)
from training.augmentation.operations import (
    Codes,
    Floats,
    Maps,
    affine_maps,
    composed_maps,
    constant,
    flip_maps,
    inside,
    is_geometric,
    on_device,
    resampled_again,
)
from training.augmentation.pixel_ops import apply_operations
from training.augmentation.policies import Policy, draw_all
from training.augmentation.resample import Geometry, resample

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Plan:
    """Every random decision about the views of a micro-batch.

    Attributes:
        crop: `(B, U)` in [0, 1), from which the crop follows once the image's size is known.
        flips: `(B,)` whether mirrored left to right.
        codes: `(B, L)` operations, in order.
        args: `(B, L)` their arguments.
        erased: `(B, 4)` rectangles of noise: top, left, height, width; no height for none.
        cutout: `(B, 4)` black rectangles, likewise.
        noise: `(seed, images)` of that noise, for one micro-batch after the other.
    """

    crop: Floats
    flips: NDArray[np.bool_]
    codes: Codes
    args: Floats
    erased: Boxes
    cutout: Boxes
    noise: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.crop)

    @classmethod
    def join(cls, plans: Sequence["Plan"]) -> "Plan":
        """Several micro-batches as one, whose views are those of each."""
        if len(plans) == 1:
            return plans[0]
        arrays = ("crop", "flips", "codes", "args", "erased", "cutout")
        joined = {name: np.concatenate([getattr(p, name) for p in plans]) for name in arrays}
        return cls(**joined, noise=tuple(part for plan in plans for part in plan.noise))


class RandomView:
    """A random transform of images to normalised S x S views."""

    def __init__(
        self,
        *,
        img_size: int,
        mean: Colour,
        std: Colour,
        crop: Crop,
        flip: float = 0.5,
        policies: tuple[Policy, ...] = (),
        random_erasing: float = 0.0,
        cutout_px: int = 0,
        fill: tuple[int, int, int] | None = None,
    ) -> None:
        """What is done to an image, in the order of the arguments from `crop` on.

        Args:
            img_size: side S of the views, px.
            mean: per channel, on the [0, 1] scale.
            std: per channel, on the [0, 1] scale.
            crop: which part is shown.
            flip: probability of mirroring left to right.
            policies: what draws the operations, in order.
            random_erasing: probability of a rectangle of normal noise (after normalisation).
            cutout_px: side of a square that is always made black (before normalisation); 0 for
                none.
            fill: 8-bit colour where a geometric operation shows nothing of the crop; the mean, as
                timm has it, by default.

        Raises:
            UsageError: a probability outside [0, 1], or a side that is not positive.
        """
        for name, value in (("flip", flip), ("random erasing", random_erasing)):
            if not 0 <= value <= 1:
                raise UsageError(f"probability of {name} must be in [0, 1], not {value:g}")
        if img_size < 1 or cutout_px < 0:
            raise UsageError("a view needs a side of at least 1 px, a cutout of at least 0 px")
        self.img_size = img_size
        self.mean = mean
        self.std = std
        self.crop_kind = crop
        self.flip = flip
        self.policies = policies
        self.random_erasing = random_erasing
        self.cutout_px = cutout_px
        self.fill = fill or tuple(min(255, round(255 * channel)) for channel in mean)

    def prepare(self, image: Image.Image) -> Pixels:
        """What of an RGB image is worth keeping decoded, `(H, W, 3)` uint8.

        For a resized crop all of it, but of a large photograph no more than any crop can show; for
        a padded crop the image at the size it is cut from.
        """
        return self.crop_kind.prepare(image, self.img_size)

    def draw(self, generator: np.random.Generator, num_images: int) -> Plan:
        """The decisions about a micro-batch of `num_images`."""
        side = self.img_size
        crop = generator.random((num_images, self.crop_kind.num_uniforms))
        flips = generator.random(num_images) < self.flip
        codes, args = draw_all(self.policies, generator, num_images, side)
        erased = cutout = np.zeros((num_images, 4), dtype=np.int64)
        if self.random_erasing:
            erased = erased_boxes(generator, num_images, side, self.random_erasing)
        if self.cutout_px:
            cutout = cutout_boxes(generator, num_images, side, self.cutout_px)
        seed = int(generator.integers(2**63))
        return Plan(crop, flips, codes, args, erased, cutout, ((seed, num_images),))

    def apply(self, pixels: Tensor, plan: Plan) -> Tensor:
        """Normalised views `(B, 3, S, S)` float32 of prepared sources of one size.

        Args:
            pixels: `(B, 3, H, W)` uint8, on the device that does the work.
            plan: decisions about these B images.

        Raises:
            UsageError: the images are too small for the padded crop.
        """
        height, width = pixels.shape[2:]
        boxes = self.crop_kind.boxes(plan.crop, height, width, self.img_size)
        if isinstance(self.crop_kind, ResizedCrop):
            return self._finish(pixels, boxes, plan, self.crop_kind)
        return self._finish(_padded(pixels, self.crop_kind), boxes, plan, None)

    def crop(self, image: Image.Image | Pixels, plan: Plan, i: int) -> Pixels:
        """The crop of image `i` of a plan by Pillow, `(S, S, 3)` uint8, not yet flipped.

        For images too large to keep: a worker process decodes and crops, and `apply_cropped` does
        the rest on the device.
        """
        return self.crop_kind.cut(np.asarray(image), plan.crop[i], self.img_size)

    def apply_cropped(self, pixels: Tensor, plan: Plan) -> Tensor:
        """Normalised views `(B, 3, S, S)` float32 of what `crop` returned, `(B, 3, S, S)` uint8."""
        return self._finish(pixels, _whole(len(plan), self.img_size), plan, None)

    def _finish(
        self, pixels: Tensor, boxes: Boxes, plan: Plan, resize: ResizedCrop | None
    ) -> Tensor:
        side, again = self.img_size, resampled_again(plan.codes)
        maps = composed_maps(affine_maps(plan.codes, plan.args, side), again)
        first = is_geometric(plan.codes) & (np.cumsum(again, axis=1) == 0)
        geometry = Geometry(
            boxes=boxes,
            maps=flip_maps(plan.flips, side) @ maps[:, 0],
            moved=np.asarray(first.any(axis=1)),
            resizes=resize is not None,
            interpolation=resize.interpolation if resize else "bicubic",
        )
        views = self._operate(resample(pixels, geometry, side), plan, maps, again)
        if self.cutout_px:
            views = views.masked_fill(_rectangles(plan.cutout, side, views.device), 0)
        return self._erase(self.normalise(views), plan)

    def normalise(self, views: Tensor) -> Tensor:
        """`(B, 3, S, S)` 8-bit levels to float32 by mean and standard deviation."""
        mean, std = (constant(channel, views.device) for channel in (self.mean, self.std))
        return views.float().sub_(mean * 255).mul_(1 / (std * 255))

    def _operate(self, views: Tensor, plan: Plan, maps: Maps, again: NDArray[np.bool_]) -> Tensor:
        side, geometric = self.img_size, is_geometric(plan.codes)
        fill = constant(self.fill, views.device).to(torch.uint8)
        for layer in range(plan.codes.shape[1]):
            views = apply_operations(views, plan.codes[:, layer], plan.args[:, layer])
            rows = np.flatnonzero(again[:, layer])
            if len(rows):
                where = on_device(rows, views.device)
                moved = np.ones(len(rows), dtype=np.bool_)
                whole = Geometry(_whole(len(rows), side), maps[rows, layer], moved, resizes=False)
                views[where] = resample(views[where], whole, side)
            rows = np.flatnonzero(geometric[:, layer])
            if len(rows):
                where = on_device(rows, views.device)
                shown = inside(on_device(maps[rows, layer], views.device), side)
                views[where] = torch.where(shown.unsqueeze(1), views[where], fill)
        return views

    def _erase(self, views: Tensor, plan: Plan) -> Tensor:
        rows = np.flatnonzero(plan.erased[:, 2])
        if not len(rows):
            return views
        device = views.device
        noise = torch.empty((len(rows), *views.shape[1:]), device=device)
        ends = np.searchsorted(rows, np.cumsum([num_images for _, num_images in plan.noise]))
        for (seed, _), start, end in zip(plan.noise, [0, *ends], ends, strict=False):
            noise[start:end].normal_(generator=torch.Generator(device).manual_seed(seed))
        where = on_device(rows, device)
        mask = _rectangles(plan.erased[rows], self.img_size, device)
        views[where] = torch.where(mask, noise, views[where])
        return views


def _padded(pixels: Tensor, crop: PaddedCrop) -> Tensor:
    if not crop.padding:
        return pixels
    if not crop.reflect:
        return F.pad(pixels, (crop.padding,) * 4)
    for axis in (2, 3):
        size = pixels.shape[axis]
        mirrored = np.pad(np.arange(size), crop.padding, mode="reflect")
        pixels = pixels.index_select(axis, on_device(mirrored, pixels.device))
    return pixels


def _whole(num_images: int, side: int) -> Boxes:
    return np.repeat([[0, 0, side, side]], num_images, axis=0)


def _rectangles(boxes: Boxes, side: int, device: torch.device) -> Tensor:
    """Masks `(B, 1, S, S)` bool of rectangles `(B, 4)`."""
    top, left, height, width = on_device(boxes, device).view(-1, 4, 1, 1, 1).unbind(1)
    steps = torch.arange(side, device=device)
    down, across = steps.view(side, 1), steps.view(1, side)
    return (down >= top) & (down < top + height) & (across >= left) & (across < left + width)
