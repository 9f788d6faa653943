"""Exact graph surgery: the student as one module, raw pixels in, logits and features out.

Legend: `B` images, `S` image side, `C` classes, `N` tokens (CLS, DIST, patches), `D` width.

Each step equals the plain model up to float32 rounding:

- The patch embedding, a convolution whose stride is its kernel, is one linear layer on the pixels
  of a patch. Mean and standard deviation are folded into it, `(x / 255 - mean) / std` being affine.
- CLS and DIST token take their position embedding beforehand.
- Attention's scale is folded into the query weights, LayerScale into the weights before it.
- The last block answers for the CLS and DIST rows only: nothing reads the others after it. Its keys
  and values are of all rows, its queries, projection and MLP of two.
- The mean of the two heads is one matrix product:
  `[c; d] . [W_cls; W_dist] / 2 + (b_cls + b_dist) / 2`.
- Drop-path and dropout, which do nothing in evaluation, are gone.

With `explain` the graph also says where both experts looked: attention rollout (Abnar and Zuidema
2020), as the paper's figures 5 and S.2 have it. A block hands on half the mean attention of its
heads and half the identity, the skip connection; rows sum to one. Only the CLS and DIST row of the
product are wanted, so it is taken from the last block backwards, two rows times a matrix each time.

Tokens run through the blocks as rows `(B N, D)` and not as `(B, N, D)`: so every linear layer
becomes one Gemm with its bias inside, which ONNX Runtime runs faster than a MatMul and an Add.
"""

from typing import Literal

import torch
from timm.layers import LayerScale
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from deitlt.preprocess import PreprocessSpec
from deitlt.student import DeiTLT

# How attention is written down: two matrix products and a softmax, the standard Attention operator
# of ONNX (opset 23), or PyTorch's own fused function.
Attention = Literal["matmul", "operator", "sdpa"]
# The middle of the range of pixels.
CENTRE = 128
# What goes in: uint8 RGB `(B, S, S, 3)`, or normalised float32 `(B, 3, S, S)`.
Input = Literal["pixels", "normalised"]


