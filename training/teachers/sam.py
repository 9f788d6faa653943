"""Sharpness-aware minimisation (Foret et al. 2021), non-adaptive, in two passes.

Nothing here reads a tensor's value on the host, so that a whole step can be captured in a CUDA
graph.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def sam_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Sequence[Callable[[bool], Tensor]],
    rho: float,
    *,
    freeze_batch_norm: bool,
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Tensor:
    """One optimiser step; returns the mean loss at the unperturbed weights.

    The gradient at w climbs to w + rho g / |g| (no weight decay in g, |g| over all parameters); the
    gradient there is applied at w.

    Args:
        model: the model whose parameters `optimizer` holds.
        optimizer: any first-order optimiser.
        losses: one a micro-batch; each computes its loss with the current weights and is told
            whether this is the second pass. Gradients are means over them, in both passes.
        rho: radius of the climb; 0 makes this a plain step.
        freeze_batch_norm: keep the second pass out of batch-norm's running statistics: they would
            be those of weights the model never has. The official teachers let both passes in.
        no_sync: DistributedDataParallel's `no_sync`, so that processes average their gradients with
            the last micro-batch of a pass only. All of them climb to the same point.
    """
    optimizer.zero_grad(set_to_none=True)
    loss = _accumulate(losses, False, no_sync)
    if rho > 0:
        weights = [p for p in model.parameters() if p.grad is not None]
        origin = climb(weights, rho)
        optimizer.zero_grad(set_to_none=True)
        with frozen_batch_norm(model) if freeze_batch_norm else nullcontext():
            _accumulate(losses, True, no_sync)
        return_to(weights, origin)
    optimizer.step()
    return loss


def rho_at(epoch: int, steps: Sequence[tuple[int, float]]) -> float:
    """The radius in `epoch` (from 0): that of the last of `steps`, (first epoch, rho), reached.

    `((0, 0.05), (5, 0.1), (60, 0.5))` is the schedule of the official ImageNet-LT teacher
    (Saddle-LongTail), which climbs further as re-weighting sets in. A constant is `((0, rho),)`.
    """
    assert steps[0][0] == 0, "the first step starts at epoch 0"
    return max((start, rho) for start, rho in steps if start <= epoch)[1]


@torch.no_grad()
def climb(weights: Sequence[Tensor], rho: float) -> list[Tensor]:
    """Move weights along their gradients, by `rho` in all; returns the values to come back to."""
    moving = list(weights)
    gradients = [weight.grad for weight in moving if weight.grad is not None]
    assert len(gradients) == len(moving), "a weight without a gradient cannot climb"
    origin = [torch.empty_like(weight) for weight in moving]
    torch._foreach_copy_(origin, moving)
    norm = torch.nn.utils.get_total_norm(gradients)
    torch._foreach_add_(moving, torch._foreach_mul(gradients, rho / (norm + 1e-12)))
    return origin


@torch.no_grad()
def return_to(weights: Sequence[Tensor], origin: Sequence[Tensor]) -> None:
    """Come back exactly: subtracting the climb would leave rounding in the weights."""
    torch._foreach_copy_(list(weights), list(origin))


@contextmanager
def frozen_batch_norm(model: nn.Module) -> Iterator[None]:
    """Batch-norm normalises by the batch as before, but its running statistics stand still."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _accumulate(
    losses: Sequence[Callable[[bool], Tensor]],
    second_pass: bool,
    no_sync: Callable[[], AbstractContextManager[None]],
) -> Tensor:
    """Back-propagate the mean of the losses; returns it, detached."""
    parts = []
    for index, loss in enumerate(losses):
        with nullcontext() if index == len(losses) - 1 else no_sync():
            part = loss(second_pass) / len(losses)
            part.backward()
        parts.append(part.detach())
    return torch.stack(parts).sum()
