"""GLMC against the numbers of its official code, its mixing, and its schedule.

Source: val-iisc/Saddle-LongTail 48328fb, GLMC-2023/Trainer.py over model/ResNet_cifar.py (resnet34)
and utils/util.py (GLMC_mixed), epoch 3 of 5, run on a CPU with `.cuda()` made a no-op, under SAM in
double precision, on the weights, images and draws built or listed here. Under SAM that code stops
with a KeyError in its first step (the projector has no gradient in the first pass); gradients that
are missing were made zero to go on.
"""

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from training.teachers.glmc import GLMCMethod, cut_even
from training.teachers.sam import sam_step

COUNTS = [40, 12, 5, 3]
RESNET34 = {"name": "resnet34", "classifier": "linear", "num_classes": 4}
RESNET32 = {"name": "resnet32", "classifier": "linear", "num_classes": 4}


class Draws:
    """Answers with numbers drawn before: the share, and the centre of the box."""

    def __init__(self, share: float, *centre: int) -> None:
        self.share, self.centre = share, list(centre)

    def beta(self, a: float, b: float) -> float:
        assert a == b == 1
        return self.share

    def integers(self, high: int) -> int:
        assert high == 8
        return self.centre.pop(0)


def draws(share: float, *centre: int) -> np.random.Generator:
    return cast(np.random.Generator, Draws(share, *centre))


OFFICIAL_DRAWS = [
    (0.6125638605120026, 5, 7),
    (0.39819542107686523, 6, 1),
]


def normal(generator: np.random.RandomState, *shape: int) -> Tensor:
    return torch.tensor(generator.standard_normal(shape), dtype=torch.float32)


def half_batches(generator: np.random.RandomState) -> list[tuple[list[Tensor], Tensor]]:
    """Two batches of eight images in two views, with labels."""
    batches = []
    for _ in range(2):
        views = [normal(generator, 8, 3, 8, 8) for _ in range(2)]
        batches.append((views, torch.tensor(generator.randint(0, 4, 8))))
    return batches


@pytest.mark.parametrize(
    ("rho", "official"),
    [
        (0.0, [6.0459380, 5.3377481]),
        # First pass, second pass, and so on: the second has the consistency term.
        (0.05, [5.1439608, 9.6158145, 4.6461051, 9.1280380]),
    ],
)
def test_two_official_steps_from_the_same_start(rho: float, official: list[float]) -> None:
    method = GLMCMethod(COUNTS, RESNET34, contrast=4.0, sam=rho > 0)
    generator = np.random.RandomState(7)
    weights = dict(method.network.named_parameters())
    balanced = [weights.pop("linear.weight"), weights.pop("linear.bias")]
    order = [*weights.values(), *method.plain_head.parameters(), *balanced]
    order += [*method.predictor.parameters(), *method.projector.parameters()]
    assert sum(weight.numel() for weight in order) == 21_478_216
    with torch.no_grad():
        for weight in order:
            drawn = normal(generator, *weight.shape)
            if weight.ndim == 1:
                weight.round_().add_(0.1 * drawn)  # rounded: batch norm's 1, or 0
            else:
                weight.copy_(drawn * (2 / weight[0].numel()) ** 0.5)
    method.set_epoch(3, 5)
    optimizer = torch.optim.SGD(method.parameters(), 0.001, momentum=0.9, weight_decay=5e-3)
    losses: list[float] = []
    own, companions = half_batches(generator), half_batches(generator)
    for (views, labels), (more, more_labels), draw in zip(
        own, companions, OFFICIAL_DRAWS, strict=True
    ):
        both = [torch.cat(pair) for pair in zip(views, more, strict=True)]
        batch = method.batch(both, torch.cat([labels, more_labels]), draws(*draw))

        def loss(second_pass: bool, batch: tuple[Tensor, ...] = batch) -> Tensor:
            value: Tensor = method(*batch, second_pass=second_pass)
            losses.append(value.item())
            return value

        sam_step(method, optimizer, [loss], rho, freeze_batch_norm=False)
    # In double precision both agree to 1e-8; the steps amplify the rounding of single precision.
    assert losses == pytest.approx(official, rel=1e-3)


