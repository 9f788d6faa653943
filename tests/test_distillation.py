"""A student's step against the losses of section 3, written down by hand."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deitlt.labelled import LabelledImages, read_labelled
from deitlt.student import DeiTLT
from tests.distillation_support import COUNTS, CPU, Case

Tree = Callable[[Path, Mapping[str, int]], Path]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, class_tree: Tree) -> LabelledImages:
    counts = dict(zip("abc", COUNTS, strict=True))
    return read_labelled(class_tree(tmp_path_factory.mktemp("distil") / "data", counts))["all"]


def mixed_share(images: Tensor, seen: Tensor) -> float:
    """What an image kept of itself by mixup, read off the pixels."""
    away, difference = seen - images, images.flip(0) - images
    return 1 - float((away * difference).sum() / difference.square().sum())


def kept_share(images: Tensor, seen: Tensor) -> float:
    """What an image kept of itself by CutMix: all but the box that holds another's pixels."""
    changed = (seen != images).any(dim=1).any(dim=0)
    rows, columns = (torch.nonzero(changed.any(dim=dim)).flatten() for dim in (1, 0))
    box = (..., slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    assert torch.equal(seen[box], images.flip(0)[box])
    return 1 - len(rows) * len(columns) / changed.numel()


def soft_targets(labels: Tensor, share: float, smoothing: float) -> Tensor:
    hard = torch.full((len(labels), 3), smoothing / 3)
    hard[torch.arange(len(labels)), labels] = 1 - smoothing + smoothing / 3
    return share * hard + (1 - share) * hard.flip(0)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()


def drw_weights(beta: float) -> Tensor:
    raw = (1 - beta) / (1 - beta ** torch.tensor(COUNTS, dtype=torch.float64))
    return (raw / raw.sum() * 3).float()


@pytest.mark.parametrize(
    ("mixup", "cutmix", "share_of"), [(0.8, 0.0, mixed_share), (0.0, 1.0, kept_share)]
)
@pytest.mark.parametrize("alpha", [0.5, 0.2])
def test_a_step_has_the_losses_of_the_paper(
    images: LabelledImages,
    mixup: float,
    cutmix: float,
    share_of: Callable[[Tensor, Tensor], float],
    alpha: float,
) -> None:
    case = Case(images, mixup=mixup, cutmix=cutmix, alpha=alpha)
    batches, figures = case.step()
    expected = torch.zeros(5)
    total = torch.zeros(())
    for batch, seen in zip(batches, case.eyes.images, strict=True):
        targets = soft_targets(batch.labels, share_of(batch.views[0], seen), 0.1)
        cls, dist = case.before(seen)
        labels = case.teacher_logits(seen).argmax(dim=1)
        loss_cls = soft_cross_entropy(cls, targets)
        loss_dist = F.cross_entropy(dist, labels)
        loss = (1 - alpha) * loss_cls + alpha * loss_dist
        total = total + loss / 2
        tokens = case.before.forward_features(seen)
        unit = tokens / tokens.norm(dim=-1, keepdim=True)
        cosine = (unit[:, 0] * unit[:, 1]).sum(dim=1).mean()
        agreement = (labels == targets.argmax(dim=1)).float().mean()
        expected += torch.stack([loss, loss_cls, loss_dist, cosine, agreement]).detach()
    torch.testing.assert_close(figures, expected, rtol=1e-5, atol=1e-6)
    # Two micro-batches of 4 are one batch of 8: their gradients are averaged.
    total.backward()
    reference = dict(case.before.named_parameters())
    for name, gradient in case.gradients().items():
        torch.testing.assert_close(gradient, reference[name].grad, rtol=1e-3, atol=1e-5)


def test_figures_are_named_in_order(images: LabelledImages) -> None:
    named = ("loss", "loss_cls", "loss_dist", "cls_dist_cosine", "teacher_agreement")
    assert Case(images).learner.figures == named
    assert Case(images, distilled=False).learner.figures == ("loss",)


def test_mixing_is_drawn_anew_for_every_micro_batch_of_every_epoch(images: LabelledImages) -> None:
    case = Case(images, mixup=0.8, cutmix=0.0)
    batches, _ = case.step()
    shares = [
        mixed_share(batch.views[0], seen)
        for batch, seen in zip(batches, case.eyes.images, strict=True)
    ]
    assert abs(shares[0] - shares[1]) > 1e-3
    assert all(0 <= share <= 1 for share in shares)
    again, _ = case.step(epoch=1)
    shares += [
        mixed_share(batch.views[0], seen)
        for batch, seen in zip(again, case.eyes.images[2:], strict=True)
    ]
    assert len({round(share, 3) for share in shares}) == 4


def test_drw_weighs_dist_by_the_teachers_labels_and_leaves_images_unmixed(
    images: LabelledImages,
) -> None:
    case = Case(images)
    batches, figures = case.step(epoch=6)
    expected = torch.zeros(3)
    for batch, seen in zip(batches, case.eyes.images, strict=True):
        assert torch.equal(seen, batch.views[0])
        cls, dist = case.before(seen)
        labels = case.teacher_logits(seen).argmax(dim=1)
        weights = drw_weights(0.9)[labels]
        losses = -dist.log_softmax(dim=1)[torch.arange(4), labels]
        loss_dist = (weights * losses).sum() / weights.sum()
        loss_cls = F.cross_entropy(cls, batch.labels)  # hard labels, no smoothing, no weights
        expected += torch.stack([(loss_cls + loss_dist) / 2, loss_cls, loss_dist]).detach()
    torch.testing.assert_close(figures[:3], expected, rtol=1e-5, atol=1e-6)


def test_drw_keeps_mixing_where_the_recipe_says_so(images: LabelledImages) -> None:
    case = Case(images, mix_in_drw=True, mixup=0.8, cutmix=0.0)
    batches, figures = case.step(epoch=6)
    loss_cls = torch.zeros(())
    for batch, seen in zip(batches, case.eyes.images, strict=True):
        targets = soft_targets(batch.labels, mixed_share(batch.views[0], seen), 0.1)
        loss_cls = loss_cls + soft_cross_entropy(case.before(seen)[0], targets)
    assert figures[1].item() == pytest.approx(loss_cls.item(), rel=1e-5)


@pytest.mark.parametrize(("epoch", "adjusted"), [(5, False), (6, True)])
def test_cls_may_learn_otherwise_in_the_drw_phase(
    images: LabelledImages, epoch: int, adjusted: bool
) -> None:
    unmixed = {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0}
    case = Case(images, drw_cls_loss="balanced_softmax", **unmixed)
    batches, figures = case.step(epoch=epoch)
    prior = torch.tensor(COUNTS).float() / sum(COUNTS)
    expected = 0.0
    for batch in batches:
        logits = case.before(batch.views[0])[0] + adjusted * prior.log()
        expected += F.cross_entropy(logits, batch.labels).item()
    assert figures[1].item() == pytest.approx(expected, rel=1e-5)


def test_options_of_losses_are_those_of_the_recipe(images: LabelledImages) -> None:
    plain = {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.3}
    case = Case(images, cls_loss="bce", dist_loss="vs", loss_tau=0.5, loss_gamma=0.7, **plain)
    batches, figures = case.step()
    counts = torch.tensor(COUNTS).float()
    factor, offset = (counts / counts.max()) ** 0.7, 0.5 * (counts / counts.sum()).log()
    loss_cls = loss_dist = 0.0
    for batch in batches:
        cls, dist = case.before(batch.views[0])
        present = F.one_hot(batch.labels, 3).float()  # what smoothing adds is not presence
        loss_cls += F.binary_cross_entropy_with_logits(cls, present).item()
        labels = case.teacher_logits(batch.views[0]).argmax(dim=1)
        loss_dist += F.cross_entropy(factor * dist + offset, labels).item()
    assert figures[1:3].tolist() == pytest.approx([loss_cls, loss_dist], rel=1e-5)


def test_drw_weighs_the_labels_of_a_plain_transformer_if_asked(images: LabelledImages) -> None:
    for on_cls, weight in ((True, drw_weights(0.9)), (False, None)):
        case = Case(images, distilled=False, drw_on_cls=on_cls)
        batches, figures = case.step(epoch=6)
        expected = sum(
            F.cross_entropy(case.before(batch.views[0])[0], batch.labels, weight).item()
            for batch in batches
        )
        assert figures.tolist() == [pytest.approx(expected, rel=1e-5)]


@pytest.mark.parametrize("epoch", [0, 6])
def test_soft_distillation_learns_the_teachers_distribution(
    images: LabelledImages, epoch: int
) -> None:
    case = Case(images, distillation="soft", temperature=2.0)
    batches, figures = case.step(epoch=epoch)
    expected, agreement = 0.0, 0.0
    for batch, seen in zip(batches, case.eyes.images, strict=True):
        teacher = case.teacher_logits(seen)
        shares = (teacher / 2).softmax(dim=1)
        student = (case.before(seen)[1] / 2).log_softmax(dim=1)
        losses = 4 * (shares * (shares.log() - student)).sum(dim=1)
        labels = teacher.argmax(dim=1)
        weights = drw_weights(0.9)[labels] if epoch == 6 else torch.ones(4)
        expected += ((weights * losses).sum() / weights.sum()).item()
        if epoch == 6:
            agreement += (labels == batch.labels).float().mean().item()
    assert figures[2].item() == pytest.approx(expected, rel=1e-4)
    if epoch == 6:
        assert figures[4].item() == pytest.approx(agreement)


def test_an_incomplete_last_step_keeps_the_divisor_of_a_whole_one(images: LabelledImages) -> None:
    """26 images are 6 micro-batches of 4: a step of 4, and 2 that are still divided by 4."""
    case = Case(images, batch_size=16, distilled=False, mixup=0.0, cutmix=0.0)
    assert (case.feed.num_steps, case.feed.num_micro) == (2, 6)
    batches, _ = case.step(step=1)
    assert len(batches) == 2
    total = torch.zeros(())
    for batch in batches:
        targets = soft_targets(batch.labels, 1.0, 0.1)
        total = total + soft_cross_entropy(case.before(batch.views[0])[0], targets) / 4
    total.backward()
    reference = dict(case.before.named_parameters())
    for name, gradient in case.gradients().items():
        torch.testing.assert_close(gradient, reference[name].grad, rtol=1e-3, atol=1e-5)


def test_the_gradient_of_one_of_two_processes_counts_twice(images: LabelledImages) -> None:
    """DistributedDataParallel takes the mean of both; AdamW, blind to scale, would not notice."""
    alone, shared = Case(images), Case(images)
    shared.learner.world = replace(CPU, size=2)
    alone.step()
    shared.step()
    gradients = alone.gradients()
    for name, gradient in shared.gradients().items():
        torch.testing.assert_close(gradient, 2 * gradients[name], rtol=1e-3, atol=1e-6)


def test_the_rate_of_a_step_is_that_of_its_fraction_of_the_epoch(images: LabelledImages) -> None:
    """Warm-up of 5 epochs from 1e-6 to 2e-3; the second of two steps, after 4 of 6 parts."""
    case = Case(images, batch_size=16)
    case.step(epoch=2, step=1)
    rate = case.learner.optimizers[0].param_groups[0]["lr"]
    assert rate == pytest.approx(1e-6 + (2e-3 - 1e-6) * (2 + 4 / 6) / 5)


def test_averaged_weights_follow_with_their_decay(images: LabelledImages) -> None:
    case = Case(images, ema_decay=0.7, warmup_epochs=0)
    ema = case.learner.ema
    assert ema is not None
    kept: dict[str, Tensor] = {}
    for epoch in range(2):
        for number, step in enumerate(case.feed.steps(epoch)):
            case.learner.start_epoch(epoch)
            case.learner.step(epoch, number, step)
            for name, value in case.learner.student.named_parameters():
                now = value.detach().clone()
                kept[name] = 0.7 * kept[name] + 0.3 * now if name in kept else now
    for name, value in ema.module.named_parameters():
        torch.testing.assert_close(value.detach(), kept[name], rtol=1e-5, atol=1e-7)
    moved = dict(case.learner.student.named_parameters())
    assert not torch.allclose(kept["head.weight"], moved["head.weight"])


@pytest.mark.parametrize("distilled", [True, False])
def test_retraining_heads_leaves_the_features_as_they_are(
    images: LabelledImages, distilled: bool
) -> None:
    fields: dict[str, Any] = {"warmup_epochs": 0, "drop_path_rate": 0.5}
    case = Case(images, retrain_heads=True, distilled=distilled, **fields)
    batches, figures = case.step(epoch=6)
    student = case.learner.student
    before = case.before.state_dict()
    changed = {k for k, value in student.state_dict().items() if not torch.equal(value, before[k])}
    heads = {"head.weight", "head.bias"}
    heads |= {"head_dist.weight", "head_dist.bias"} if isinstance(student, DeiTLT) else set()
    assert changed == heads
    # No stochastic depth: the loss is that of the features as they will be deployed.
    cls = [case.before.eval()(batch.views[0])[0] for batch in batches]
    losses = [F.cross_entropy(c, b.labels).item() for c, b in zip(cls, batches, strict=True)]
    assert figures[1 if distilled else 0].item() == pytest.approx(sum(losses), rel=1e-5)


def test_stochastic_depth_follows_from_the_micro_batch_alone(images: LabelledImages) -> None:
    figures = []
    for noise in (1, 2):
        case = Case(images, drop_path_rate=0.5)
        torch.manual_seed(noise)
        np.random.seed(noise)
        figures.append(case.step()[1])
    assert torch.equal(figures[0], figures[1])
    still = Case(images, drop_path_rate=0.0).step()[1]
    assert not torch.allclose(still, figures[0])


def test_stochastic_depth_is_drawn_anew_for_every_micro_batch(images: LabelledImages) -> None:
    case = Case(images, drop_path_rate=0.5, mixup=0.0, cutmix=0.0)
    batch = next(case.feed.steps(0))[0]
    case.learner.start_epoch(0)
    losses = [
        case.learner._figures(0, [replace(batch, number=number)])[0, 1].item()
        for number in (0, 1, 0)
    ]
    assert losses[0] == losses[2] != losses[1]
