"""The losses of teacher and student.

Every head loss is called alike, `loss(logits, targets, weight=None)`, and gives a scalar: `targets`
are class indices `(B,)` or distributions `(B, C)` (mixed, smoothed), `weight` class weights `(C,)`.
With a weight the result is `sum_b u_b l_b / sum_b u_b`, where u_b is the weight of image b's class
(as torch's cross-entropy has it) or, for a distribution, its expected weight `sum_c t_bc w_c`.

Logits come in single precision; under autocast the caller converts them.

Legend: `B` images, `C` classes, n_c training images of class c.
"""

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from deitlt.longtail import effective_number_weights

HeadLoss = Literal["ce", "bce", "balanced_softmax", "logit_adjustment", "cb_focal", "vs", "ldam"]
HEAD_LOSSES: tuple[HeadLoss, ...] = get_args(HeadLoss)


def head_loss(
    name: HeadLoss,
    counts: ArrayLike,
    *,
    tau: float = 1.0,
    gamma: float | None = None,
    beta: float = 0.9999,
    max_margin: float = 0.5,
    scale: float = 30.0,
    smoothing: float = 0.0,
) -> nn.Module:
    """The head loss of that name, for training counts `(C,)`; it holds buffers, so move it.

    - `ce`: cross-entropy.
    - `bce`: one binary problem a class, every class in a mixed image present (DeiT III).
    - `balanced_softmax`: cross-entropy of `logits + log prior` (Ren et al. 2020).
    - `logit_adjustment`: the same with `tau log prior` (Menon et al. 2021, eq. 10).
    - `cb_focal`: sigmoid focal loss under effective-number weights (Cui et al. 2019).
    - `vs`: vector scaling, `(n_c / n_max)^gamma logits + tau log prior` (Kini et al. 2021).
    - `ldam`: margins on cosines (Cao et al. 2019).

    Args:
        name: one of `HEAD_LOSSES`.
        counts: training images of each class, `(C,)`.
        tau: strength of the prior: `logit_adjustment`, `vs`.
        gamma: exponent of `vs` (0.15 if None) and of `cb_focal` (2 if None).
        beta: of the effective number: `cb_focal`.
        max_margin: margin of the rarest class: `ldam`.
        scale: factor on the cosines: `ldam`.
        smoothing: label smoothing in the targets, which `bce` does not take for presence.
    """
    array = np.asarray(counts, dtype=np.float64)
    log_prior = np.log(array / array.sum())
    even = np.ones_like(array)
    match name:
        case "ce":
            return SoftmaxLoss(even, 0 * log_prior)
        case "bce":
            return PresenceLoss(smoothing)
        case "balanced_softmax":
            return SoftmaxLoss(even, log_prior)
        case "logit_adjustment":
            return SoftmaxLoss(even, tau * log_prior)
        case "cb_focal":
            return FocalLoss(
                effective_number_weights(counts, beta), 2.0 if gamma is None else gamma
            )
        case "vs":
            exponent = 0.15 if gamma is None else gamma
            return SoftmaxLoss((array / array.max()) ** exponent, tau * log_prior)
        case "ldam":
            return LDAMLoss(counts, max_margin, scale)


class SoftmaxLoss(nn.Module):
    """Cross-entropy of `factor * logits + offset`, both `(C,)`."""

    factor: Tensor
    offset: Tensor

    def __init__(self, factor: ArrayLike, offset: ArrayLike) -> None:
        super().__init__()
        self.register_buffer("factor", torch.as_tensor(factor, dtype=torch.float32))
        self.register_buffer("offset", torch.as_tensor(offset, dtype=torch.float32))

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Scalar loss of `(B, C)` logits."""
        scores = self.factor * logits + self.offset
        return _mean(F.cross_entropy(scores, targets, reduction="none"), targets, weight)


class PresenceLoss(nn.Module):
    """Binary cross-entropy, mean over classes: DeiT III (facebookresearch/deit, `--bce-loss`).

    As there, a class that has any share of a mixed image is wholly present. Deviation: the share
    must exceed what label smoothing gives to every class (there smoothing would make all classes
    present, so it has to be 0).
    """

    def __init__(self, smoothing: float) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Scalar loss of `(B, C)` logits."""
        floor = 1.001 * self.smoothing / logits.shape[1]  # above the rounding of smoothed zeros
        present = (_distribution(targets, logits) > floor).to(logits.dtype)
        losses = F.binary_cross_entropy_with_logits(logits, present, reduction="none").mean(dim=1)
        return _mean(losses, targets, weight)


