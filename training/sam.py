"""Sharpness-aware minimisation (Foret et al. 2021), non-adaptive, in two passes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def sam_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], Tensor],
    rho: float,
    *,
    freeze_batch_norm: bool,
) -> Tensor:
    """One optimiser step; returns the loss at the unperturbed weights.

    The gradient at w climbs to w + rho g / |g| (no weight decay in g, |g| over all parameters); the
    gradient there is applied at w.

    Args:
        model: the model whose parameters `optimizer` holds.
        optimizer: any first-order optimiser.
        loss: computes the loss of the current batch with the current weights.
        rho: radius of the climb; 0 makes this a plain step.
        freeze_batch_norm: keep the second pass out of batch-norm's running statistics: they would
            be those of weights the model never has. The official teachers let both passes in.
    """
    optimizer.zero_grad(set_to_none=True)
    first = loss()
    first.backward()
    if rho > 0:
        weights: list[Tensor] = [p for p in model.parameters() if p.grad is not None]
        origin = _climb(weights, rho)
        optimizer.zero_grad(set_to_none=True)
        with frozen_batch_norm(model) if freeze_batch_norm else nullcontext():
            loss().backward()
        _return_to(weights, origin)
    optimizer.step()
    return first.detach()


@torch.no_grad()
def _climb(weights: list[Tensor], rho: float) -> list[Tensor]:
    """Move to the worst point of the neighbourhood; returns the values to come back to."""
    origin = [weight.clone() for weight in weights]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.add_(gradient * (rho / (norm + 1e-12)))
    return origin


@torch.no_grad()
def _return_to(weights: list[Tensor], origin: list[Tensor]) -> None:
    """Come back exactly: subtracting the climb would leave rounding in the weights."""
    for weight, value in zip(weights, origin, strict=True):
        weight.copy_(value)


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
