"""Losses against published values, timm's and torch's own functions, and the formulas by hand."""

import math

import numpy as np
import pytest
import torch
from timm.loss import SoftTargetCrossEntropy
from torch.nn import functional as F

from training.losses import LDAMLoss, cls_loss, deit_lt_loss, dist_loss, drw_weight, ldam_margins

CIFAR10_LT = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


def test_margins_follow_the_fourth_root_and_peak_at_the_rarest_class() -> None:
    margins = ldam_margins(CIFAR10_LT, max_margin=0.5)
    assert margins[-1] == pytest.approx(0.5)
    # n^(-1/4) by hand: the head's margin is (50 / 5000)^(1/4) of the tail's.
    assert margins[0] == pytest.approx(0.5 * (50 / 5000) ** 0.25, rel=1e-6)
    assert torch.all(margins.diff() > 0)


@pytest.mark.parametrize("weighted", [False, True])
def test_ldam_is_cross_entropy_of_scaled_cosines_less_the_true_margin(weighted: bool) -> None:
    torch.manual_seed(0)
    counts, scale = [40, 10, 5], 30.0
    cosines = torch.rand(6, 3) * 2 - 1
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    weight = torch.tensor([0.2, 0.9, 1.9]) if weighted else None
    loss = LDAMLoss(counts, 0.5, scale)(cosines, labels, weight)

    powers = [count**-0.25 for count in counts]
    total = mass = 0.0
    for row, label in zip(cosines.tolist(), labels.tolist(), strict=True):
        margin = 0.5 * powers[label] / max(powers)
        scores = [scale * (c - margin * (k == label)) for k, c in enumerate(row)]
        log_sum = math.log(sum(math.exp(score - max(scores)) for score in scores)) + max(scores)
        share = 1.0 if weight is None else float(weight[label])
        total += share * (log_sum - scores[label])
        mass += share
    assert loss.item() == pytest.approx(total / mass, rel=1e-5)


def test_re_weighting_starts_at_its_epoch_with_the_published_weights() -> None:
    assert drw_weight(CIFAR10_LT, 0.9999, epoch=1099, start=1100) is None
    weight = drw_weight(CIFAR10_LT, 0.9999, epoch=1100, start=1100)
    assert weight is not None
    published = [0.051, 0.077, 0.121, 0.195, 0.319, 0.525, 0.868, 1.443, 2.409, 3.993]
    np.testing.assert_allclose(weight.numpy(), published, atol=5e-4)


def test_label_loss_is_timms_soft_target_loss_and_plain_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, soft = torch.randn(5, 4), torch.softmax(torch.randn(5, 4), dim=1)
    torch.testing.assert_close(cls_loss(logits, soft), SoftTargetCrossEntropy()(logits, soft))
    hard = torch.tensor([0, 3, 1, 2, 0])
    picked = -F.log_softmax(logits, dim=1)[torch.arange(5), hard].mean()
    torch.testing.assert_close(cls_loss(logits, hard), picked)


def test_distillation_loss_is_renormalised_by_the_weights_of_the_teachers_labels() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 3)
    teacher_labels = torch.tensor([2, 0, 2, 1])
    weight = torch.tensor([0.1, 0.7, 2.2])
    per_image = -F.log_softmax(logits, dim=1)[torch.arange(4), teacher_labels]
    shares = weight[teacher_labels]
    expected = (shares * per_image).sum() / shares.sum()
    torch.testing.assert_close(dist_loss(logits, teacher_labels, weight), expected)
    torch.testing.assert_close(dist_loss(logits, teacher_labels, None), per_image.mean())


def test_the_two_losses_share_alpha() -> None:
    loss = deit_lt_loss(torch.tensor(2.0), torch.tensor(4.0), alpha=0.25)
    assert loss.item() == pytest.approx(2.5)
