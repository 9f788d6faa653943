"""Mixup and CutMix of a micro-batch with its own images in reverse order.

Legend: `B` images, `S` image side.
"""

import numpy as np
from torch import Tensor


def mix(
    images: Tensor, rng: np.random.Generator, mixup: float, cutmix: float
) -> tuple[Tensor, float]:
    """Images mixed with those in reverse order, and the share that each keeps of itself.

    timm's Mixup of a whole batch: mixup or CutMix, each half of the time if both are on; CutMix's
    share is that of the pixels. Deviation: a box of an odd side keeps the pixel that timm, which
    halves it, leaves out.

    Args:
        images: `(B, 3, S, S)`, left as they are.
        rng: draws one share (and box) for the batch.
        mixup: alpha of mixup; 0 turns it off.
        cutmix: alpha of CutMix; 0 turns it off.
    """
    box = cutmix > 0 and (mixup <= 0 or rng.random() < 0.5)
    alpha = cutmix if box else mixup
    share = float(rng.beta(alpha, alpha))
    others = images.flip(0)
    if not box:
        return share * images + (1 - share) * others, share
    height, width = images.shape[-2:]
    side = np.sqrt(1 - share)
    rows = cut(int(height * side), height, rng)
    columns = cut(int(width * side), width, rng)
    images = images.clone()
    images[:, :, rows, columns] = others[:, :, rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return images, 1 - area / (height * width)


def cut(length: int, whole: int, rng: np.random.Generator) -> slice:
    """An interval about a random centre in [0, `whole`), cut off at the borders."""
    centre = int(rng.integers(whole))
    return slice(max(centre - length // 2, 0), min(centre + (length + 1) // 2, whole))
