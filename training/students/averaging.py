"""The moving average of a student's weights."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from deitlt.student import DeiTLT, PlainViT


class AveragedStudent(AveragedModel):
    """torch's exponential moving average, without a wait for the GPU at every step.

    torch's own uploads its count of steps, from memory that is not pinned, and does not use it.
    A student has no buffers, so weights are all that is averaged.

    Args:
        student: averaged from its weights at the first update on.
        decay: share that the average keeps of itself an update.
    """

    def __init__(self, student: DeiTLT | PlainViT, decay: float) -> None:
        super().__init__(student)
        self.decay = decay

    @property
    def student(self) -> DeiTLT | PlainViT:
        """A student of averaged weights."""
        assert isinstance(self.module, DeiTLT | PlainViT)
        return self.module

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards a student's weights; the first time, to them."""
        own: list[Tensor] = list(self.student.parameters())
        new: list[Tensor] = list(model.parameters())
        if self.n_averaged == 0:  # lies on the CPU
            torch._foreach_copy_(own, new)
        else:
            torch._foreach_lerp_(own, new, 1 - self.decay)
        self.n_averaged += 1
