"""Views cut from batches of source images: crop, flip and affine maps in one resampling.

Legend: `B` images, `S` side of the views, `H` and `W` size of the sources, `T` taps of the kernel
along an axis. Maps are those of `operations`, boxes those of `crops`.

Three ways, chosen for each image on the CPU:

- a window of the source, pixel for pixel, is an indexed copy;
- crops that are resized and at most flipped or shifted are a product of two matrices with the
  image, horizontally then vertically, rounded to 8 bits after each, as Pillow does: equal to it but
  for ties (Pillow 13 resizes some tall crops vertically first; that costs more of them a level,
  and what overshoots white or black more);
- rotated and sheared images gather the kernel's taps around every pixel.

Deviations from Pillow, which resizes the crop and then transforms the result, rounding in between:
here the source is sampled once, with the kernel of the resize (wider where the crop shrinks). An
affine map of an unresized window uses the kernel of Pillow's transform (Keys, a = -1, edge pixels
repeated, rounded down) and equals it, but for what two such maps in a row would blur twice.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from training.augmentation.crops import Boxes, Interpolation
from training.augmentation.operations import Maps, on_device, places

SUPPORT = {"bicubic": 2, "bilinear": 1}
# Keys' parameter in Pillow's resize and in Pillow's affine transform.
RESIZE_CUBIC, WARP_CUBIC = -0.5, -1.0
# Taps gathered at once: bounds the memory of one step, and keeps a CPU's in its cache.
MAX_TAPS = {"cpu": 1 << 22, "cuda": 1 << 27}


@dataclass(frozen=True)
class Geometry:
    """How each view of a batch lies in its source.

    Attributes:
        boxes: `(B, 4)` the crop in the source.
        maps: `(B, 3, 3)` from places of the view to places of the S x S crop.
        moved: `(B,)` whether a policy operation moved the image, beyond crop and flip.
        resizes: whether crops are resized to S x S; else they are S x S windows.
        interpolation: filter of the resize.
    """

    boxes: Boxes
    maps: Maps
    moved: NDArray[np.bool_]
    resizes: bool
    interpolation: Interpolation = "bicubic"


def resample(pixels: Tensor, geometry: Geometry, side: int) -> Tensor:
    """The views `(B, 3, S, S)` uint8 of `(B, 3, H, W)` uint8 sources, on their device.

    Pixels that a map brings in from outside the crop have no meaning; they are to be filled.
    """
    maps = geometry.maps
    if geometry.resizes:
        straight = (maps[:, 0, 1] == 0) & (maps[:, 1, 0] == 0)
        simple = _resize
    else:
        straight = ~geometry.moved
        simple = _windows
    if straight.all():
        return simple(pixels, geometry, straight, side)
    views = pixels.new_empty((len(pixels), 3, side, side))
    for rows, cut in ((straight, simple), (~straight, _gather)):
        if rows.any():
            where = on_device(np.flatnonzero(rows), pixels.device)
            views[where] = cut(pixels[where], geometry, rows, side)
    return views


def _windows(pixels: Tensor, geometry: Geometry, rows: NDArray[np.bool_], side: int) -> Tensor:
    device, steps = pixels.device, torch.arange(side, device=pixels.device)
    top, left = on_device(geometry.boxes[rows, :2], device).view(-1, 2, 1).unbind(1)
    flips = on_device(geometry.maps[rows, 0, 0] < 0, device).view(-1, 1)
    lines, columns = top + steps, left + torch.where(flips, side - 1 - steps, steps)
    which = torch.arange(len(pixels), device=device).view(-1, 1, 1, 1)
    channel = torch.arange(3, device=device).view(1, 3, 1, 1)
    return pixels[which, channel, lines[:, None, :, None], columns[:, None, None, :]]


def _resize(pixels: Tensor, geometry: Geometry, rows: NDArray[np.bool_], side: int) -> Tensor:
    boxes, maps, device = geometry.boxes[rows], geometry.maps[rows], pixels.device

    def weights(axis: int, size: int) -> Tensor:
        box, entry = 1 - axis, maps[:, axis]
        scale = boxes[:, 2 + box] / side
        lines = np.stack([entry[:, axis] * scale, entry[:, 2] * scale + boxes[:, box], scale], 1)
        edges = np.stack([boxes[:, box], boxes[:, box] + boxes[:, 2 + box]], 1)
        return axis_weights(
            on_device(lines, device),
            on_device(edges, device),
            size,
            side,
            geometry.interpolation,
        )

    # Pillow's transform rounds down, so an image that it would have moved loses half a level.
    half = np.where(geometry.moved[rows], 0.0, 0.5).astype(np.float32)
    bias = on_device(half, device).view(-1, 1, 1, 1)
    horizontal, vertical = weights(0, pixels.shape[3]), weights(1, pixels.shape[2])
    with torch.autocast(device.type, enabled=False):
        lines = pixels.float() @ horizontal.transpose(1, 2).unsqueeze(1)
        lines = lines.add_(0.5).floor_().clamp_(0, 255)
        return (vertical.unsqueeze(1) @ lines).add_(bias).clamp_(0, 255).to(torch.uint8)


def axis_weights(
    lines: Tensor, edges: Tensor, size: int, side: int, interpolation: Interpolation
) -> Tensor:
    """What each of `size` source pixels gives to each pixel of a view, `(B, S, size)` float32.

    As in Pillow's resize, the kernel is cut off at the crop's edges and its weights sum to 1.

    Args:
        lines: `(B, 3)` float64: place `v` of the view lies at `slope * v + shift` of the source,
            and one pixel of it covers `scale` source pixels.
        edges: `(B, 2)` integers: first source pixel of the crop and the one behind its last.
        size: source pixels along the axis.
        side: side of the view, px.
        interpolation: filter of the resize.
    """
    slope, shift, scale = lines.view(-1, 3, 1, 1).unbind(1)
    start, stop = edges.view(-1, 2, 1, 1).unbind(1)
    view = torch.arange(side, device=lines.device).view(-1, 1) + 0.5
    source = torch.arange(size, device=lines.device)
    distances = (source + 0.5 - (slope * view + shift)) / scale.clamp(min=1)
    within = (source >= start) & (source < stop)
    return _normalised(kernel(distances, interpolation) * within).float()


def kernel(distances: Tensor, interpolation: Interpolation, cubic: float = RESIZE_CUBIC) -> Tensor:
    """Weight at distances in px of the coarser grid: Keys' cubic convolution or the triangle."""
    x = distances.abs()
    if interpolation == "bilinear":
        return (1 - x).clamp(min=0)
    # In place: on a CPU fresh memory costs more than the arithmetic.
    near = x.mul(cubic + 2).sub_(cubic + 3).mul_(x).mul_(x).add_(1)
    far = x.sub(5).mul_(x).add_(8).mul_(x).mul_(cubic).sub_(4 * cubic)
    return near.where(x < 1, far.masked_fill_(x >= 2, 0))


