"""PaCo against the numbers of its official code, resuming, SAM, and two processes.

Source: dvlab-research/Parametric-Contrastive-Learning fe56535, PaCo/LT/losses.py (PaCoLoss) and
PaCo/LT/moco/builder.py (MoCo, over PaCo/LT/models/resnet_cifar.py), run on a CPU in one gloo
process on the inputs and weights built here by NumPy's frozen generator.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from training.teachers.paco import PaCoMethod, paco_loss
from training.teachers.sam import sam_step

COUNTS = [40, 12, 5, 3]
ARCHITECTURE = {"name": "resnet32", "classifier": "linear", "num_classes": 4}
RNG = np.random.default_rng(0)  # PaCo draws nothing


def paco(**options: Any) -> PaCoMethod:
    return PaCoMethod(COUNTS, ARCHITECTURE, **{"queue_size": 12, "width": 16, **options})


def normal(generator: np.random.RandomState, *shape: int) -> Tensor:
    return torch.tensor(generator.standard_normal(shape), dtype=torch.float32)


def a_batch(generator: np.random.RandomState) -> tuple[list[Tensor], Tensor]:
    views = [normal(generator, 4, 3, 8, 8) for _ in range(2)]
    return views, torch.tensor(generator.randint(0, 4, 4))


@pytest.mark.parametrize(
    ("options", "supt", "official"),
    [
        ({"alpha": 0.05, "beta": 1.0, "gamma": 1.0, "temperature": 0.2}, 1.0, 5.0735679),
        ({"alpha": 0.01, "beta": 1.0, "gamma": 1.0, "temperature": 0.05}, 1.0, 13.884982),
        ({"alpha": 0.3, "beta": 0.8, "gamma": 0.5, "temperature": 0.1}, 2.0, 6.5594125),
    ],
)
def test_the_official_loss(options: dict[str, float], supt: float, official: float) -> None:
    features = F.normalize(normal(np.random.RandomState(0), 14, 8), dim=1)
    labels = torch.tensor([0, 3, 1, 0, 0, 3, 1, 0, 2, 0, 3, 1, 1, 0])
    prior = torch.tensor(COUNTS) / sum(COUNTS)
    centres = (normal(np.random.RandomState(1), 4, 4) + prior.log()) / supt
    loss = paco_loss(centres, features[:4], features[4:], labels[:4], labels[4:], **options)
    assert loss.item() == pytest.approx(official, rel=1e-6)


def test_four_official_steps_from_the_same_start() -> None:
    method = paco(alpha=0.05, momentum=0.9)
    generator = np.random.RandomState(7)
    with torch.no_grad():
        network = dict(method.encoder.network.named_parameters())
        head = [network.pop("linear.weight"), network.pop("linear.bias")]
        # The official order, in which the projector belongs to the encoder.
        for weight in [*network.values(), *method.encoder.projector.parameters(), *head]:
            drawn = normal(generator, *weight.shape)
            if weight.ndim == 1:
                weight.round_().add_(0.1 * drawn)  # rounded: batch norm's 1, or 0
            else:
                weight.copy_(drawn * (2 / weight[0].numel()) ** 0.5)
        method.momentum_encoder.load_state_dict(method.encoder.state_dict())
        method.queue.copy_(F.normalize(normal(generator, 12, 16), dim=1))
        method.queue_labels.copy_(torch.tensor(generator.randint(0, 4, 12)))
    optimizer = torch.optim.SGD(method.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    losses, queue_sums = [], []
    for _ in range(4):
        method.before_step()
        batch = method.batch(*a_batch(generator), RNG)
        loss = method(*batch, second_pass=False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(*batch)
        losses.append(loss.item())
        queue_sums.append(method.queue.sum().item())

    assert losses == pytest.approx([14.1224346, 12.8948574, 15.4861631, 12.9722948], rel=1e-4)
    assert queue_sums == pytest.approx([9.1083097, 15.4481049, 20.9336758, 20.2277260], rel=1e-4)
    assert method.queue_labels.tolist() == [0, 0, 2, 3, 0, 0, 0, 1, 1, 2, 3, 2]
    assert method.queue_start.item() == 4
    logits = method.eval().classifier(normal(generator, 2, 3, 8, 8))
    official = [
        [176.968643, 235.899139, 121.168900, 47.971317],
        [212.967026, 279.693420, 144.109131, 63.321203],
    ]
    np.testing.assert_allclose(logits.detach().numpy(), official, rtol=1e-3)


def test_both_passes_of_sam_see_the_same_keys_and_the_queue_moves_once() -> None:
    torch.manual_seed(0)
    method = paco()
    optimizer = torch.optim.SGD(method.parameters(), 0.1)
    batch = method.batch(*a_batch(np.random.RandomState(0)), RNG)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    passes: list[bool] = []

    def loss(second_pass: bool) -> Tensor:
        passes.append(second_pass)
        assert torch.equal(method.queue, before["queue"])
        value: Tensor = method(*batch, second_pass=second_pass)
        return value

    sam_step(method, optimizer, [loss], 0.1, freeze_batch_norm=True)
    assert passes == [False, True]
    for name, value in method.state_dict().items():
        if name.startswith(("momentum_encoder", "queue")):
            assert torch.equal(value, before[name]), name
    method.after_step(*batch)
    assert torch.equal(method.queue[:4], batch[1])
    assert torch.equal(method.queue[4:], before["queue"][4:])


def test_the_momentum_encoder_has_no_gradient_and_follows_before_its_keys() -> None:
    torch.manual_seed(0)
    method = paco(momentum=0.75)
    assert not any(p.requires_grad for p in method.momentum_encoder.parameters())
    fast, slow = (
        encoder.network.linear.get_parameter("weight")
        for encoder in (method.encoder, method.momentum_encoder)
    )
    start = slow.clone()
    with torch.no_grad():
        fast.add_(4.0)
    views, labels = a_batch(np.random.RandomState(0))
    method.before_step()
    _, keys, _ = method.batch(views, labels, RNG)
    torch.testing.assert_close(slow, start + 1.0)
    torch.testing.assert_close(method.momentum_encoder(views[1])[1], keys)
    assert not keys.requires_grad


def test_the_queue_goes_round_whatever_the_batch() -> None:
    method = paco(queue_size=6)
    for value in (1, 2):
        keys = torch.full((4, 16), float(value))
        method.after_step(torch.empty(0), keys, torch.full((4,), value))
    assert method.queue_labels.tolist() == [2, 2, 1, 1, 2, 2]
    assert method.queue[:, 0].tolist() == [2, 2, 1, 1, 2, 2]
    assert method.queue_start.item() == 2


def test_its_state_is_all_there_is() -> None:
    generator = np.random.RandomState(3)
    torch.manual_seed(0)
    first, other = paco(), paco()
    first.after_step(*first.batch(*a_batch(generator), RNG))
    other.load_state_dict(first.state_dict())
    views, labels = a_batch(generator)
    losses = [m(*m.batch(views, labels, RNG), second_pass=False) for m in (first, other)]
    assert torch.equal(losses[0], losses[1])


def queue_of_two(rank: int, folder: str) -> None:
    """One of two processes, each with keys of its own."""
    torch.set_num_threads(1)
    init = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
    torch.manual_seed(0)
    method = paco(queue_size=6)
    method.after_step(torch.empty(0), torch.full((2, 16), rank + 1.0), torch.full((2,), rank + 1))
    torch.save({"queue": method.queue, "labels": method.queue_labels}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_every_process_queues_the_keys_of_all(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(queue_of_two, range(2), [str(tmp_path)] * 2, timeout=120))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first["queue"], second["queue"])
    assert first["queue"][:4, 0].tolist() == [1, 1, 2, 2]
    assert torch.equal(first["labels"], second["labels"])
    assert first["labels"][:4].tolist() == [1, 1, 2, 2]
