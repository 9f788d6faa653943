"""A CUDA graph on a CPU: operations are written down once and then done again on the same memory.

As in a CUDA graph nothing happens while it is captured, a number of Python stays what it was then,
and a tensor is read where it lay.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Stream:
    """A stream that is always done."""

    def wait_stream(self, other: "Stream") -> None:
        """Nothing is under way."""


class RecordedGraph(TorchDispatchMode):
    """Stands in for `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[tuple[Any, tuple[Any, ...], Mapping[str, Any], list[Tensor]]] = []
        self._own: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        inputs = _tensors((args, kwargs))
        for tensor in inputs:
            place = _place(tensor)
            if place not in self._own and place not in self._before:
                self._before[place] = tensor, tensor.detach().clone()
        known = {_place(tensor) for tensor in inputs}
        result = func(*args, **kwargs)
        fresh = [tensor for tensor in _tensors(result) if _place(tensor) not in known]
        self._own |= {_place(tensor) for tensor in fresh}
        if fresh or func._schema.is_mutable:  # else a view
            self._calls.append((func, args, kwargs, fresh))
        return result

    def external(self) -> set[int]:
        """Addresses of the memory that the graph uses and has not made."""
        return set(self._before)

    def undo(self) -> None:
        """Make what was captured not have happened."""
        with torch.no_grad():
            for tensor, before in self._before.values():
                tensor.copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        """Do it all again."""
        for func, args, kwargs, fresh in self._calls:
            known = {_place(tensor) for tensor in _tensors((args, kwargs))}
            again = [t for t in _tensors(func(*args, **kwargs)) if _place(t) not in known]
            for kept, tensor in zip(fresh, again, strict=True):
                kept.copy_(tensor)


@contextmanager
def recorded_graphs() -> Iterator[list[RecordedGraph]]:
    """Let `torch.cuda` capture on the CPU; yields the graphs it has captured by now."""
    made: list[RecordedGraph] = []

    @contextmanager
    def capture(graph: RecordedGraph, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        with graph:
            yield
        graph.undo()
        made.append(graph)

    with (
        patch("torch.cuda.Stream", Stream),
        patch("torch.cuda.current_stream", Stream),
        patch("torch.cuda.stream", lambda _: nullcontext()),
        patch("torch.cuda.CUDAGraph", RecordedGraph),
        patch("torch.cuda.graph", capture),
    ):
        yield made


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
