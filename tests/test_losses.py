"""Losses against published values, timm's and torch's own functions, and the formulas by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import nn
from torch.nn import functional as F

from training.losses import (
    HEAD_LOSSES,
    HeadLoss,
    LDAMLoss,
    deit_lt_loss,
    drw_weight,
    head_loss,
    ldam_margins,
    soft_dist_loss,
)

CIFAR10_LT = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
COUNTS = [40, 12, 5, 3]
LABELS = torch.tensor([0, 3, 1, 2, 0, 1])
WEIGHT = torch.tensor([0.2, 0.7, 1.3, 1.8])


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
    weight = drw_weight([2, 1], 0.5, epoch=0, start=0)
    assert weight is not None
    # (1 - 1/2) / (1 - 1/4) and 1, scaled to sum to 2.
    np.testing.assert_allclose(weight.numpy(), [0.8, 1.2], rtol=1e-6)


def test_cross_entropy_is_timms_soft_target_loss_and_torchs_own() -> None:
    torch.manual_seed(0)
    loss = head_loss("ce", COUNTS)
    logits, soft = torch.randn(5, 4), torch.softmax(torch.randn(5, 4), dim=1)
    torch.testing.assert_close(loss(logits, soft), SoftTargetCrossEntropy()(logits, soft))
    hard = torch.tensor([0, 3, 1, 2, 0])
    torch.testing.assert_close(loss(logits, hard), F.cross_entropy(logits, hard))
    weighted = F.cross_entropy(logits, hard, weight=WEIGHT)
    torch.testing.assert_close(loss(logits, hard, WEIGHT), weighted)


def test_the_two_losses_share_alpha() -> None:
    loss = deit_lt_loss(torch.tensor(2.0), torch.tensor(4.0), alpha=0.25)
    assert loss.item() == pytest.approx(2.5)


def softmax_loss(scores: np.ndarray) -> float:
    """Mean cross-entropy of `LABELS`."""
    own = scores[np.arange(len(LABELS)), LABELS]
    return float((np.log(np.exp(scores).sum(axis=1)) - own).mean())


def focal_loss(logits: np.ndarray, gamma: float, beta: float) -> float:
    """Class-balanced focal loss of `LABELS` (Cui et al. 2019, equations 8 and 9)."""
    chances = 1 / (1 + np.exp(np.where(np.eye(4)[LABELS] == 1, -logits, logits)))
    losses = -((1 - chances) ** gamma * np.log(chances)).sum(axis=1)
    weight = (1 - beta) / (1 - beta ** np.array(COUNTS))
    return float((losses * (4 * weight / weight.sum())[LABELS]).mean())


@pytest.mark.parametrize(
    ("tau", "gamma", "beta", "margin"), [(1, None, 0.9999, 0.5), (0.6, 3, 0.9, 0.2)]
)
def test_options_of_head_losses_stand_where_the_formulas_have_them(
    tau: float, gamma: float | None, beta: float, margin: float
) -> None:
    logits = some_logits()
    given: dict[str, Any] = {
        "tau": tau,
        "gamma": gamma,
        "beta": beta,
        "max_margin": margin,
        "scale": 30.0,
    }
    options = {} if gamma is None else given  # the first row has the defaults
    z, counts = logits.double().numpy(), np.array(COUNTS)
    prior = np.log(counts / counts.sum())
    share = (counts / counts.max()) ** (0.15 if gamma is None else gamma)
    cosine = z - np.eye(4)[LABELS] * margin * (counts / counts.min()) ** -0.25
    right: dict[HeadLoss, float] = {
        "logit_adjustment": softmax_loss(z + tau * prior),
        "vs": softmax_loss(share * z + tau * prior),
        "cb_focal": focal_loss(z, 2 if gamma is None else gamma, beta),
        "ldam": softmax_loss(30 * cosine),
    }
    for name, expected in right.items():
        loss = head_loss(name, COUNTS, **options)
        assert loss(logits, LABELS).item() == pytest.approx(expected, rel=1e-5), name


def a_loss(name: HeadLoss) -> nn.Module:
    return head_loss(name, COUNTS, tau=0.7, scale=10.0)


def some_logits() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(6, 4) * 2 - 1


@pytest.mark.parametrize("name", HEAD_LOSSES)
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_one_hot_targets_are_class_indices(name: HeadLoss, weight: torch.Tensor | None) -> None:
    loss, logits = a_loss(name), some_logits()
    soft = loss(logits, F.one_hot(LABELS, 4).float(), weight)
    torch.testing.assert_close(soft, loss(logits, LABELS, weight))


@pytest.mark.parametrize("name", HEAD_LOSSES)
def test_class_weights_make_a_weighted_mean(name: HeadLoss) -> None:
    loss, logits = a_loss(name), some_logits()
    one_by_one = torch.stack([loss(logits[i : i + 1], LABELS[i : i + 1]) for i in range(6)])
    shares = WEIGHT[LABELS]
    expected = (shares * one_by_one).sum() / shares.sum()
    torch.testing.assert_close(loss(logits, LABELS, WEIGHT), expected)


# BCE takes every class of a mixture as present; cb_focal mixes its own weights apart.
@pytest.mark.parametrize("name", sorted(set(HEAD_LOSSES) - {"bce", "cb_focal"}))
def test_a_mixed_target_mixes_the_losses_and_the_weights(name: HeadLoss) -> None:
    loss, logits = a_loss(name), some_logits()
    share, others = 0.3, LABELS.flip(0)
    targets = share * F.one_hot(LABELS, 4) + (1 - share) * F.one_hot(others, 4)
    one_by_one = [
        share * loss(logits[i : i + 1], LABELS[i : i + 1])
        + (1 - share) * loss(logits[i : i + 1], others[i : i + 1])
        for i in range(6)
    ]
    torch.testing.assert_close(loss(logits, targets), torch.stack(one_by_one).mean())
    shares = share * WEIGHT[LABELS] + (1 - share) * WEIGHT[others]
    expected = (shares * torch.stack(one_by_one)).sum() / shares.sum()
    torch.testing.assert_close(loss(logits, targets, WEIGHT), expected)


def test_ldam_of_a_distribution_stays_exact_where_one_class_is_sure() -> None:
    cosines = torch.tensor([[1.0, -1.0, -0.9, -1.0], [-0.2, 0.99, 0.98, -1.0]], requires_grad=True)
    loss = head_loss("ldam", COUNTS, scale=30.0)
    for label in range(4):
        targets = F.one_hot(torch.tensor([label, label]), 4).float()
        hard = loss(cosines.double(), torch.tensor([label, label]))
        torch.testing.assert_close(loss(cosines, targets), hard.float(), rtol=1e-5, atol=0)
    soft = loss(cosines, torch.full((2, 4), 0.25))
    (gradient,) = torch.autograd.grad(soft, cosines)
    assert gradient.isfinite().all()


def test_presence_looks_past_label_smoothing() -> None:
    logits = some_logits()
    smoothed = mixup_target(LABELS, 4, lam=0.6, smoothing=0.1)
    plain = mixup_target(LABELS, 4, lam=0.6, smoothing=0.0)
    expected = a_loss("bce")(logits, plain)
    assert head_loss("bce", COUNTS, smoothing=0.1)(logits, smoothed) == expected
    assert expected == F.binary_cross_entropy_with_logits(logits, (plain > 0).float())


def test_soft_distillation_counts_each_image_as_the_class_the_teacher_gives_it() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    weight, temperature = torch.tensor([0.1, 0.7, 2.2]), 2.0
    p, q = (torch.softmax(logits / temperature, dim=1) for logits in (teacher, student))
    per_image = temperature**2 * (p * (p / q).log()).sum(dim=1)
    torch.testing.assert_close(soft_dist_loss(student, teacher, 2.0, None), per_image.mean())
    shares = weight[teacher.argmax(dim=1)]
    expected = (shares * per_image).sum() / shares.sum()
    torch.testing.assert_close(soft_dist_loss(student, teacher, 2.0, weight), expected)
    assert soft_dist_loss(teacher, teacher, 2.0, weight).abs() < 1e-6


@pytest.mark.parametrize("name", HEAD_LOSSES)
def test_head_losses_move_as_modules_do(name: HeadLoss) -> None:
    loss = a_loss(name).to("meta")
    assert all(buffer.is_meta for buffer in loss.buffers())
