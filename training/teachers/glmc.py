"""GLMC: global and local mixture consistency (Du et al. 2023), the strongest teacher of CIFAR-LT.

Two views of an image are mixed with a second, independently drawn batch, one by mixup and one by
CutMix, and have to agree. The weight of the labels moves over training from a plain head to a
re-balanced one, which is the teacher.

Legend: `B` images, `S` image side, `D` features, `C` classes.
"""

import math
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from training.augmentation.mixing import cut
from training.teachers.methods import TeacherMethod
from training.teachers.networks import Network, build_teacher, classifier_of

PROJECTION = 256


class GLMCMethod(TeacherMethod):
    """GLMC as Saddle-LongTail trains it, also under SAM.

    Its code leaves the consistency term out of SAM's first pass; as released it then stops with a
    KeyError, for the projector has no gradient to climb along. Here the term counts nothing in that
    pass, so the projector stays where it is.

    Args:
        counts: training images of each class, `(C,)`.
        architecture: of the network, with a linear classifier: the re-balanced head.
        contrast: weight of the consistency term.
        power: the re-balanced head weighs class c by n_c^-power.
        sam: whether there is a second pass, the one with the consistency term.
    """

    num_views: ClassVar[int] = 2
    companions: ClassVar[bool] = True
    weight: Tensor
    rebalancing: Tensor

    def __init__(
        self,
        counts: ArrayLike,
        architecture: dict[str, Any],
        *,
        contrast: float,
        power: float = 1.2,
        sam: bool,
    ) -> None:
        super().__init__()
        assert classifier_of(architecture) == "linear", "GLMC's heads are linear"
        self.network = build_teacher(architecture)
        assert isinstance(self.network.linear, nn.Linear)
        width, num_classes = self.network.linear.in_features, self.network.linear.out_features
        self.plain_head = nn.Linear(width, num_classes)
        self.projector = nn.Linear(width, PROJECTION)
        self.predictor = nn.Linear(PROJECTION, PROJECTION)
        self.contrast, self.sam = contrast, sam
        weight = np.asarray(counts, dtype=np.float64) ** -power
        weight *= len(weight) / weight.sum()
        self.register_buffer("weight", torch.as_tensor(weight, dtype=torch.float32))
        self.register_buffer("rebalancing", torch.zeros(()))

    @property
    def classifier(self) -> Network:
        """The network under the re-balanced head."""
        return self.network

    def set_epoch(self, epoch: int, epochs: int) -> None:
        """Weight of the re-balanced head, (epoch / epochs)^2."""
        self.rebalancing.fill_((epoch / epochs) ** 2)

    @torch.no_grad()
    def batch(
        self, views: list[Tensor], labels: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, ...]:
        """Images by mixup and by CutMix, `(B, 3, S, S)` each, and targets `(B, C)` of both.

        Views and labels are of 2 B images, the second half being the companions. As in the
        official code CutMix's targets follow the drawn share, though the border may cut its box.
        """
        first, companions = views[0].chunk(2)
        share = float(rng.beta(1.0, 1.0))
        mixed = share * first + (1 - share) * companions
        height, width = first.shape[-2:]
        rows = cut_even(height, share, rng)
        columns = cut_even(width, share, rng)
        pasted, companions = (half.clone() for half in views[1].chunk(2))
        pasted[:, :, rows, columns] = companions[:, :, rows, columns]
        own, others = F.one_hot(labels, len(self.weight)).float().chunk(2)
        return mixed, pasted, share * own + (1 - share) * others

    def forward(self, *batch: Tensor, second_pass: bool) -> Tensor:
        """Scalar loss of mixed images, pasted images and their targets."""
        mixed, pasted, targets = batch
        loss_mixed, projection_mixed = self._loss(mixed, targets)
        loss_pasted, projection_pasted = self._loss(pasted, targets)
        agreement = self._agreement(projection_mixed, projection_pasted)
        agreement = agreement + self._agreement(projection_pasted, projection_mixed)
        # Times zero rather than left out: DistributedDataParallel waits for every gradient.
        contrast = self.contrast if second_pass or not self.sam else 0.0
        return loss_mixed + loss_pasted - contrast * agreement

    def _loss(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Label loss of both heads, and projections `(B, P)`."""
        features = self.network.features(images)
        plain = F.cross_entropy(self.plain_head(features).float(), targets)
        # Not renormalised over the batch: torch does that for class indices only.
        balanced_logits = self.network.linear(features).float()
        balanced = F.cross_entropy(balanced_logits, targets, weight=self.weight)
        return torch.lerp(plain, balanced, self.rebalancing), self.projector(features)

    def _agreement(self, projection: Tensor, other: Tensor) -> Tensor:
        """Mean cosine of what one view predicts of the other, which is held still (SimSiam)."""
        prediction = self.predictor(projection).float()
        return F.cosine_similarity(prediction, other.detach().float(), dim=1).mean()


def cut_even(whole: int, share: float, rng: np.random.Generator) -> slice:
    """One side of the box: its length rounded up, half of that (rounded down) either way."""
    half = math.ceil(whole * math.sqrt(1 - share)) // 2
    return cut(2 * half, whole, rng)
