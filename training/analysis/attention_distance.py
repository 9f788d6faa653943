"""How far the patches of an image look: mean attention distance of a head (figures 4b and S.3).

Legend: `B` images, `H` heads, `N` tokens (`P` experts, then `K` patches).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def patch_distances(grid: int, patch_size: int) -> NDArray[np.float32]:
    """Distance of the centres of any two patches of a square grid, `(K, K)`, px of the input."""
    rows, columns = np.divmod(np.arange(grid * grid), grid)
    down, across = (axis[:, None] - axis[None, :] for axis in (rows, columns))
    distances: NDArray[np.float32] = (patch_size * np.hypot(down, across)).astype(np.float32)
    return distances


def mean_attention_distance(attention: Tensor, num_experts: int, patch_size: int) -> Tensor:
    """Mean attention distance of each head and image, `(B, H)`, px of the input.

    Rows and columns of the experts are left out and what remains is not made to sum to 1 again, so
    attention to an expert counts as distance 0, as in the paper.

    Args:
        attention: `(B, H, N, N)`, rows sum to 1.
        num_experts: `P`.
        patch_size: side of a patch, px.
    """
    patches = attention[:, :, num_experts:, num_experts:]
    grid = round(patches.shape[-1] ** 0.5)
    distances = torch.from_numpy(patch_distances(grid, patch_size)).to(attention.device)
    return (patches * distances).sum(dim=-1).mean(dim=-1)


def uniform_distance(grid: int, patch_size: int, num_experts: int) -> float:
    """What `mean_attention_distance` is where every token is attended to alike, px."""
    num_patches = grid * grid
    mean = float(patch_distances(grid, patch_size).mean())
    return mean * num_patches / (num_patches + num_experts)
