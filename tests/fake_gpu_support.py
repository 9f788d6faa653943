"""A GPU that is not there: tensors without numbers that know that they lie on `cuda`.

torch's FakeTensorMode works out shapes, types and devices only. As on a real GPU an operation on
tensors of different devices raises, and so does one whose result the host would have to know. What
does not raise, but makes the host wait, is written down: copies between host and device.

Not covered: kernels themselves, and the backward pass. Torch's engine wants a real device, so here
`backward` gives every weight that it would reach a gradient of the weight's own shape.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.augmentation.operations import constant

GPU = torch.device("cuda", 0)


class Watch(TorchDispatchMode):
    """What was asked of the device.

    Attributes:
        waits: operations that make the host wait for the device, with how often.
        uploads: copies to the device, of whatever kind.
        large_uploads: bytes of copies to the device that do not wait, beyond what the driver takes
            over at once.
        launched: operations on the device by name; about one kernel each, views left out.
    """

    # Of memory that is not pinned; CUDA C++ Programming Guide, "Concurrent execution between host
    # and device".
    STAGED_BYTES = 64 << 10

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.forget()

    def forget(self) -> None:
        """Start anew."""
        self.waits: Counter[str] = Counter()
        self.uploads = 0
        self.large_uploads: list[int] = []
        self.launched: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # asks for an attribute
            return func(*args, **kwargs)
        name = str(func.overloadpacket).removeprefix("aten.")
        result = func(*args, **kwargs)
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if name in ("_to_copy", "copy_"):
            # A copy in place goes from its second argument to its first.
            source, target = (args[1], args[0]) if name == "copy_" else (args[0], outputs[0])
            waits_not = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            if source.device.type != target.device.type:
                self.uploads += target.device.type == "cuda"
                if target.device.type == "cpu" or not waits_not:
                    self.waits[f"{name} {source.device.type} to {target.device.type}"] += 1
                elif target.nbytes > self.STAGED_BYTES:
                    self.large_uploads.append(target.nbytes)
        on_gpu = any(t.device.type == "cuda" for t in [*inputs, *outputs])
        if on_gpu and not getattr(func, "is_view", False) and name not in ("detach", "empty"):
            self.launched[name] += 1
        return result


def _backward(loss: Tensor, *_: Any, **__: Any) -> None:
    """Gradients of every weight that the loss was made from."""
    assert loss.device.type == "cuda"
    assert loss.ndim == 0
    open_, seen = [loss.grad_fn], set[Any]()
    while open_:
        node: Any = open_.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        open_ += [parent for parent, _ in node.next_functions]
        if hasattr(node, "variable"):
            weight = node.variable
            with torch.no_grad():
                gradient = torch.empty_like(weight)
                weight.grad = gradient if weight.grad is None else weight.grad + gradient


def _apply(
    self: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True
) -> nn.Module:
    """`Module.to` with new objects where something changes: torch cannot exchange fake ones."""
    for child in self.children() if recurse else ():
        child._apply(function)
    for name, weight in self._parameters.items():
        if weight is not None:
            moved = function(weight.detach())
            if moved.device != weight.device or moved.stride() != weight.stride():
                self._parameters[name] = nn.Parameter(moved, weight.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = function(buffer)
    return self


class _Generator(torch.Generator):
    """A generator that may be asked for on the GPU."""

    def __new__(cls, device: object = None) -> "_Generator":
        return super().__new__(cls)


@contextmanager
def fake_gpu() -> Iterator[Watch]:
    """All tensors made within are fake, and there seems to be a GPU for them to lie on."""
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        enter(patch("torch.cuda.is_bf16_supported", lambda *_: True))
        enter(patch("torch.nn.Module._apply", _apply))
        enter(patch("torch.Tensor.backward", _backward))
        enter(patch("torch.Generator", _Generator))
        enter(warnings.catch_warnings())
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        # Host arrays become tensors outside of its sight; they are CPU tensors all the same.
        enter(FakeTensorMode(allow_non_fake_inputs=True))
        constant.cache_clear()  # of another fake GPU
        yield enter(Watch())
