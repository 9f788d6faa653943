"""Colour and sharpness operations on batches of 8-bit images, equal to Pillow's.

Legend: `B` images, `H` and `W` size of an image.

Everything is computed in the precision that Pillow uses, or a higher one where that is exact, so
the levels are Pillow's bit for bit.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.augmentation.operations import Codes, Floats, Op, on_device

LEVELS = 256
# Pillow's luma, in 1/65536.
LUMA = (19595, 38470, 7471)
# Pillow approximates a Gaussian by this many box filters along each axis.
BLUR_PASSES = 3
BLUR_ONE = 1 << 24


def apply_operations(images: Tensor, codes: Codes, args: Floats) -> Tensor:
    """Each image `(B, 3, H, W)` uint8 through its own operation; in place and returned.

    Args:
        images: on any device; codes and arguments stay on the CPU, so nothing waits for it.
        codes: `(B,)` of `Op`; the identity and geometric operations do nothing here.
        args: `(B,)`.
    """
    tabled = np.flatnonzero(np.isin(codes, [*TABLES]))
    if len(tabled):
        where = on_device(tabled, images.device)
        chosen = images[where]
        images[where] = look_up(chosen, tables(chosen, codes[tabled], args[tabled]))
    for op, function in NEIGHBOURS.items():
        rows = np.flatnonzero(codes == op)
        if len(rows):
            where = on_device(rows, images.device)
            images[where] = function(images[where], args[rows])
    return images


def tables(images: Tensor, codes: Codes, args: Floats) -> Tensor:
    """The table of levels that each image's operation amounts to, `(B, 3, 256)` uint8."""
    result = images.new_empty((len(images), 3, LEVELS))
    for op in np.unique(codes):
        rows = np.flatnonzero(codes == op)
        where = on_device(rows, images.device)
        argument = on_device(args[rows].astype(np.float32), images.device)
        table = TABLES[Op(op)](images[where], argument.view(-1, 1, 1))
        result[where] = table.to(torch.uint8).expand(-1, 3, -1)
    return result


def look_up(images: Tensor, table: Tensor) -> Tensor:
    """Every level of `(B, 3, H, W)` replaced through its image's and channel's `(B, 3, 256)`."""
    return table.gather(2, images.flatten(2).long()).view(images.shape)


def histogram(images: Tensor) -> Tensor:
    """Number of pixels of each level, `(B, 3, 256)` int64."""
    levels = images.flatten(2).long()
    ones = torch.ones((), dtype=torch.int64, device=images.device)
    counts = torch.zeros((*levels.shape[:2], LEVELS), dtype=torch.int64, device=images.device)
    return counts.scatter_add_(2, levels, ones.expand(levels.shape))


def luma(images: Tensor) -> Tensor:
    """Pillow's grey level, `(B, 1, H, W)` int32."""
    red, green, blue = images.int().unbind(1)
    grey = red * LUMA[0] + green * LUMA[1] + blue * LUMA[2] + (1 << 15)
    return (grey >> 16).unsqueeze(1)


def blend(degenerate: Tensor, original: Tensor, factor: Tensor) -> Tensor:
    """Pillow's blend towards `factor` 1 = `original`, rounded down, `(...)` uint8."""
    difference = (original - degenerate).float()
    return (degenerate + factor * difference).clamp(0, LEVELS - 1).to(torch.uint8)


