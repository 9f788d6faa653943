"""A teacher's step as a graph: whatever may change between two replays is read from memory.

The graphs are stand-ins that run on the CPU (`recorded_graph_support`).
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.recorded_graph_support import RecordedGraph, recorded_graphs
from training.config import TeacherRecipe
from training.engine.checkpoint import Progress, RunFolder
from training.engine.distributed import World
from training.engine.feed import MicroBatch
from training.engine.schedules import set_learning_rate
from training.recipes import teachers
from training.teachers.graphs import WARM_UP, GraphedSGD, GraphedStep
from training.teachers.learner import TeacherLearner, build_method

COUNTS = [40, 12, 5, 3]
CPU = World(torch.device("cpu"))
NETWORK: dict[str, Any] = {
    "batch_size": 4,
    "micro_batch_size": None,
    "epochs": 8,
    "warmup_epochs": 2,
    "decay_epochs": (3, 5),
}
# What changes: the rate in every epoch, class weights or their share, the radius.
RECIPES = {
    "ldam": replace(teachers.cifar(), drw_epoch=3, rho_epochs=(4,), rho_values=(0.1,), **NETWORK),
    "paco": replace(teachers.cifar_paco(), paco_queue=8, paco_width=16, **NETWORK),
    "glmc": replace(teachers.cifar_glmc(), network="resnet32", **NETWORK),
    "ce": replace(teachers.cifar_strong(), network="resnet32", drw_epoch=3, rho=0.05, **NETWORK),
}


@pytest.fixture
def graphs() -> Iterator[list[RecordedGraph]]:
    with recorded_graphs() as made:
        yield made


def learner_of(recipe: TeacherRecipe, *, graphed: bool) -> TeacherLearner:
    """A learner with the optimiser of a GPU, also where it has no graph."""
    torch.manual_seed(0)
    learner = TeacherLearner(recipe, build_method(recipe, COUNTS, 4), CPU, graphed=False)
    learner._graph = GraphedStep() if graphed else None
    former = learner.optimizers[0]
    options = {name: former.defaults[name] for name in ("lr", "momentum", "weight_decay")}
    learner.optimizers[0] = GraphedSGD(former.param_groups[0]["params"], **options)
    return learner


def batch_of(learner: TeacherLearner, number: int) -> MicroBatch:
    generator = torch.Generator().manual_seed(number)
    images = 8 if learner.method.companions else 4
    views = torch.randn(learner.method.num_views, images, 3, 16, 16, generator=generator)
    return MicroBatch(list(views), torch.randint(0, 4, (images,), generator=generator), number)


def train(learner: TeacherLearner, epochs: range) -> list[Tensor]:
    """Two steps an epoch; the loss of each."""
    losses = []
    for epoch in epochs:
        learner.start_epoch(epoch)
        for step in range(2):
            batch = batch_of(learner, 2 * epoch + step)
            losses.append(learner.step(epoch, step, [batch]).clone())
        learner.method.eval()  # as validation leaves it
    return losses


@pytest.mark.parametrize("name", RECIPES)
def test_replayed_steps_are_those_without_a_graph_to_the_bit(
    name: str, graphs: list[RecordedGraph]
) -> None:
    plain, graphed = (learner_of(RECIPES[name], graphed=kind) for kind in (False, True))
    assert train(graphed, range(6)) == train(plain, range(6))
    assert len(graphs) == (2 if name == "ldam" else 1)  # anew for another radius
    for mine, theirs in zip(states_of(graphed), states_of(plain), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", RECIPES)
def test_a_graph_reads_nothing_that_may_be_gone(name: str, graphs: list[RecordedGraph]) -> None:
    """Memory that was free again after the capture would hold something else at the next replay."""
    learner = learner_of(RECIPES[name], graphed=True)
    train(learner, range(3))
    assert learner._graph is not None
    (optimizer,) = learner.optimizers
    assert isinstance(optimizer, GraphedSGD)
    kept = [*states_of(learner), *learner._graph._inputs, optimizer.rate]
    places = {tensor.untyped_storage().data_ptr() for tensor in kept}
    assert graphs[0].external() <= places


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_learner_goes_on_to_the_bit(
    name: str, graphs: list[RecordedGraph], tmp_path: Path
) -> None:
    first, resumed = (learner_of(RECIPES[name], graphed=True) for _ in range(2))
    run = RunFolder(tmp_path)
    train(first, range(3))
    run.save(Progress(epoch=3), first.modules, first.optimizers, "")
    run.load(resumed.modules, resumed.optimizers, "")
    for weight, state in resumed.optimizers[0].state.items():
        assert state["momentum_buffer"].stride() == weight.stride()
    assert train(resumed, range(3, 6)) == train(first, range(3, 6))


def test_it_warms_up_before_it_captures(graphs: list[RecordedGraph]) -> None:
    step, weight = GraphedStep(), torch.zeros(())

    def add(value: Tensor) -> Tensor:
        weight.add_(value)
        return weight * 10

    outputs = []
    for number in range(1, WARM_UP + 4):
        outputs.append(step(add, torch.tensor(float(number))))
        assert len(graphs) == (number > WARM_UP)
    assert [float(output) for output in outputs] == [10, 30, 60, 100, 150, 210]
    step.forget()
    assert float(step(add, torch.tensor(7.0))) == 280
    assert len(graphs) == 2


def test_what_is_no_tensor_is_a_constant_of_the_graph(graphs: list[RecordedGraph]) -> None:
    """So the stand-in would notice a learning rate that the step reads as a number."""
    step, factor = GraphedStep(), 2.0
    for _ in range(WARM_UP + 1):
        assert float(step(lambda x: factor * x, torch.tensor(3.0))) == 6
    factor = 5.0
    assert float(step(lambda x: factor * x, torch.tensor(4.0))) == 8


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_its_optimiser_is_torchs_sgd(weight_decay: float) -> None:
    torch.manual_seed(0)
    start = [torch.randn(3, 2, dtype=torch.float64), torch.randn(4, dtype=torch.float64)]
    weights = [[nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2)]
    optimizers = (
        torch.optim.SGD(weights[0], 0.1, 0.9, weight_decay=weight_decay),
        GraphedSGD(weights[1], 0.1, 0.9, weight_decay=weight_decay),
    )
    for rate in (0.1, 0.25, 0.5):  # in single precision
        set_learning_rate(list(optimizers), rate)
        optimizers[1].rate.fill_(rate)
        for own in weights:
            for weight in own:
                weight.grad = weight.detach().sin()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-6, atol=1e-7)
    states = [list(optimizer.state_dict()["state"].values()) for optimizer in optimizers]
    torch.testing.assert_close(states[1], states[0], rtol=1e-6, atol=1e-7)


def states_of(learner: TeacherLearner) -> list[Tensor]:
    """Weights, buffers and momenta."""
    states = learner.optimizers[0].state.values()
    return [*learner.method.state_dict().values(), *(state["momentum_buffer"] for state in states)]
