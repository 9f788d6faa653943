"""The losses of teacher and student.

Legend: `B` images, `C` classes.
"""

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from deitlt.longtail import effective_number_weights


def ldam_margins(counts: ArrayLike, max_margin: float) -> Tensor:
    """Margins `(C,)` proportional to n_c^(-1/4), the largest being `max_margin` (LDAM, eq. 13)."""
    margins = torch.as_tensor(counts, dtype=torch.float64).pow(-0.25)
    return (margins / margins.max() * max_margin).float()


class LDAMLoss(nn.Module):
    """Label-distribution-aware margin loss on cosine logits (Cao et al. 2019).

    Cross-entropy of `scale * (cos - margin of the true class at the true class)`.
    """

    margins: Tensor

    def __init__(self, counts: ArrayLike, max_margin: float, scale: float) -> None:
        super().__init__()
        self.register_buffer("margins", ldam_margins(counts, max_margin))
        self.scale = scale

    def forward(self, cosines: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        """Scalar loss of `(B, C)` cosines and `(B,)` labels, under class weights `(C,)` if any."""
        margin = F.one_hot(labels, cosines.shape[1]) * self.margins[labels].unsqueeze(1)
        return F.cross_entropy(self.scale * (cosines - margin), labels, weight=weight)


def drw_weight(counts: ArrayLike, beta: float, epoch: int, start: int) -> Tensor | None:
    """Class weights `(C,)` of deferred re-weighting; None before epoch `start`."""
    if epoch < start:
        return None
    return torch.as_tensor(effective_number_weights(counts, beta), dtype=torch.float32)


def cls_loss(cls_logits: Tensor, targets: Tensor) -> Tensor:
    """Label loss of the head expert (L_CLS): cross-entropy with class indices or soft targets.

    Args:
        cls_logits: `(B, C)`.
        targets: class indices `(B,)`, or the mixed and smoothed distributions `(B, C)`.
    """
    return F.cross_entropy(cls_logits, targets)


def dist_loss(dist_logits: Tensor, teacher_labels: Tensor, weight: Tensor | None) -> Tensor:
    """Hard distillation loss of the tail expert (L_DIST), without smoothing or mixing.

    With `weight` it is `sum_b w_{y_b} l_b / sum_b w_{y_b}`, y the *teacher's* labels: the official
    code. Deviation from the paper, whose weights are not normalised.

    Args:
        dist_logits: `(B, C)`.
        teacher_labels: the teacher's predictions `(B,)` on the very images the student saw.
        weight: class weights `(C,)`, or None.
    """
    return F.cross_entropy(dist_logits, teacher_labels, weight=weight)


def deit_lt_loss(loss_cls: Tensor, loss_dist: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) L_CLS + alpha L_DIST: section 3.1 and the code; equation 1 omits the factors."""
    return (1 - alpha) * loss_cls + alpha * loss_dist