class FocalLoss(nn.Module):
    """Sigmoid focal loss, summed over classes, times the class weight of the image.

    Cui et al. 2019, section 4; with `weight` that one comes on top. On distributions each binary
    problem is the convex combination of "present" and "absent".
    """

    class_weight: Tensor

    def __init__(self, class_weight: ArrayLike, gamma: float) -> None:
        super().__init__()
        self.register_buffer("class_weight", torch.as_tensor(class_weight, dtype=torch.float32))
        self.gamma = gamma

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Scalar loss of `(B, C)` logits."""
        shares = _distribution(targets, logits)
        log_present, log_absent = F.logsigmoid(logits), F.logsigmoid(-logits)
        present = -torch.exp(self.gamma * log_absent) * log_present
        absent = -torch.exp(self.gamma * log_present) * log_absent
        losses = (shares * present + (1 - shares) * absent).sum(dim=1)
        return _mean(_expected(self.class_weight, targets) * losses, targets, weight)


class LDAMLoss(nn.Module):
    """Label-distribution-aware margin loss on cosine logits (Cao et al. 2019).

    Cross-entropy of `scale * (cos - margin of the true class at the true class)`. Of a distribution
    over classes it is the convex combination of the losses of each class (ours; LDAM has none).
    """

    margins: Tensor

    def __init__(self, counts: ArrayLike, max_margin: float, scale: float) -> None:
        super().__init__()
        self.register_buffer("margins", ldam_margins(counts, max_margin))
        self.scale = scale

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Scalar loss of `(B, C)` cosines."""
        if targets.ndim == 1:
            margin = F.one_hot(targets, logits.shape[1]) * self.margins[targets].unsqueeze(1)
            return F.cross_entropy(self.scale * (logits - margin), targets, weight=weight)
        return _mean((targets * self._of_each_class(logits)).sum(dim=1), targets, weight)

    def _of_each_class(self, cosines: Tensor) -> Tensor:
        """Losses `(B, C)`, as if each class in turn were the true one."""
        scores = self.scale * cosines
        own = scores - self.scale * self.margins
        # log sum of the other classes: log(1 - p) would lose all its digits as p nears 1, which
        # only the top class can, so that one is summed without itself.
        top = scores.argmax(dim=1, keepdim=True)
        share = scores.softmax(dim=1).scatter(1, top, 0.0)
        rest_of_top = scores.scatter(1, top, -torch.inf).logsumexp(dim=1, keepdim=True)
        rest = scores.logsumexp(dim=1, keepdim=True) + torch.log1p(-share)
        return F.softplus(rest.scatter(1, top, rest_of_top) - own)


def ldam_margins(counts: ArrayLike, max_margin: float) -> Tensor:
    """Margins `(C,)` proportional to n_c^(-1/4), the largest being `max_margin` (LDAM, eq. 13)."""
    margins = torch.as_tensor(counts, dtype=torch.float64).pow(-0.25)
    return (margins / margins.max() * max_margin).float()


def drw_weight(counts: ArrayLike, beta: float, epoch: int, start: int) -> Tensor | None:
    """Class weights `(C,)` of deferred re-weighting; None before epoch `start`.

    A student's go to its distillation loss only, by the *teacher's* labels. Since a head loss is a
    weighted mean, the batch renormalises them once more: the official code. Deviation from the
    paper, whose weights are not normalised.
    """
    if epoch < start:
        return None
    return torch.as_tensor(effective_number_weights(counts, beta), dtype=torch.float32)


def soft_dist_loss(
    dist_logits: Tensor, teacher_logits: Tensor, temperature: float, weight: Tensor | None
) -> Tensor:
    """Soft distillation: `T^2 KL(teacher / T || student / T)`, the mean over images (Hinton 2015).

    With `weight` an image counts as much as the class the teacher gives it, weights renormalised
    over the batch, as in a head loss. Deviations from the official code, which never used this
    branch: it divides by B C instead of B, and its weights multiply log-probabilities, which are
    then no distribution.

    Args:
        dist_logits: `(B, C)`.
        teacher_logits: the teacher's `(B, C)` logits (of a cosine classifier: times its scale).
        temperature: T; the square keeps gradients comparable across temperatures.
        weight: class weights `(C,)`, or None.
    """
    student = F.log_softmax(dist_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    losses = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)
    return temperature**2 * _mean(losses, teacher_logits.argmax(dim=1), weight)


def deit_lt_loss(loss_cls: Tensor, loss_dist: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) L_CLS + alpha L_DIST: section 3.1 and the code; equation 1 omits the factors.

    L_CLS is a head loss of the (mixed, smoothed) label; L_DIST one of the teacher's hard label,
    neither mixed nor smoothed, of the very images the student saw, or `soft_dist_loss`.
    """
    return (1 - alpha) * loss_cls + alpha * loss_dist


def _mean(losses: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of `(B,)` losses under class weights, renormalised over the batch."""
    if weight is None:
        return losses.mean()
    shares = _expected(weight, targets)
    return (shares * losses).sum() / shares.sum()


def _expected(weight: Tensor, targets: Tensor) -> Tensor:
    """The weight `(B,)` of each target: its class's, or the mean over its distribution."""
    return weight[targets] if targets.ndim == 1 else (targets * weight).sum(dim=1)


def _distribution(targets: Tensor, logits: Tensor) -> Tensor:
    """Targets as distributions `(B, C)`."""
    if targets.ndim == 2:
        return targets
    return F.one_hot(targets, logits.shape[1]).to(logits.dtype)
