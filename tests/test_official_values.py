"""Numbers that the official code gave on the very inputs built here (NumPy's frozen generator).

Sources, run on a CPU with `.cuda()` made a no-op, torch 2.15:
- val-iisc/DeiT-LT bc36970: losses.py (DistillationLossMultiCrop), main.py (class weights)
- kaidic/LDAM-DRW 2536330: losses.py
- vandit15/Class-balanced-loss-pytorch 921ccb8: class_balanced_loss.py
- orparask/VS-Loss 7ade9c9: class_imbalance/losses.py
- jiawei-ren/BalancedMetaSoftmax-Classification 34a61e4: loss/BalancedSoftmaxLoss.py
- facebookresearch/deit 7e160fe: engine.py and main.py, `--bce-loss`
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deitlt.longtail import effective_number_weights, exponential_counts
from training.losses import (
    HeadLoss,
    LDAMLoss,
    deit_lt_loss,
    drw_weight,
    head_loss,
    ldam_margins,
    soft_dist_loss,
)

COUNTS = [40, 12, 5, 3]
LABELS = torch.tensor([0, 3, 1, 2, 0, 1])
WEIGHT = torch.tensor([0.2, 0.7, 1.3, 1.8])
CROSS_ENTROPY = head_loss("ce", COUNTS)


def numbers(seed: int) -> Tensor:
    drawn = np.random.RandomState(seed).standard_normal((6, 4))
    return torch.tensor(drawn, dtype=torch.float32)


@pytest.mark.parametrize(
    ("num_classes", "largest", "factor", "official"),
    [
        (10, 5000, 100, {0: 0.050611, 1: 0.0769, 2: 0.121134, 3: 0.195037, 9: 3.992724}),
        (10, 5000, 50, {0: 0.08903, 1: 0.126678, 4: 0.416751, 8: 2.292257, 9: 3.520576}),
        (100, 500, 100, {0: 0.044876, 49: 0.430234, 99: 4.378313}),
        (100, 500, 50, {0: 0.078889, 49: 0.536296, 99: 3.849388}),
    ],
)
def test_class_weights_of_the_cifar_sets(
    num_classes: int, largest: int, factor: float, official: dict[int, float]
) -> None:
    weight = effective_number_weights(exponential_counts(largest, num_classes, factor))
    assert weight.sum() == pytest.approx(num_classes)
    for label, value in official.items():
        assert weight[label] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    ("counts", "official", "ratio"),
    [
        # The extremes of ImageNet-LT and iNaturalist 2018, with classes between them.
        ([1280, 400, 100, 20, 5], [0.015792, 0.048387, 0.19068, 0.949598, 3.795543], 240),
        ([1000, 118, 16, 2], [0.0073462, 0.0595948, 0.4372785, 3.4957805], 476),
    ],
)
def test_class_weights_of_large_sets(
    counts: list[int], official: list[float], ratio: float
) -> None:
    weight = effective_number_weights(counts)
    np.testing.assert_allclose(weight, official, atol=1e-6)
    assert weight[-1] / weight[0] == pytest.approx(ratio, abs=0.5)


def test_margins() -> None:
    official = [0.26165879, 0.35355338, 0.44005588, 0.5]
    np.testing.assert_allclose(ldam_margins(COUNTS, 0.5).numpy(), official, rtol=1e-6)
    cifar10_lt = exponential_counts(5000, 10, 100)
    margins = ldam_margins(cifar10_lt, 0.5).tolist()
    assert margins[0] == pytest.approx(0.15811388)
    assert margins[4] == pytest.approx(0.26382902)
    assert margins[8] == pytest.approx(0.44049704)


@pytest.mark.parametrize(
    ("max_margin", "weight", "official"),
    [(0.5, None, 19.5200787), (0.5, WEIGHT, 29.0667439), (0.3, None, 15.7029429)],
)
def test_ldam(max_margin: float, weight: Tensor | None, official: float) -> None:
    cosines = torch.tanh(numbers(0))
    loss = LDAMLoss(COUNTS, max_margin, 30.0)(cosines, LABELS, weight)
    assert loss.item() == pytest.approx(official, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "weight", "official"),
    [
        ("balanced_softmax", {}, None, 1.5988406),
        ("logit_adjustment", {"tau": 1.0}, None, 1.5988406),
        ("vs", {"gamma": 0.15, "tau": 1.25}, None, 1.7693229),
        ("vs", {"gamma": 0.15, "tau": 1.25}, WEIGHT, 3.0705137),
        ("cb_focal", {"beta": 0.9999, "gamma": 2.0}, None, 1.3510867),
        ("cb_focal", {"beta": 0.99, "gamma": 1.0}, None, 1.9083451),
    ],
)
def test_head_losses(
    name: HeadLoss, options: dict[str, Any], weight: Tensor | None, official: float
) -> None:
    loss = head_loss(name, COUNTS, **options)(numbers(0), LABELS, weight)
    assert loss.item() == pytest.approx(official, rel=1e-6)


def test_bce_of_mixed_images() -> None:
    mixed = [[0.7, 0.3, 0, 0], [0, 0, 1, 0], [0.5, 0, 0, 0.5], [0, 1, 0, 0], [0.9, 0, 0.1, 0]]
    targets = torch.tensor([*mixed, [0, 0, 0.4, 0.6]])
    loss = head_loss("bce", COUNTS)(numbers(0), targets)
    assert loss.item() == pytest.approx(0.7565027, rel=1e-6)


def test_distillation_before_re_weighting() -> None:
    targets = torch.softmax(numbers(1), dim=1)
    teacher = numbers(4)
    loss_cls = CROSS_ENTROPY(numbers(2), targets)
    loss_dist = CROSS_ENTROPY(numbers(3), teacher.argmax(dim=1))
    # The official code returns both terms already halved.
    assert 0.5 * loss_cls.item() == pytest.approx(0.8525746, rel=1e-6)
    assert 0.5 * loss_dist.item() == pytest.approx(1.0997449, rel=1e-6)
    assert deit_lt_loss(loss_cls, loss_dist, 0.5).item() == pytest.approx(1.9523195, rel=1e-6)


def test_distillation_in_the_re_weighting_phase() -> None:
    weight = drw_weight(COUNTS, 0.9999, epoch=1100, start=1100)
    assert weight is not None
    official = [0.1561074, 0.5196303, 1.2466763, 2.0775859]
    np.testing.assert_allclose(weight.numpy(), official, rtol=1e-6)
    loss_cls = CROSS_ENTROPY(numbers(2), LABELS)
    loss_dist = CROSS_ENTROPY(numbers(3), numbers(4).argmax(dim=1), weight)
    assert 0.5 * loss_cls.item() == pytest.approx(0.9743392, rel=1e-6)
    assert 0.5 * loss_dist.item() == pytest.approx(1.2021401, rel=1e-6)
    assert deit_lt_loss(loss_cls, loss_dist, 0.5).item() == pytest.approx(2.1764793, rel=1e-6)


def test_soft_distillation_without_weights_but_for_the_divisor() -> None:
    loss = soft_dist_loss(numbers(3), numbers(4), 3.0, None)
    num_classes = 4  # the official code divides by B C, this one by B
    assert 0.5 * loss.item() / num_classes == pytest.approx(0.0831511, rel=1e-5)
