"""Attention rollout: how much of each patch has reached an expert through all blocks.

Source: Abnar and Zuidema 2020, as the paper uses it (figures 5 and S.2).

Legend: `B` images, `H` heads, `N` tokens (`P` experts, then `K` patches), `G` patches a side.
"""

import torch
from torch import Tensor


def roll(rolled: Tensor | None, attention: Tensor) -> Tensor:
    """The rollout `(B, N, N)` up to a block: what each of its outputs holds of each input token.

    The mean over heads, half of it and half of the identity (the skip connection), rows made to
    sum to 1, times the rollout of the blocks before.

    Args:
        rolled: of the blocks before, `(B, N, N)`; None before the first.
        attention: of this block, `(B, H, N, N)`.
    """
    mean = attention.mean(dim=1)
    mixed = (mean + torch.eye(mean.shape[-1], device=mean.device, dtype=mean.dtype)) / 2
    mixed = mixed / mixed.sum(dim=-1, keepdim=True)
    return mixed if rolled is None else mixed @ rolled


def expert_maps(rolled: Tensor, num_experts: int) -> Tensor:
    """The experts' rows of a rollout over the patches, `(B, P, G, G)`, as they are: not rescaled.

    Args:
        rolled: `(B, N, N)`.
        num_experts: `P`, the first tokens; the others are a square of patches.
    """
    patches = rolled[:, :num_experts, num_experts:]
    side = round(patches.shape[-1] ** 0.5)
    return patches.reshape(*patches.shape[:2], side, side)
