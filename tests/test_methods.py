"""What every method promises, mixing against timm's, LDAM and cross-entropy."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup, mixup_target
from torch.nn import functional as F

from training.augmentation.mixing import mix
from training.losses import LDAMLoss, drw_weight
from training.teachers.glmc import GLMCMethod
from training.teachers.methods import CrossEntropyMethod, LDAMMethod, TeacherMethod
from training.teachers.paco import PaCoMethod
from training.teachers.sam import sam_step

COUNTS = [40, 12, 5, 3]
COSINE = {"name": "resnet32", "classifier": "cosine", "num_classes": 4}
LINEAR = {"name": "resnet32", "classifier": "linear", "num_classes": 4}


def method_of(name: str) -> TeacherMethod:
    torch.manual_seed(0)
    match name:
        case "ldam":
            return LDAMMethod(COUNTS, COSINE, drw_epoch=2)
        case "ce":
            return CrossEntropyMethod(COUNTS, LINEAR, drw_epoch=9, cutmix=1.0, mixup=0.8)
        case "paco":
            return PaCoMethod(COUNTS, LINEAR, queue_size=8, width=16)
        case _:
            return GLMCMethod(COUNTS, LINEAR, contrast=1.0, sam=True)


def train(method: TeacherMethod, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    """Steps as a function of their number, so that a run can go on in another object."""
    losses = []
    for step in steps:
        images = 8 if method.companions else 4
        generator = torch.Generator().manual_seed(step)
        shape = (method.num_views, images, 3, 8, 8)
        views = list(torch.randn(*shape, generator=generator))
        labels = torch.randint(0, 4, (images,), generator=generator)
        method.set_epoch(step, 4)
        batch = method.batch(views, labels, np.random.default_rng(step))
        assert not any(tensor.requires_grad for tensor in batch)
        passes = [lambda second, b=batch: method(*b, second_pass=second)]
        losses.append(sam_step(method, optimizer, passes, 0.05, freeze_batch_norm=True).item())
        method.after_step(*batch)
    return losses


@pytest.mark.parametrize("name", ["ldam", "ce", "paco", "glmc"])
def test_a_method_goes_on_from_its_state_to_the_bit(name: str) -> None:
    first, other = method_of(name), method_of(name)
    optimizers = [torch.optim.SGD(m.parameters(), 0.01, momentum=0.9) for m in (first, other)]
    train(first, optimizers[0], range(2))
    torch.manual_seed(1)  # what came before in the process has no say
    other.load_state_dict(first.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    steps = range(2, 4)
    assert train(first, optimizers[0], steps) == train(other, optimizers[1], steps)
    for a, b in zip(first.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["ldam", "ce", "paco", "glmc"])
def test_its_classifier_is_a_network_that_training_moves(name: str) -> None:
    method = method_of(name)
    classifier = method.classifier
    before = classifier.linear.get_parameter("weight").clone()
    train(method, torch.optim.SGD(method.parameters(), 0.01), range(3))
    assert method.classifier is classifier
    assert not torch.equal(classifier.linear.get_parameter("weight"), before)
    assert classifier.eval()(torch.randn(2, 3, 8, 8)).shape == (2, 4)


def test_ldam_is_re_weighted_from_its_epoch_on() -> None:
    method = method_of("ldam").eval()
    images, labels = torch.randn(6, 3, 8, 8), torch.tensor([0, 3, 1, 2, 0, 1])
    batch = method.batch([images], labels, np.random.default_rng(0))
    cosines, loss = method.classifier(images), LDAMLoss(COUNTS, 0.5, 30.0)
    for epoch in (0, 1, 2):
        method.set_epoch(epoch, 4)
        weight = drw_weight(COUNTS, 0.9999, epoch, start=2)
        expected = loss(cosines, labels, weight)
        torch.testing.assert_close(method(*batch, second_pass=False), expected)


def test_cross_entropy_takes_mixed_and_smoothed_targets() -> None:
    options: dict[str, Any] = {"drw_epoch": 9, "cutmix": 1.0, "label_smoothing": 0.1}
    method = CrossEntropyMethod(COUNTS, LINEAR, **options).eval()
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 3, 1, 2])
    batch = method.batch([images], labels, np.random.default_rng(0))
    mixed, share = mix(images, np.random.default_rng(0), 0.0, 1.0)
    assert torch.equal(batch[0], mixed)
    torch.testing.assert_close(batch[1], mixup_target(labels, 4, share, 0.1))
    expected = F.cross_entropy(method.classifier(mixed), batch[1])
    torch.testing.assert_close(method(*batch, second_pass=True), expected)


def test_labels_are_smoothed_without_mixing_too() -> None:
    method = CrossEntropyMethod(COUNTS, LINEAR, drw_epoch=9, label_smoothing=0.2)
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 3, 1, 2])
    batch = method.batch([images], labels, np.random.default_rng(0))
    assert batch[0] is images
    torch.testing.assert_close(batch[1], 0.8 * torch.eye(4)[labels] + 0.05)


def test_without_mixing_and_smoothing_labels_stay_hard() -> None:
    method = CrossEntropyMethod(COUNTS, LINEAR, drw_epoch=9)
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 3, 1, 2])
    batch = method.batch([images], labels, np.random.default_rng(0))
    assert batch[0] is images
    assert batch[1] is labels


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)])
def test_mixing_is_timms_on_the_same_draws(
    mixup: float, cutmix: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = set()
    for seed in range(12):
        images = torch.randn(4, 3, 9, 7)
        untouched = images.clone()
        ours, share = mix(images, np.random.default_rng(seed), mixup, cutmix)
        assert torch.equal(images, untouched)

        rng = np.random.default_rng(seed)
        always = [0.0]  # timm first draws whether to mix at all

        def uniform(always: list[float] = always, rng: np.random.Generator = rng) -> float:
            return always.pop() if always else rng.random()

        def integer(low: int, high: int, size: None, rng: np.random.Generator = rng) -> int:
            return int(rng.integers(low, high))

        monkeypatch.setattr(np.random, "rand", uniform)
        monkeypatch.setattr(np.random, "beta", rng.beta)
        monkeypatch.setattr(np.random, "randint", integer)
        theirs, targets = Mixup(mixup, cutmix, label_smoothing=0.1, num_classes=4)(
            images, torch.tensor([0, 1, 2, 3])
        )
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(targets, mixup_target(torch.arange(4), 4, share, 0.1))
        kinds.add(bool((ours == untouched).any()))
    assert len(kinds) == (2 if mixup and cutmix else 1)