def _levels(like: Tensor) -> Tensor:
    return torch.arange(LEVELS, device=like.device).view(1, 1, LEVELS)


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    levels = _levels(images)
    occurs = histogram(images) > 0
    low = torch.where(occurs, levels, LEVELS).amin(2, keepdim=True)
    high = torch.where(occurs, levels, -1).amax(2, keepdim=True)
    # A number over a tensor would be a rounded reciprocal: one level off here and there.
    scale = torch.full_like(low, LEVELS - 1).double() / (high - low)
    stretched = (levels * scale + -low * scale).clamp(0, LEVELS - 1).to(torch.int64)
    return torch.where(high > low, stretched, levels)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    levels = _levels(images)
    counts = histogram(images)
    highest = torch.where(counts > 0, levels, 0).amax(2, keepdim=True)
    step = (counts.sum(2, keepdim=True) - counts.gather(2, highest)) // (LEVELS - 1)
    below = counts.cumsum(2) - counts
    even = (step // 2 + below) // step.clamp(min=1)
    return torch.where(step > 0, even.clamp(max=LEVELS - 1), levels)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    grey = luma(images).flatten(1).long()
    num_pixels = grey.shape[1]
    mean = (2 * grey.sum(1) + num_pixels) // (2 * num_pixels)
    return blend(mean.view(-1, 1, 1), _levels(images), factor)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    levels = _levels(images)
    return blend(torch.zeros_like(levels), levels, factor)


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    # Older Pillow made 0 bits black, as timm's strongest level asks; newer Pillow refuses it.
    return _levels(images) & (-1 << (8 - bits.long()))


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    levels = _levels(images)
    return torch.where(levels < threshold, levels, LEVELS - 1 - levels)


def _solarize_add(images: Tensor, amount: Tensor) -> Tensor:
    levels = _levels(images)
    brighter = (levels + amount.long()).clamp(max=LEVELS - 1)
    return torch.where(levels < LEVELS // 2, brighter, levels)


def _invert(images: Tensor, _: Tensor) -> Tensor:
    return LEVELS - 1 - _levels(images).expand(len(images), 1, LEVELS)


TABLES: dict[Op, Callable[[Tensor, Tensor], Tensor]] = {
    Op.AUTOCONTRAST: _autocontrast,
    Op.EQUALIZE: _equalize,
    Op.INVERT: _invert,
    Op.POSTERIZE: _posterize,
    Op.SOLARIZE: _solarize,
    Op.SOLARIZE_ADD: _solarize_add,
    Op.CONTRAST: _contrast,
    Op.BRIGHTNESS: _brightness,
}


def _column(args: Floats, like: Tensor) -> Tensor:
    return on_device(args.astype(np.float32), like.device).view(-1, 1, 1, 1)


def _color(images: Tensor, factors: Floats) -> Tensor:
    return blend(luma(images), images.int(), _column(factors, images))


def _grayscale(images: Tensor, _: Floats) -> Tensor:
    return luma(images).to(torch.uint8).expand_as(images)


def _sharpness(images: Tensor, factors: Floats) -> Tensor:
    levels = images.int()
    columns = levels[..., :-2] + levels[..., 1:-1] + levels[..., 2:]
    around = columns[..., :-2, :] + columns[..., 1:-1, :] + columns[..., 2:, :]
    smooth = levels.clone()
    # Pillow's SMOOTH: weight 5 for the pixel, 1 for its neighbours; the border stays.
    total = around + 4 * levels[..., 1:-1, 1:-1]
    smooth[..., 1:-1, 1:-1] = (2 * total + 13) // 26
    return blend(smooth, levels, _column(factors, images))


def _hue(images: Tensor, turns: Floats) -> Tensor:
    """Pillow's 8-bit HSV there and back, the hue turned in whole levels as torchvision does."""
    levels = images.float()
    value, low = levels.amax(1), levels.amin(1)
    spread = value - low
    red, green, blue = (
        ((value - channel) / spread.clamp(min=1)).double() for channel in levels.unbind(1)
    )
    is_red, is_green = levels[:, 0] == value, levels[:, 1] == value
    sector = torch.where(
        is_red, blue - green, torch.where(is_green, 2 + red - blue, 4 + green - red)
    )
    # Pillow keeps these two in single precision, and their whole part decides the level.
    hue = (torch.remainder(sector.float().double() / 6 + 1, 1).float().double() * 255).long()
    share = ((spread / value.clamp(min=1)).double() * 255).floor().div(255).float().double()
    shift = on_device((turns * 255).astype(np.int64), images.device).view(-1, 1, 1)
    turned = ((torch.where(spread > 0, hue, 0) + shift) % LEVELS).double() * 6 / 255
    whole = turned.floor()
    rest = (turned - whole).float().double()
    p, q, t = (
        (value * (1 - part) + 0.5).floor() for part in (share, share * rest, share * (1 - rest))
    )
    # What red, green and blue are in each of the six sectors of the circle.
    v = value.double()
    circle = ([v, q, p, p, t, v], [t, v, v, q, p, p], [p, p, t, v, v, q])
    sixth = (whole.long() % 6).unsqueeze(0)
    channels = [torch.stack(sectors).gather(0, sixth)[0] for sectors in circle]
    return torch.stack(channels, 1).to(torch.uint8)


def _blur(images: Tensor, sigmas: Floats) -> Tensor:
    """Pillow's GaussianBlur: box filters of fractional width, 8 bits after each of the passes."""
    weights = on_device(box_weights(sigmas), images.device)
    reach = weights.shape[1] // 2
    # Whole numbers below 2^53 are exact in double precision, and ties of rounding are frequent.
    levels = images.double()
    for _ in range(2):
        for _ in range(BLUR_PASSES):
            padded = F.pad(levels, (reach, reach, 0, 0), mode="replicate")
            levels = torch.full_like(levels, BLUR_ONE / 2)
            for tap in range(2 * reach + 1):
                shifted = padded[..., tap : tap + levels.shape[-1]]
                levels.addcmul_(shifted, weights[:, tap].view(-1, 1, 1, 1))
            levels.div_(BLUR_ONE).floor_()
        levels = levels.transpose(2, 3)
    return levels.to(torch.uint8)


def box_weights(sigmas: Floats) -> Floats:
    """Weights `(B, taps)`, in 1/2^24, of one box filter of Pillow's Gaussian blur.

    The middle one is the pixel's own. In single precision, as Pillow computes them. Source: Gwosdek
    et al., "Theoretical foundations of Gaussian convolution by extended box filtering" (2011),
    equations 7, 11 and 14.
    """
    sigma = np.asarray(sigmas, dtype=np.float32)
    variance = sigma * sigma / np.float32(BLUR_PASSES)
    length = np.sqrt(12.0 * variance.astype(np.float64) + 1).astype(np.float32)
    whole = np.floor((length.astype(np.float64) - 1) / 2).astype(np.float32)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    part /= 6 * (variance - (whole + 1) * (whole + 1))
    radius = whole + part
    inner = radius.astype(np.int64)[:, None]
    full = (np.float32(BLUR_ONE) / (radius * 2 + 1)).astype(np.int64)[:, None]
    edge = (BLUR_ONE - (2 * inner + 1) * full) // 2
    reach = int(inner.max()) + 1
    distance = np.abs(np.arange(-reach, reach + 1))
    weights = np.where(distance <= inner, full, np.where(distance == inner + 1, edge, 0))
    return weights.astype(np.float64)


NEIGHBOURS: dict[Op, Callable[[Tensor, Floats], Tensor]] = {
    Op.COLOR: _color,
    Op.SHARPNESS: _sharpness,
    Op.GRAYSCALE: _grayscale,
    Op.HUE: _hue,
    Op.BLUR: _blur,
}
