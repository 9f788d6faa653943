"""The operations of augmentation policies, and the affine maps of the geometric ones.

Legend: `B` images, `L` layers (operations an image goes through, in order), `S` image side.

Coordinates are Pillow's: continuous, in px, x before y; pixel `i` spans `[i, i + 1)`. A map says
for each place of the result where in its input it comes from.
"""

from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Codes = NDArray[np.int8]
Floats = NDArray[np.float64]
Maps = NDArray[np.float64]


class Op(IntEnum):
    """What happens to an image in one layer; each takes at most one argument."""

    IDENTITY = 0
    AUTOCONTRAST = 1
    EQUALIZE = 2
    INVERT = 3
    POSTERIZE = 4
    """Bits kept; none gives black."""
    SOLARIZE = 5
    """Levels from this one on are inverted."""
    SOLARIZE_ADD = 6
    """Added to levels below 128."""
    COLOR = 7
    """Factor: 0 grey, 1 unchanged."""
    CONTRAST = 8
    """Factor: 0 the mean grey, 1 unchanged."""
    BRIGHTNESS = 9
    """Factor: 0 black, 1 unchanged."""
    SHARPNESS = 10
    """Factor: 0 smooth, 1 unchanged."""
    GRAYSCALE = 11
    HUE = 12
    """Turn of the hue circle, in [-0.5, 0.5]."""
    BLUR = 13
    """Standard deviation of the Gaussian, px."""
    ROTATE = 14
    """Degrees, counter-clockwise."""
    SHEAR_X = 15
    """Columns by which a row reads further right than the row above it."""
    SHEAR_Y = 16
    """Rows by which a column reads further down than the column to its left."""
    TRANSLATE_X = 17
    """Columns by which every pixel reads further right."""
    TRANSLATE_Y = 18
    """Rows by which every pixel reads further down."""


def is_geometric(codes: Codes) -> NDArray[np.bool_]:
    """Which of the codes move pixels, in the shape of `codes`."""
    return np.asarray(codes >= Op.ROTATE)


def needs_frame(codes: Codes) -> NDArray[np.bool_]:
    """Which of the codes look at more than the pixel they change, in the shape of `codes`."""
    ops = (Op.AUTOCONTRAST, Op.EQUALIZE, Op.CONTRAST, Op.SHARPNESS, Op.BLUR)
    return np.isin(codes, ops)


def resampled_again(codes: Codes) -> NDArray[np.bool_]:
    """Geometric operations that cannot be part of an earlier resampling, `(B, L)`.

    Those that follow an operation which looks at more than its own pixel: it must see the frame
    that it was drawn for.
    """
    again = np.zeros(codes.shape, dtype=np.bool_)
    waiting = np.zeros(len(codes), dtype=np.bool_)
    for layer in range(codes.shape[1]):
        waiting |= needs_frame(codes[:, layer])
        again[:, layer] = waiting & is_geometric(codes[:, layer])
        waiting &= ~again[:, layer]
    return again


def affine_maps(codes: Codes, args: Floats, side: int) -> Maps:
    """The map of every operation by itself, `(B, L, 3, 3)`; the identity where it moves nothing."""
    maps = np.broadcast_to(np.eye(3), (*codes.shape, 3, 3)).copy()
    angles = -np.radians(args)
    cosine, sine, middle = np.cos(angles), np.sin(angles), side / 2
    entries = {
        Op.ROTATE: {
            (0, 0): cosine,
            (0, 1): sine,
            (0, 2): middle * (1 - cosine - sine),
            (1, 0): -sine,
            (1, 1): cosine,
            (1, 2): middle * (1 - cosine + sine),
        },
        Op.SHEAR_X: {(0, 1): args},
        Op.SHEAR_Y: {(1, 0): args},
        Op.TRANSLATE_X: {(0, 2): args},
        Op.TRANSLATE_Y: {(1, 2): args},
    }
    for op, values in entries.items():
        drew = codes == op
        if drew.any():
            for (row, column), value in values.items():
                maps[drew, row, column] = value[drew]
    return maps


def composed_maps(maps: Maps, again: NDArray[np.bool_]) -> Maps:
    """Where the input of each layer lies under the image that is resampled, `(B, L + 1, 3, 3)`.

    Entry `l` composes the maps of layers `l`, `l + 1`, ... up to the next that is resampled
    `again`, `(B, L)`; entry `L` is the identity.
    """
    num_images, num_layers = maps.shape[:2]
    composed = np.broadcast_to(np.eye(3), (num_images, num_layers + 1, 3, 3)).copy()
    for layer in reversed(range(num_layers)):
        following = composed[:, layer + 1].copy()
        if layer + 1 < num_layers:
            following[again[:, layer + 1]] = np.eye(3)
        composed[:, layer] = maps[:, layer] @ following
    return composed


def flip_maps(flips: NDArray[np.bool_], side: int) -> Maps:
    """Mirror images left to right where `flips` says so, `(B, 3, 3)`."""
    maps = np.broadcast_to(np.eye(3), (len(flips), 3, 3)).copy()
    maps[flips, 0, 0] = -1
    maps[flips, 0, 2] = side
    return maps


def places(maps: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Where the pixel centres of the result lie in the input, x and y, each `(B, S, S)`.

    Args:
        maps: `(B, 3, 3)` on the device of the images; its dtype is that of the result.
        side: side of the result, px.
    """
    centres = torch.arange(side, device=maps.device, dtype=maps.dtype) + 0.5
    across, down = centres.view(1, 1, side), centres.view(1, side, 1)
    (ax, bx, cx), (ay, by, cy) = (
        [maps[:, row, column].view(-1, 1, 1) for column in range(3)] for row in range(2)
    )
    return ax * across + bx * down + cx, ay * across + by * down + cy


def inside(maps: Tensor, side: int) -> Tensor:
    """Which pixels of the result come from inside an S x S input, `(B, S, S)` bool."""
    x, y = places(maps, side)
    return (x >= 0) & (x < side) & (y >= 0) & (y < side)


def on_device(
    array: NDArray[Any], device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """A NumPy array as a tensor on the device, without waiting for what the device is doing.

    CUDA has copied memory that is not pinned before the call returns.
    """
    return torch.from_numpy(array).to(device, dtype, non_blocking=True)


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Per-channel values as `(3, 1, 1)` float32 on the device, copied there once."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)
