"""Exact graph surgery: the student as one module that takes raw pixels and gives three logits.

Legend: `B` images, `S` image side, `C` classes, `D` width.
"""

import torch
from torch import Tensor, nn

from deitlt.preprocess import PreprocessSpec
from deitlt.student import DeiTLT


class FusedStudent(nn.Module):
    """A student for deployment: uint8 pixels in, the average and both experts' logits out.

    Two exact rewritings, equal to the plain model up to float32 rounding:

    - Mean and standard deviation are folded into the patch embedding, `(x / 255 - mean) / std`
      being affine and the patch convolution linear without padding.
    - The mean of the two heads is one matrix product:
      `[c; d] . [W_cls; W_dist] / 2 + (b_cls + b_dist) / 2`.
    """

    def __init__(self, student: DeiTLT, preprocess: PreprocessSpec) -> None:
        super().__init__()
        self.student = student
        self.patch = fold_normalisation(student.patch_embed.proj, preprocess)
        self.average = average_heads(student.head, student.head_dist)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`logits, cls_logits, distillation_logits`, each `(B, C)`, of `(B, S, S, 3)` uint8."""
        patches = self.patch(images.permute(0, 3, 1, 2).float())
        tokens = self.student._pos_embed(patches.flatten(2).transpose(1, 2))
        tokens = self.student.norm(self.student.blocks(tokens)[:, :2])
        cls_logits = self.student.head(tokens[:, 0])
        distillation_logits = self.student.head_dist(tokens[:, 1])
        return self.average(tokens.flatten(1)), cls_logits, distillation_logits


def fold_normalisation(patch: nn.Conv2d, preprocess: PreprocessSpec) -> nn.Conv2d:
    """The patch convolution for pixels in 0 to 255 instead of normalised ones, folded in float64.

    conv(W, b)((x / 255 - m) / s) = conv(W / (255 s), b - sum W m / s)(x)
    """
    assert patch.padding == (0, 0), "with padding the fold is not exact"
    assert patch.bias is not None
    mean = torch.tensor(preprocess.mean, dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor(preprocess.std, dtype=torch.float64).view(1, 3, 1, 1)
    weight = patch.weight.detach().double()
    folded = nn.Conv2d(3, patch.out_channels, patch.kernel_size, patch.stride)  # type: ignore[arg-type]
    bias = patch.bias.detach().double() - (weight * mean / std).sum(dim=(1, 2, 3))
    folded.weight = nn.Parameter((weight / (255 * std)).float(), requires_grad=False)
    folded.bias = nn.Parameter(bias.float(), requires_grad=False)
    return folded


def average_heads(head: nn.Linear, head_dist: nn.Linear) -> nn.Linear:
    """The mean of both heads as one product over the concatenated tokens `[c; d]`, `(2 D,)`."""
    num_classes, width = head.weight.shape
    average = nn.Linear(2 * width, num_classes)
    weight = torch.cat([head.weight, head_dist.weight], dim=1).detach() / 2
    bias = (head.bias + head_dist.bias).detach() / 2
    average.weight = nn.Parameter(weight, requires_grad=False)
    average.bias = nn.Parameter(bias, requires_grad=False)
    return average
