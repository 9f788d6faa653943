"""The attention of a student, block by block.

Fused attention never writes its weights down, so each block's are computed a second time from the
very input it gets; the block itself runs as it always does.

Legend: `B` images, `S` image side, `H` heads, `N` tokens (`P` experts, then patches), `D` width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deitlt.student import DeiTLT, PlainViT

Transformer = DeiTLT | PlainViT


@dataclass(frozen=True)
class BlockView:
    """What goes on in one block for a batch.

    Attributes:
        attention: weights `(B, H, N, N)` float32; rows (queries) sum to 1.
        tokens: the experts' tokens behind the block, `(B, P, D)` float32, before the final norm.
    """

    attention: Tensor
    tokens: Tensor


def experts(model: Transformer) -> tuple[str, ...]:
    """Names of the first `P` tokens: cls and dist, or cls alone of a plain transformer."""
    return ("cls", "dist") if isinstance(model, DeiTLT) else ("cls",)


def attention_weights(layer: Any, inputs: Tensor) -> Tensor:
    """Softmax attention `(B, H, N, N)` of a timm attention layer on its input `(B, N, D)`."""
    batch, num_tokens, _ = inputs.shape
    joined = layer.qkv(inputs).view(batch, num_tokens, 3, layer.num_heads, layer.head_dim)
    queries, keys, _ = joined.permute(2, 0, 3, 1, 4).unbind(0)
    scores = layer.q_norm(queries) @ layer.k_norm(keys).transpose(-2, -1)
    weights: Tensor = (scores * layer.scale).softmax(dim=-1)
    return weights


@torch.inference_mode()
def walk(model: Transformer, images: Tensor) -> Iterator[BlockView]:
    """The blocks of a student in eval mode on normalised images `(B, 3, S, S)`, in order.

    One block's attention is held at a time: `B * H * N * N` numbers.
    """
    num_experts = len(experts(model))
    tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    for block in model.blocks:
        attention = attention_weights(block.attn, block.norm1(tokens))
        tokens = block(tokens)
        yield BlockView(attention, tokens[:, :num_experts])