def _gather(pixels: Tensor, geometry: Geometry, rows: NDArray[np.bool_], side: int) -> Tensor:
    boxes, maps = geometry.boxes[rows], geometry.maps[rows]
    scale = boxes[:, 2:] / side if geometry.resizes else np.ones((len(boxes), 2))
    to_source = np.zeros_like(maps)
    to_source[:, :2] = maps[:, :2] * scale[:, ::-1, None]
    to_source[:, :2, 2] += boxes[:, 1::-1]
    support = SUPPORT[geometry.interpolation] * np.maximum(scale, 1)
    taps = int(np.ceil(2 * support.max()))
    step = max(1, MAX_TAPS[pixels.device.type] // (side**2 * taps**2))
    parts = []
    for start in range(0, len(pixels), step):
        part = slice(start, start + step)
        box = on_device(boxes[part], pixels.device, torch.int32)
        reach = on_device(support[part], pixels.device)
        x, y = places(on_device(to_source[part], pixels.device), side)
        across = _taps(x, box[:, 1::2], reach[:, 1], taps, geometry)
        down = _taps(y, box[:, 0::2], reach[:, 0], taps, geometry)
        parts.append(_weighted_sum(pixels[part], box, down, across))
    return torch.cat(parts)


def _taps(
    centres: Tensor, extent: Tensor, support: Tensor, taps: int, geometry: Geometry
) -> tuple[Tensor, Tensor]:
    """First source position of the kernel along an axis, `(B, S, S, 1)`, and T weights from it.

    Args:
        centres: `(B, S, S)` places in the source.
        extent: `(B, 2)` first position of the crop and how many it has.
        support: `(B,)` reach of the kernel to either side, px.
        taps: T.
        geometry: the filter, and whether it is cut off at the crop's edges.
    """
    centres, support = centres.unsqueeze(-1), support.view(-1, 1, 1, 1)
    low, length = extent.view(-1, 2, 1, 1, 1).unbind(1)
    first = (centres - support + 0.5).floor()
    offsets = torch.arange(taps, device=centres.device)
    distances = (first + 0.5 - centres).float().add(offsets)
    distances.div_((support / SUPPORT[geometry.interpolation]).float())
    cubic = RESIZE_CUBIC if geometry.resizes else WARP_CUBIC
    weights = kernel(distances, geometry.interpolation, cubic)
    if geometry.resizes:
        positions = first + offsets
        weights = _normalised(weights * ((positions >= low) & (positions < low + length)))
    # Further out no pixel of the crop is reached; such places are filled later.
    return first.int().clamp(min=low - taps, max=low + length), weights


def _weighted_sum(
    pixels: Tensor, boxes: Tensor, down: tuple[Tensor, Tensor], across: tuple[Tensor, Tensor]
) -> Tensor:
    """Sums of T x T source pixels, `(B, 3, S, S)` uint8; pixels at the crop's edges are repeated.

    T neighbours in a line are one row of a table, so that an embedding bag sums T rows a pixel.
    """
    (top, down_weights), (left, across_weights) = down, across
    num, _, height, width = pixels.shape
    side, taps = top.shape[1], down_weights.shape[-1]
    offsets = torch.arange(taps, device=pixels.device, dtype=torch.int32)
    low, length = boxes[:, :2], boxes[:, 2:]

    starts = torch.arange(-taps, width + 1, device=pixels.device, dtype=torch.int32)
    columns = (starts.view(-1, 1) + offsets).expand(num, -1, -1)
    edges = low[:, 1].view(-1, 1, 1), (low + length)[:, 1].view(-1, 1, 1) - 1
    columns = columns.clamp(*edges).view(num, 1, 1, -1).long()
    lines = pixels.float().gather(3, columns.expand(-1, 3, height, -1))
    lines = lines.view(num, 3, -1, len(starts), taps).permute(0, 2, 3, 4, 1)
    table = lines.reshape(-1, 3 * taps)

    edges = low[:, 0].view(-1, 1, 1, 1), (low + length)[:, 0].view(-1, 1, 1, 1) - 1
    image = torch.arange(num, device=pixels.device, dtype=torch.int32).view(-1, 1, 1, 1)
    rows = (top + offsets).clamp(*edges).add_(image * height).mul_(len(starts)).add_(left + taps)
    sums = F.embedding_bag(
        rows.view(-1, taps), table, per_sample_weights=down_weights.view(-1, taps), mode="sum"
    )
    values = sums.view(num, side, side, taps, 3).mul_(across_weights.unsqueeze(-1)).sum(3)
    return values.clamp_(0, 255).to(torch.uint8).permute(0, 3, 1, 2)


def _normalised(weights: Tensor) -> Tensor:
    total = weights.sum(dim=-1, keepdim=True)
    # Outside the crop no tap has weight; those pixels are filled later and must only be finite.
    return weights / torch.where(total.abs() < 1e-3, 1.0, total)