class FusedStudent(nn.Module):
    """A student for deployment: pixels in, the average and what both experts say out."""

    def __init__(
        self,
        student: DeiTLT,
        preprocess: PreprocessSpec,
        *,
        attention: Attention = "matmul",
        takes: Input = "pixels",
        experts: bool = True,
        explain: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Rewrite a student; it is left as it was.

        Args:
            student: in eval mode, on the CPU.
            preprocess: the normalisation it was trained with.
            attention: how attention is written down; the numbers are the same.
            takes: `pixels` as uint8 `(B, S, S, 3)`, or `normalised` float32 `(B, 3, S, S)`.
            experts: also give both experts' logits and features, not only the average.
            explain: also give both experts' rollouts; attention is `matmul` then.
            dtype: of all but the heads, which stay float32: logits are what answers are compared
                by. In float16 128 is taken off the pixels, see `fold_normalisation`.
        """
        super().__init__()
        assert not explain or (experts and attention == "matmul")
        self.attention, self.takes = attention, takes
        self.experts, self.explain = experts, explain
        self.width = student.embed_dim
        self.patch_size = student.patch_embed.patch_size[0]
        self.side = preprocess.img_size // self.patch_size
        self.dtype = dtype
        proj = student.patch_embed.proj
        self.centre = CENTRE if takes == "pixels" and dtype == torch.float16 else 0
        self.patch = (
            fold_normalisation(proj, preprocess, self.centre)
            if takes == "pixels"
            else flatten_patch(proj)
        )
        self.prefix, self.position = _fold_positions(student)
        num_tokens = 2 + self.side**2
        last = len(student.blocks) - 1
        self.blocks = nn.ModuleList(
            FusedBlock(
                block, num_tokens, attention, 2 if i == last else num_tokens, explain=explain
            )
            for i, block in enumerate(student.blocks)
        )
        self.norm = _copy_norm(student.norm)
        self.to(dtype)  # all but the heads, which come now
        self.head = _copy_linear(student.head)
        self.head_dist = _copy_linear(student.head_dist)
        self.average = average_heads(student.head, student.head_dist)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """`logits, cls_logits, distillation_logits`, each `(B, C)`, then the experts' features.

        Those are the CLS and the DIST row after the final norm, each `(B, D)`, what the heads read.
        Without `experts` it is `logits` alone; with `explain` the experts' rollouts over the
        patches follow, `(B, G, G)` each with `G` patches a side, as shares of all tokens.
        """
        patches = self.patch(self._patches(images)).reshape(-1, self.side**2, self.width)
        patches = patches + self.position
        # Broadcast to every image by adding zeros: `expand` would compute a shape, and ONNX Runtime
        # does that on the CPU, where a graph that is to run on a GPU alone must have no operator.
        prefix = self.prefix + 0 * patches[:, :1]
        rows = torch.cat([prefix, patches], dim=1).reshape(-1, self.width)
        attentions = []
        for block in self.blocks:
            rows, attention = block(rows)
            attentions.append(attention)
        tokens = self.norm(rows).float().reshape(-1, 2, self.width)
        logits = self.average(tokens.flatten(1))
        if not self.experts:
            return (logits,)
        cls, dist = tokens[:, 0], tokens[:, 1]
        answers = (logits, self.head(cls), self.head_dist(dist), cls, dist)
        return (*answers, *self._rollouts(attentions)) if self.explain else answers

    def _rollouts(self, attentions: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What CLS and DIST hold of each patch, from every block's mean attention `(B, ., N)`."""
        first = torch.eye(2, attentions[0].shape[-1])
        rolled = (attentions[-1] + first) / 2
        for attention in reversed(attentions[:-1]):
            rolled = (rolled @ attention + rolled) / 2
        maps = rolled[..., 2:].reshape(-1, 2, self.side, self.side)
        return maps[:, 0], maps[:, 1]

    def _patches(self, images: Tensor) -> Tensor:
        """The pixels of each patch as a row: row, column, channel or channel, row, column."""
        side, patch = self.side, self.patch_size
        if self.takes == "pixels":
            # Moved while they are bytes, a quarter of the traffic.
            rows = images.reshape(-1, side, patch, side, patch, 3).permute(0, 1, 3, 2, 4, 5)
        else:
            rows = images.reshape(-1, 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
        rows = rows.reshape(-1, 3 * patch * patch).to(self.dtype)
        return rows - self.centre if self.centre else rows


class FusedBlock(nn.Module):
    """One pre-norm block on rows: `(B N, D)` in, `(B num_rows, D)` out, the first of each image.

    With `explain` it also gives the mean attention of its heads, `(B, num_rows, N)`.
    """

    def __init__(
        self,
        block: Block,
        num_tokens: int,
        attention: Attention,
        num_rows: int,
        *,
        explain: bool = False,
    ) -> None:
        super().__init__()
        self.explain = explain
        plain = block.attn
        for part in (plain.q_norm, plain.k_norm, plain.norm):
            assert isinstance(part, nn.Identity), "normalised queries are not DeiT's"
        self.num_tokens, self.num_rows = num_tokens, num_rows
        self.num_heads, self.head_dim = plain.num_heads, plain.head_dim
        # With two queries an image there is nothing left that a fused operator could save.
        self.attention: Attention = attention if num_rows == num_tokens else "matmul"
        self.norm1, self.norm2 = _copy_norm(block.norm1), _copy_norm(block.norm2)
        scale = plain.head_dim**-0.5
        weights, biases = plain.qkv.weight.chunk(3), plain.qkv.bias.chunk(3)
        self.query = _linear(weights[0].double() * scale, biases[0].double() * scale)
        self.key, self.value = _linear(weights[1], biases[1]), _linear(weights[2], biases[2])
        self.proj = _scaled_linear(plain.proj, block.ls1)
        self.fc1 = _copy_linear(block.mlp.fc1)
        self.fc2 = _scaled_linear(block.mlp.fc2, block.ls2)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """The block's answer for the first `num_rows` rows of each image, and where they looked."""
        normed = self.norm1(rows)
        keys, values = self.key(normed), self.value(normed)
        if self.num_rows < self.num_tokens:
            rows, normed = self._first(rows), self._first(normed)
        attended, attention = self._attend(self.query(normed), keys, values)
        rows = rows + self.proj(attended)
        mlp: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(rows))))
        return rows + mlp, attention

    def _first(self, rows: Tensor) -> Tensor:
        width = rows.shape[-1]
        images = rows.reshape(-1, self.num_tokens, width)
        return images[:, : self.num_rows].reshape(-1, width)

    def _attend(
        self, queries: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Softmax attention; the scale is in the queries already."""
        width = queries.shape[-1]
        if self.attention == "operator":
            q, k, v = (rows.reshape(-1, self.num_tokens, width) for rows in (queries, keys, values))
            num_heads = self.num_heads
            attention: tuple[Tensor, ...] = torch.onnx.ops.attention(
                q, k, v, scale=1.0, q_num_heads=num_heads, kv_num_heads=num_heads
            )
            return attention[0].reshape(-1, width), None
        q = self._heads(queries, self.num_rows)
        k, v = self._heads(keys, self.num_tokens), self._heads(values, self.num_tokens)
        mean = None
        if self.attention == "sdpa":
            attended = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        else:
            weights = torch.softmax(q @ k.transpose(-2, -1), dim=-1)
            attended = weights @ v
            mean = weights.mean(dim=1) if self.explain else None
        return attended.transpose(1, 2).reshape(-1, width), mean

    def _heads(self, rows: Tensor, num_rows: int) -> Tensor:
        return rows.reshape(-1, num_rows, self.num_heads, self.head_dim).transpose(1, 2)


def fold_normalisation(patch: nn.Conv2d, preprocess: PreprocessSpec, centre: int = 0) -> nn.Linear:
    """The patch convolution as a layer on 0 to 255 pixels `(..., row x column x channel)`.

    W . (x / 255 - m) / s + b = (W / (255 s)) . x + (b - sum W m / s), folded in float64. A layer on
    x - c has b - sum W (m - c / 255) / s for a bias, which is small where c is near the mean: so
    float16 rounds what is left of an image, not the level all images share. It holds x - c exactly.

    Args:
        patch: the convolution.
        preprocess: the normalisation, `m` and `s`.
        centre: what is taken off the pixels beforehand, `c`.
    """
    weight, bias = _patch_weights(patch)
    mean = torch.tensor(preprocess.mean, dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor(preprocess.std, dtype=torch.float64).view(1, 3, 1, 1)
    bias = bias - (weight * (mean - centre / 255) / std).sum(dim=(1, 2, 3))
    return _linear((weight / (255 * std)).permute(0, 2, 3, 1).flatten(1), bias)


def flatten_patch(patch: nn.Conv2d) -> nn.Linear:
    """The patch convolution as a layer on normalised pixels `(..., channel x row x column)`."""
    weight, bias = _patch_weights(patch)
    return _linear(weight.flatten(1), bias)


def average_heads(head: nn.Linear, head_dist: nn.Linear) -> nn.Linear:
    """The mean of both heads as one product over the concatenated tokens `[c; d]`, `(2 D,)`."""
    weight = torch.cat([head.weight, head_dist.weight], dim=1) / 2
    return _linear(weight, (head.bias + head_dist.bias) / 2)


def _patch_weights(patch: nn.Conv2d) -> tuple[Tensor, Tensor]:
    assert patch.stride == patch.kernel_size, "patches overlap or leave gaps"
    assert patch.padding == (0, 0), "with padding the fold is not exact"
    assert patch.bias is not None
    return patch.weight.detach().double(), patch.bias.detach().double()


def _fold_positions(student: DeiTLT) -> tuple[nn.Parameter, nn.Parameter]:
    """CLS and DIST with their positions, `(1, 2, D)`, and those of the patches, `(1, N - 2, D)`."""
    tokens = torch.cat([student.cls_token, student.dist_token], dim=1)
    position = student.pos_embed
    return _constant(tokens + position[:, :2]), _constant(position[:, 2:])


def _scaled_linear(linear: nn.Linear, layer_scale: nn.Module) -> nn.Linear:
    """The layer with the LayerScale that follows it: gamma * (W x + b) = (gamma W) x + gamma b."""
    if not isinstance(layer_scale, LayerScale):
        return _copy_linear(linear)
    gamma = layer_scale.gamma.double()
    return _linear(linear.weight.double() * gamma[:, None], linear.bias.double() * gamma)


def _copy_linear(linear: nn.Linear) -> nn.Linear:
    return _linear(linear.weight, linear.bias)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight, linear.bias = _constant(weight), _constant(bias)
    return linear


def _copy_norm(norm: nn.LayerNorm) -> nn.LayerNorm:
    assert norm.weight is not None
    assert norm.bias is not None
    copy = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)
    copy.weight, copy.bias = _constant(norm.weight), _constant(norm.bias)
    return copy


def _constant(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().float().clone(), requires_grad=False)
