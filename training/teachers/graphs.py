"""CUDA graphs for steps whose time goes into launching small kernels (SAM on small networks)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

# Steps run as they are before the first capture: libraries and the optimiser set themselves up.
WARM_UP = 3


class GraphedStep:
    """A training step, captured once and then replayed with other inputs.

    Every step is a real one: the first ones run eagerly on a side stream, then the next is captured
    and replayed. What is a Python number in the step (a radius) is a constant of the graph, so
    `forget` must be called when it changes; capturing empties torch's cache of memory and costs
    several eager steps.
    """

    def __init__(self) -> None:
        self._eager = 0
        self._stream: torch.cuda.Stream | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stale = False
        self._inputs: list[Tensor] = []
        self._output: Tensor | None = None

    def forget(self) -> None:
        """Capture anew at the next call."""
        self._stale = True

    def __call__(self, step: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """The output of `step(*inputs)`; shapes must be those of the calls before."""
        if self._eager < WARM_UP:
            self._eager += 1
            # One for all of them: the memory that a stream has had stays its own.
            if self._stream is None:
                self._stream = torch.cuda.Stream()
            stream = self._stream
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                output = step(*inputs)
            torch.cuda.current_stream().wait_stream(stream)
            return output
        if self._graph is None or self._stale:
            self._inputs = [tensor.clone() for tensor in inputs]
            graph = torch.cuda.CUDAGraph()
            # Another thread may be pinning the memory of coming batches meanwhile. The former graph
            # lives until this one is there: gradients still lie in its memory.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._output = step(*self._inputs)
            self._graph, self._stale = graph, False
        else:
            for kept, tensor in zip(self._inputs, inputs, strict=True):
                kept.copy_(tensor)
        self._graph.replay()
        assert self._output is not None
        return self._output.clone()


class GraphedSGD(torch.optim.SGD):
    """torch's SGD with momentum, whose learning rate may change between replays of a graph.

    torch's own takes the rate to the host, where a graph cannot follow it. State and groups are
    those of torch's, so resume points fit both. Differs from it by rounding: the rate multiplies
    the momentum before and not while it is added.

    Attributes:
        rate: the learning rate that is read, a scalar on the device; fill it when `lr` changes.
    """

    def __init__(
        self, weights: Sequence[nn.Parameter], lr: float, momentum: float, *, weight_decay: float
    ) -> None:
        super().__init__(weights, lr, momentum, weight_decay=weight_decay)
        self.rate = torch.full((), lr, device=weights[0].device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # SAM has two passes
        """One step of all weights that have a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            gradients = [weight.grad for weight in weights]
            momenta = [self._momentum(weight) for weight in weights]
            torch._foreach_mul_(momenta, group["momentum"])
            decayed = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
            torch._foreach_add_(momenta, decayed)
            torch._foreach_add_(weights, torch._foreach_mul(momenta, -self.rate))

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:  # in a warm-up step: a graph would make it anew at every replay
            state["momentum_buffer"] = torch.zeros_like(weight)
        momentum: Tensor = state["momentum_buffer"]
        return momentum