def test_its_class_weights_are_the_official_ones() -> None:
    method = GLMCMethod(COUNTS, RESNET32, contrast=1.0, sam=True)
    official = [0.10062888, 0.42675355, 1.22019887, 2.25241876]
    np.testing.assert_allclose(method.weight.numpy(), official, rtol=1e-6)


def test_one_share_mixes_the_first_view_and_pastes_into_the_second() -> None:
    method = GLMCMethod(COUNTS, RESNET32, contrast=1.0, sam=True)
    first, second = torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 8, 8)
    first[2:], second[2:] = 1.0, 2.0  # the companions
    labels = torch.tensor([0, 1, 3, 1])
    mixed, pasted, targets = method.batch([first, second], labels, draws(0.75, 4, 0))
    assert torch.equal(mixed, torch.full((2, 3, 8, 8), 0.25))
    # A box of side 8 sqrt(1 - 0.75) = 4 about (4, 0), half of it outside.
    expected = torch.zeros(2, 3, 8, 8)
    expected[:, :, 2:6, 0:2] = 2.0
    assert torch.equal(pasted, expected)
    assert torch.equal(targets, torch.tensor([[0.75, 0, 0, 0.25], [0, 1, 0, 0]]))
    assert second[:2].sum() == 0, "the views are left as they are"


def test_boxes_have_even_sides_that_never_leave_the_image() -> None:
    rng = np.random.default_rng(0)
    boxes = [cut_even(8, share, rng) for share in rng.uniform(size=200)]
    assert all(0 <= box.start <= box.stop <= 8 for box in boxes)
    inside = [box for box in boxes if box.start > 0 and box.stop < 8]
    assert all((box.stop - box.start) % 2 == 0 for box in inside)


def loss_parts(method: GLMCMethod, second_pass: bool) -> float:
    generator = np.random.RandomState(1)
    (views, labels), (more, more_labels) = half_batches(generator)
    both = [torch.cat(pair) for pair in zip(views, more, strict=True)]
    batch = method.batch(both, torch.cat([labels, more_labels]), draws(0.5, 3, 3))
    value: float = method(*batch, second_pass=second_pass).item()
    return value


@pytest.mark.parametrize("sam", [False, True])
def test_the_consistency_term_counts_in_the_last_pass(sam: bool) -> None:
    torch.manual_seed(0)
    method = GLMCMethod(COUNTS, RESNET32, contrast=2.0, sam=sam).eval()
    passes = [loss_parts(method, second) for second in (False, True)]
    assert (passes[0] != passes[1]) == sam


def test_the_first_pass_leaves_no_weight_without_a_gradient() -> None:
    torch.manual_seed(0)
    method = GLMCMethod(COUNTS, RESNET32, contrast=2.0, sam=True)
    batch = (torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8), torch.eye(4))
    method(*batch, second_pass=False).backward()
    assert all(weight.grad is not None for weight in method.parameters())
    projector: Any = method.projector.weight.grad
    assert projector.abs().max() == 0


def test_the_schedule_moves_from_the_plain_to_the_re_balanced_head() -> None:
    torch.manual_seed(0)
    method = GLMCMethod(COUNTS, RESNET32, contrast=0.0, sam=True).eval()
    totals = []
    for epoch in (0, 5, 10):
        method.set_epoch(epoch, 10)
        totals.append(loss_parts(method, False))
    assert totals[1] == pytest.approx(0.75 * totals[0] + 0.25 * totals[2], rel=1e-5)
    with torch.no_grad():
        method.plain_head.weight.zero_()
    assert loss_parts(method, False) == pytest.approx(totals[2])
    assert method.classifier.linear is method.network.linear
