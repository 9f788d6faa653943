"""SAM against its closed form on a quadratic, micro-batches, and its treatment of batch norm."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from training.teachers.sam import climb, frozen_batch_norm, return_to, rho_at, sam_step


class Quadratic(nn.Module):
    """L(w) = w' A w / 2, whose gradient A w is known."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
        self.a = torch.diag(torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64))

    def forward(self, second_pass: bool) -> torch.Tensor:
        value: torch.Tensor = self.w @ self.a @ self.w / 2
        return value


@pytest.mark.parametrize("rho", [0.0, 0.3])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_step_takes_the_gradient_from_the_top_of_the_climb(
    rho: float, weight_decay: float
) -> None:
    model = Quadratic()
    w, a = model.w.detach().clone(), model.a
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=weight_decay)
    first = sam_step(model, optimizer, [model], rho, freeze_batch_norm=False)

    gradient = a @ w  # weight decay takes no part in the climb
    top = w + rho * gradient / gradient.norm()
    expected = w - 0.05 * (a @ top + weight_decay * w)  # and acts at w, not at the top
    torch.testing.assert_close(model.w.detach(), expected, rtol=1e-9, atol=1e-12)
    assert first.item() == pytest.approx((w @ a @ w / 2).item())


def test_the_norm_is_taken_over_all_parameters_together() -> None:
    model = nn.Linear(2, 1, bias=True).double()
    start = [p.detach().clone() for p in model.parameters()]
    seen: list[list[torch.Tensor]] = []
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)

    def loss(second_pass: bool) -> torch.Tensor:
        seen.append([p.detach().clone() for p in model.parameters()])
        total: torch.Tensor = model(x).sum()
        return total

    still = torch.optim.SGD(model.parameters(), lr=0.0)
    sam_step(model, still, [loss], 0.7, freeze_batch_norm=False)
    climb = torch.cat([(b - a).flatten() for a, b in zip(seen[0], seen[1], strict=True)])
    assert climb.norm().item() == pytest.approx(0.7)
    # Learning rate 0: the weights come back to the very bits they had.
    for before, after in zip(start, model.parameters(), strict=True):
        assert torch.equal(before, after)


def norm_after_step(freeze: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch norm's running mean after one SAM step, and the batch mean at the start weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    x = torch.randn(16, 3)
    with torch.no_grad():
        batch_mean = model[0](x).mean(dim=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sam_step(model, optimizer, [lambda _: model(x).pow(3).mean()], 2.0, freeze_batch_norm=freeze)
    assert isinstance(model[1], nn.BatchNorm1d)
    assert model[1].running_mean is not None
    assert model[1].momentum == 0.1
    return model[1].running_mean, batch_mean


def test_a_frozen_second_pass_leaves_the_statistics_of_the_first() -> None:
    running, batch_mean = norm_after_step(freeze=True)
    torch.testing.assert_close(running, 0.1 * batch_mean)


def test_both_passes_update_the_statistics_if_asked() -> None:
    running, batch_mean = norm_after_step(freeze=False)
    assert not torch.allclose(running, 0.1 * batch_mean, atol=1e-4)
    # A second update from another mean: 0.9 * first + 0.1 * second, so it lies beyond 0.15 of it.
    assert (running / batch_mean).abs().max() > 0.15


def test_freezing_ends_even_if_the_pass_fails() -> None:
    norm = nn.BatchNorm2d(2, momentum=0.3)

    def fail() -> None:
        with frozen_batch_norm(nn.Sequential(norm)):
            assert norm.momentum == 0
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert norm.momentum == 0.3


def test_micro_batches_are_one_batch_in_both_passes() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, dtype=torch.float64)
    ends, losses = [], []
    for parts in ([x], [x[:3], x[3:]]):
        torch.manual_seed(1)
        model = nn.Linear(3, 1).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        micro = [lambda _, m=model, part=part: m(part).pow(2).mean() for part in parts]
        losses.append(sam_step(model, optimizer, micro, 0.3, freeze_batch_norm=True))
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(ends[0], ends[1])
    torch.testing.assert_close(losses[0], losses[1])


def test_processes_meet_at_the_last_micro_batch_of_each_pass() -> None:
    model = Quadratic()
    events: list[str] = []

    @contextmanager
    def no_sync() -> Iterator[None]:
        events.append("alone")
        yield
        events.append("together")

    def loss(second_pass: bool) -> torch.Tensor:
        events.append("second" if second_pass else "first")
        value: torch.Tensor = model(second_pass)
        return value

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sam_step(model, optimizer, [loss, loss], 0.1, freeze_batch_norm=False, no_sync=no_sync)
    expected = ["alone", "first", "together", "first", "alone", "second", "together", "second"]
    assert events == expected


def test_climbing_and_coming_back_leaves_the_very_weights() -> None:
    weights = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))]
    start = [weight.detach().clone() for weight in weights]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    origin = climb(weights, 0.5)
    moved = torch.cat([(w - s).flatten() for w, s in zip(weights, start, strict=True)])
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-5)
    return_to(weights, origin)
    assert all(torch.equal(w, s) for w, s in zip(weights, start, strict=True))


def test_the_official_steps_of_the_radius() -> None:
    steps = ((0, 0.05), (5, 0.1), (60, 0.5), (75, 0.6))
    # Saddle-LongTail counts from 1: up to 5, up to 60, up to 75, beyond.
    assert [rho_at(epoch, steps) for epoch in (0, 4, 5, 59, 60, 74, 75, 89)] == [
        *(0.05, 0.05, 0.1, 0.1, 0.5, 0.5, 0.6, 0.6)
    ]
    assert rho_at(199, ((0, 0.8),)) == 0.8
    falling = ((0, 0.8), (10, 0.0), (20, 0.2))
    assert [rho_at(epoch, falling) for epoch in (9, 10, 20)] == [0.8, 0.0, 0.2]
