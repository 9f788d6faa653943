"""A trained teacher, frozen, that answers for the student's own tensors.

Legend: `B` images, `S` image side, `C` classes.
"""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deitlt.errors import CheckpointError
from deitlt.preprocess import PreprocessSpec
from deitlt.student import COSINE_SCALE
from deitlt.weights import Card, load_weights
from training.teachers.networks import build_teacher, classifier_of

__all__ = ["Teacher", "build_teacher", "load_teacher"]


class Teacher(nn.Module):
    """A network that never trains, and the card it came with.

    Args:
        model: gives `(B, C)` cosines or logits of `(B, 3, S, S)` images.
        card: its card.
        source: preprocessing of the tensors it will be shown. With it they are re-normalised to the
            teacher's own mean and deviation. None is the official way, the tensor as it is: a
            CIFAR teacher then sees ImageNet's normalisation, a slightly flatter image.
    """

    gain: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, card: Card, source: PreprocessSpec | None = None) -> None:
        super().__init__()
        self.model = model
        self.card = card
        cosine = classifier_of(card.architecture) == "cosine"
        self.scale = float(card.recipe.get("scale", COSINE_SCALE)) if cosine else 1.0
        self.renormalise = source is not None
        gain, shift = _renormalisation(source or card.preprocess, card.preprocess)
        self.register_buffer("gain", gain, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.train(False).requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, even as part of a model that trains."""
        return super().train(False)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits `(B, C)`, of a cosine classifier times LDAM's scale, of the student's tensor.

        The very `(B, 3, S, S)` tensor the student sees, augmented and mixed; only resized to the
        teacher's input (section 3.2, out-of-distribution distillation). Bicubic without
        anti-aliasing, as the official code with its torchvision does: from 224 to 32 px these are
        pixels 3, 10, 17, ...
        """
        side = self.card.preprocess.img_size
        if images.shape[-1] != side:
            images = _resized(images, side)
        if self.renormalise:
            images = images * self.gain + self.shift
        scores: Tensor = self.model(images)
        return scores * self.scale

    def label(self, images: Tensor) -> Tensor:
        """Hard labels `(B,)` of the student's `(B, 3, S, S)` tensor."""
        return self.logits(images).argmax(dim=1)


def _resized(images: Tensor, side: int) -> Tensor:
    """Bicubic without anti-aliasing: `(B, 3, S, S)` to `(B, 3, side, side)`."""
    step, rest = divmod(images.shape[-1], side)
    if step % 2 and not rest:
        # Each pixel comes from the very middle of an odd number, so it is the one there. torch's
        # kernel, which spreads work over the pixels of one image, would leave most of a GPU idle.
        return images[..., step // 2 :: step, step // 2 :: step].contiguous()
    return F.interpolate(images, size=(side, side), mode="bicubic", antialias=False)


def load_teacher(path: Path, source: PreprocessSpec | None = None) -> Teacher:
    """A trained teacher on the CPU, from its run folder or weight file.

    Args:
        path: the run folder or weight file.
        source: see `Teacher`.

    Raises:
        CheckpointError: missing, damaged or not a teacher.
    """
    tensors, card = load_weights(path, "teacher")
    model = build_teacher(card.architecture)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its tensors do not fit its own card") from error
    return Teacher(model, card, source)


def _renormalisation(source: PreprocessSpec, own: PreprocessSpec) -> tuple[Tensor, Tensor]:
    """Gain and shift, `(3, 1, 1)`, from one normalisation to another: (x std + mean - m) / s."""
    mean, std = torch.tensor(source.mean), torch.tensor(source.std)
    own_mean, own_std = torch.tensor(own.mean), torch.tensor(own.std)
    gain, shift = std / own_std, (mean - own_mean) / own_std
    return gain.view(3, 1, 1), shift.view(3, 1, 1)
