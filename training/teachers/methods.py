"""Ways to train a teacher: what a method is, and the two whose loss is one head loss.

A method is a module that holds all it needs to go on (networks, queue, class weights of the epoch)
in parameters and buffers, so that `state_dict` resumes it exactly. A step is

    method.before_step()
    batch = method.batch(views, labels, rng)
    sam_step(..., [lambda second: method(*batch, second_pass=second)], ...)
    method.after_step(*batch)

Of several micro-batches each has its own `batch` and, after the optimiser's step, `after_step`.

Legend: `B` images, `S` image side, `C` classes.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from timm.data.mixup import mixup_target
from torch import Tensor, nn

from training.augmentation.mixing import mix
from training.losses import drw_weight, head_loss
from training.teachers.networks import Network, build_teacher, classifier_of


class TeacherMethod(nn.Module, ABC):
    """What the training program knows of a method.

    Attributes:
        num_views: random views of each image that `batch` takes.
        companions: whether each step brings a second, independently drawn batch, behind the first:
            `batch` then takes 2 B images.
    """

    num_views: ClassVar[int] = 1
    companions: ClassVar[bool] = False

    @property
    @abstractmethod
    def classifier(self) -> Network:
        """The network that is evaluated and saved as the teacher."""

    def set_epoch(self, epoch: int, epochs: int) -> None:  # not all have schedules
        """Move schedules to `epoch` (from 0) of `epochs`."""

    def before_step(self) -> None:  # not all have followers
        """Once a step, before its first `batch`: let what follows the weights follow."""

    @abstractmethod
    def batch(
        self, views: list[Tensor], labels: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, ...]:
        """What both passes compute the loss of; without gradient, once a micro-batch.

        Args:
            views: `num_views` tensors of normalised `(B, 3, S, S)` images.
            labels: their classes `(B,)`.
            rng: of this step.
        """

    @abstractmethod
    def forward(self, *batch: Tensor, second_pass: bool) -> Tensor:
        """Scalar loss of what `batch` gave; called twice a step under SAM."""

    def after_step(self, *batch: Tensor) -> None:  # not all remember
        """Once a micro-batch, the optimiser having moved: keep what later steps need of it."""


class LabelMethod(TeacherMethod):
    """One network, one head loss, deferred re-weighting, and mixed images if asked.

    Args:
        counts: training images of each class, `(C,)`.
        architecture: of the network, see `build_teacher`.
        loss: a head loss on its output.
        drw_epoch: first epoch, from 0, of deferred re-weighting.
        drw_beta: beta of its weights.
        mixup: mixup's alpha; 0 turns it off.
        cutmix: CutMix's alpha; 0 turns it off.
        label_smoothing: of the targets.
    """

    weight: Tensor

    def __init__(
        self,
        counts: ArrayLike,
        architecture: dict[str, Any],
        loss: nn.Module,
        *,
        drw_epoch: int,
        drw_beta: float = 0.9999,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = build_teacher(architecture)
        self.loss = loss
        self.counts = np.asarray(counts)
        self.drw_epoch, self.drw_beta = drw_epoch, drw_beta
        self.mixup, self.cutmix, self.label_smoothing = mixup, cutmix, label_smoothing
        # Equal weights are no weights: the loss is a weighted mean.
        self.register_buffer("weight", torch.ones(len(self.counts)))

    @property
    def classifier(self) -> Network:
        """The network."""
        return self.network

    def set_epoch(self, epoch: int, epochs: int) -> None:
        """Turn deferred re-weighting on in its epoch."""
        weight = drw_weight(self.counts, self.drw_beta, epoch, self.drw_epoch)
        self.weight.copy_(torch.ones_like(self.weight) if weight is None else weight)

    @torch.no_grad()
    def batch(
        self, views: list[Tensor], labels: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, ...]:
        """Images `(B, 3, S, S)`, mixed if asked, and targets, `(B,)` or `(B, C)` if soft."""
        (images,) = views
        mixing = self.mixup > 0 or self.cutmix > 0
        if not mixing and self.label_smoothing == 0:
            return images, labels
        share = 1.0
        if mixing:
            images, share = mix(images, rng, self.mixup, self.cutmix)
        return images, mixup_target(labels, len(self.counts), share, self.label_smoothing)

    def forward(self, *batch: Tensor, second_pass: bool) -> Tensor:
        """Scalar loss of images and targets; the same in both passes."""
        images, targets = batch
        loss: Tensor = self.loss(self.network(images).float(), targets, self.weight)
        return loss


class LDAMMethod(LabelMethod):
    """LDAM with deferred re-weighting (Cao et al. 2019) on cosines: the paper's first teacher.

    Args:
        counts: training images of each class, `(C,)`.
        architecture: of the network, with a cosine classifier.
        max_margin: margin of the rarest class.
        scale: factor on the cosines.
        options: see `LabelMethod`.
    """

    def __init__(
        self,
        counts: ArrayLike,
        architecture: dict[str, Any],
        *,
        max_margin: float = 0.5,
        scale: float = 30.0,
        **options: Any,
    ) -> None:
        assert classifier_of(architecture) == "cosine", "LDAM's margins are of cosines"
        loss = head_loss("ldam", counts, max_margin=max_margin, scale=scale)
        super().__init__(counts, architecture, loss, **options)


class CrossEntropyMethod(LabelMethod):
    """Cross-entropy: a plain teacher, or with mixing and smoothing a strongly augmented one.

    Args:
        counts: training images of each class, `(C,)`.
        architecture: of the network, with a linear classifier.
        options: see `LabelMethod`.
    """

    def __init__(self, counts: ArrayLike, architecture: dict[str, Any], **options: Any) -> None:
        assert classifier_of(architecture) == "linear", "cosines are no logits"
        super().__init__(counts, architecture, head_loss("ce", counts), **options)
