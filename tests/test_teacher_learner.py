"""A teacher's steps, written down anew: SAM, momentum and the schedules of its recipe."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.config import TeacherRecipe
from training.engine.distributed import World
from training.engine.feed import MicroBatch
from training.recipes import teachers
from training.teachers.glmc import GLMCMethod
from training.teachers.learner import TeacherLearner, build_method
from training.teachers.paco import PaCoMethod

COUNTS = [40, 12, 5, 3]
SMALL: dict[str, Any] = {
    "network": "resnet32",
    "batch_size": 8,
    "micro_batch_size": 4,
    "epochs": 6,
    "warmup_epochs": 2,
    "drw_epoch": 4,
    "drw_beta": 0.9,
    "lr": 0.02,
    "momentum": 0.8,
    "weight_decay": 0.01,
    "schedule": "step",
    "decay_epochs": (3,),
    "decay_factor": 0.1,
    "rho": 0.05,
    "rho_epochs": (2, 4),
    "rho_values": (0.3, 0.0),
}
# Of each epoch: two of warm-up, a wider climb, a lower rate, and re-weighting without a climb.
RATES = [0.01, 0.02, 0.02, 0.002, 0.002]
RADII = [0.05, 0.05, 0.3, 0.3, 0.0]


def learner_of(recipe: TeacherRecipe) -> TeacherLearner:
    torch.manual_seed(0)
    method = build_method(recipe, COUNTS, 4)
    return TeacherLearner(recipe, method, World(torch.device("cpu")), graphed=False)


def batches_of(learner: TeacherLearner, epoch: int) -> list[MicroBatch]:
    generator = torch.Generator().manual_seed(epoch)
    views = torch.randn(2, learner.method.num_views, 4, 3, 16, 16, generator=generator)
    labels = torch.randint(0, 4, (2, 4), generator=generator)
    return [MicroBatch([*views[i]], labels[i], 2 * epoch + i) for i in range(2)]


def ldam(cosines: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    margins = torch.tensor([count**-0.25 for count in COUNTS])
    margin = 0.2 * margins / margins.max()
    scores = 20 * (cosines - nn.functional.one_hot(labels, 4) * margin)
    losses = scores.logsumexp(dim=1) - scores.gather(1, labels[:, None])[:, 0]
    return (weight[labels] * losses).sum() / weight[labels].sum()


@pytest.mark.parametrize("sam_batch_norm", ["first", "both"])
def test_its_steps_are_those_of_the_recipe(sam_batch_norm: Literal["first", "both"]) -> None:
    recipe = replace(
        teachers.cifar(), max_margin=0.2, scale=20.0, sam_batch_norm=sam_batch_norm, **SMALL
    )
    learner, other = learner_of(recipe), learner_of(recipe)
    network = other.method.classifier
    weights = list(network.parameters())
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    speed = [torch.zeros_like(weight) for weight in weights]
    number = np.array(COUNTS)
    effective = torch.tensor((1 - 0.9) / (1 - 0.9**number), dtype=torch.float32)
    for epoch, (rate, radius) in enumerate(zip(RATES, RADII, strict=True)):
        batches = batches_of(learner, epoch)
        learner.start_epoch(epoch)
        (found,) = learner.step(epoch, 0, batches).tolist()
        learner.method.eval()  # as validation leaves it
        weight = effective if epoch >= 4 else torch.ones(4)

        def gradient(
            batches: list[MicroBatch] = batches, weight: Tensor = weight
        ) -> tuple[float, tuple[Tensor, ...]]:
            losses = [ldam(network(b.views[0]), b.labels, weight) for b in batches]
            mean = torch.stack(losses).mean()
            return mean.item(), torch.autograd.grad(mean, weights)

        network.train()
        loss, climb = gradient()
        length = torch.cat([part.flatten() for part in climb]).norm()
        origin = [w.detach().clone() for w in weights]
        with torch.no_grad():
            for w, part in zip(weights, climb, strict=True):
                w.add_(radius * part / length)
        for norm in norms:
            norm.momentum = 0.1 if sam_batch_norm == "both" and radius else 0.0
        _, slope = gradient()
        for norm in norms:
            norm.momentum = 0.1
        with torch.no_grad():
            for w, start, part, v in zip(weights, origin, slope, speed, strict=True):
                v.mul_(0.8).add_(part + 0.01 * start)
                w.copy_(start - rate * v)
        assert found == pytest.approx(2 * loss, rel=1e-3)
        state = learner.method.classifier.state_dict()
        for name, value in state.items():
            if not name.endswith("num_batches_tracked"):
                right = network.state_dict()[name]
                torch.testing.assert_close(value, right, rtol=1e-3, atol=1e-4, msg=name)
        # So few images make much of the last bits, which depend on processor and threads.
        network.load_state_dict(state)


def test_paco_remembers_each_micro_batch_and_follows_once_a_step() -> None:
    recipe = replace(
        teachers.cifar_paco(),
        paco_queue=12,
        paco_momentum=0.75,
        **{**SMALL, "rho_epochs": (), "rho_values": ()},
    )
    learner = learner_of(recipe)
    method = learner.method
    assert isinstance(method, PaCoMethod)
    learner.start_epoch(0)
    slow = [weight.clone() for weight in method.momentum_encoder.parameters()]
    for epoch in range(2):
        learner.step(0, epoch, batches_of(learner, epoch))
        for own, fast in zip(slow, method.encoder.parameters(), strict=True):
            own.lerp_(fast.detach(), 0.25)  # as it will be at the beginning of the next step
    learner.step(0, 2, batches_of(learner, 2))
    for own, kept in zip(slow, method.momentum_encoder.parameters(), strict=True):
        torch.testing.assert_close(kept, own)
    seen = torch.cat([batch.labels for epoch in (1, 2) for batch in batches_of(learner, epoch)])
    # Of 24 images in a queue of 12 the last 12 are left.
    assert torch.equal(method.queue_labels, seen[4:])


def test_options_of_a_method_are_those_of_the_recipe() -> None:
    own: dict[str, Any] = {"paco_alpha": 0.02, "paco_temperature": 0.1, "paco_width": 8}
    paco = build_method(replace(teachers.cifar_paco(), paco_queue=256, **own), COUNTS, 4)
    assert isinstance(paco, PaCoMethod)
    assert (paco.alpha, paco.temperature, [*paco.queue.shape]) == (0.02, 0.1, [256, 8])
    for rho in (0.0, 0.1):
        recipe = replace(teachers.cifar_glmc(), glmc_contrast=2.0, glmc_power=0.5, rho=rho)
        glmc = build_method(recipe, COUNTS, 4)
        assert isinstance(glmc, GLMCMethod)
        assert (glmc.contrast, glmc.sam) == (2.0, rho > 0)
        assert (glmc.weight[1] / glmc.weight[0]).item() == pytest.approx((40 / 12) ** 0.5)
        learner = TeacherLearner(recipe, glmc, World(torch.device("cpu")), graphed=False)
        learner.start_epoch(recipe.epochs // 2)
        assert glmc.rebalancing.item() == 0.25
