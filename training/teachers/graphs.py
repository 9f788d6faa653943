"""CUDA graphs for steps whose time goes into launching small kernels (SAM on small networks)."""

from collections.abc import Callable

import torch
from torch import Tensor

# Steps run as they are before the first capture: libraries and the optimiser set themselves up.
WARM_UP = 3


class GraphedStep:
    """A training step, captured once and then replayed with other inputs.

    Every step is a real one: the first ones run eagerly on a side stream, then the next is captured
    and replayed. What is a Python number in the step (a learning rate, a radius) is a constant of
    the graph, so `forget` must be called when it changes; capturing costs about one eager step.
    """

    def __init__(self) -> None:
        self._eager = 0
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
            stream = torch.cuda.Stream()
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
