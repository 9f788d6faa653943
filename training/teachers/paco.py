"""PaCo: parametric contrastive learning (Cui et al. 2021), the paper's second teacher.

Of each image a view trains the network, and another one, through a slow copy of it, becomes a key.
An anchor is contrasted with class centres (the linear classifier, under a class prior) and, in one
softmax with them, with the keys of this batch and those in a queue.

Legend: `B` images, `S` image side, `D` features, `P` projection, `K` queue, `C` classes.
"""

import copy
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from training.teachers.methods import TeacherMethod
from training.teachers.networks import Network, build_teacher, classifier_of


class Encoder(nn.Module):
    """A network and the projector over its features."""

    def __init__(self, network: Network, num_features: int, width: int) -> None:
        super().__init__()
        self.network = network
        self.projector = nn.Sequential(
            nn.Linear(num_features, num_features),
            nn.BatchNorm1d(num_features),
            nn.ReLU(),
            nn.Linear(num_features, width),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(B, C)` and unit projections `(B, P)`, in single precision."""
        features = self.network.features(images)
        projections = F.normalize(self.projector(features).float(), dim=1)
        return self.network.linear(features).float(), projections


class PaCoMethod(TeacherMethod):
    """PaCo, also under SAM: both passes contrast with the same keys and the same queue.

    PaCo with SAM is published nowhere in detail. Here the momentum encoder and the queue move once
    a step, as without SAM.

    With several processes every one queues the keys of all, in the order of their ranks, so that
    the queue stays the same everywhere. Deviation from the official code: images are not shuffled
    among processes before the momentum encoder, so its batch-norm sees those of one process.

    Args:
        counts: training images of each class, `(C,)`.
        architecture: of the network, with a linear classifier.
        alpha: weight of each key of the anchor's class.
        beta: weight of the anchor's own class centre.
        gamma: share of the keys in the denominator.
        supt: divisor of the logits of class centres.
        temperature: divisor of the similarities of keys.
        queue_size: K.
        width: P.
        momentum: share the momentum encoder keeps of itself a step.
    """

    num_views: ClassVar[int] = 2
    log_prior: Tensor
    queue: Tensor
    queue_labels: Tensor
    queue_start: Tensor

    def __init__(
        self,
        counts: ArrayLike,
        architecture: dict[str, Any],
        *,
        alpha: float = 0.01,
        beta: float = 1.0,
        gamma: float = 1.0,
        supt: float = 1.0,
        temperature: float = 0.05,
        queue_size: int = 1024,
        width: int = 32,
        momentum: float = 0.999,
    ) -> None:
        super().__init__()
        assert classifier_of(architecture) == "linear", "PaCo's class centres have no fixed length"
        network = build_teacher(architecture)
        assert isinstance(network.linear, nn.Linear)
        self.encoder = Encoder(network, network.linear.in_features, width)
        self.momentum_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.supt, self.temperature, self.momentum = supt, temperature, momentum
        prior = torch.as_tensor(counts, dtype=torch.float32)
        self.register_buffer("log_prior", torch.log(prior / prior.sum() + 1e-9))
        # As in the official code the first keys and labels are noise, normalised along the queue:
        # too short to weigh in the few steps until real keys have taken their places.
        queue = F.normalize(torch.randn(queue_size, width), dim=0)
        self.register_buffer("queue", queue)
        self.register_buffer("queue_labels", torch.randint(0, len(prior), (queue_size,)))
        self.register_buffer("queue_start", torch.zeros((), dtype=torch.int64))

    @property
    def classifier(self) -> Network:
        """The trained network, without projector and prior."""
        return self.encoder.network

    @torch.no_grad()
    def before_step(self) -> None:
        """Move the momentum encoder towards the encoder."""
        slow: list[Tensor] = list(self.momentum_encoder.parameters())
        fast: list[Tensor] = list(self.encoder.parameters())
        torch._foreach_lerp_(slow, fast, 1 - self.momentum)

    @torch.no_grad()
    def batch(
        self, views: list[Tensor], labels: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, ...]:
        """The first views `(B, 3, S, S)`, keys `(B, P)` of the second, and labels `(B,)`."""
        images, second = views
        _, keys = self.momentum_encoder(second)
        return images, keys, labels

    def forward(self, *batch: Tensor, second_pass: bool) -> Tensor:
        """Scalar loss; the same in both passes."""
        images, keys, labels = batch
        logits, anchors = self.encoder(images)
        with torch.autocast(logits.device.type, enabled=False):
            return paco_loss(
                (logits + self.log_prior) / self.supt,
                anchors,
                torch.cat([keys, self.queue]),
                labels,
                torch.cat([labels, self.queue_labels]),
                alpha=self.alpha,
                beta=self.beta,
                gamma=self.gamma,
                temperature=self.temperature,
            )

    @torch.no_grad()
    def after_step(self, *batch: Tensor) -> None:
        """Queue this step's keys, of all processes, in place of the oldest."""
        _, keys, labels = batch
        keys, labels = _of_all_processes(keys), _of_all_processes(labels)
        size = len(self.queue)
        places = (self.queue_start + torch.arange(len(keys), device=keys.device)) % size
        self.queue.index_copy_(0, places, keys)
        self.queue_labels.index_copy_(0, places, labels)
        self.queue_start.copy_((self.queue_start + len(keys)) % size)


def paco_loss(
    centres: Tensor,
    anchors: Tensor,
    keys: Tensor,
    labels: Tensor,
    key_labels: Tensor,
    *,
    alpha: float,
    beta: float,
    gamma: float,
    temperature: float,
) -> Tensor:
    """Scalar loss, as the official code (dvlab-research/Parametric-Contrastive-Learning) has it.

    An anchor's loss is the weighted mean, over its own class centre (`beta`) and every key of its
    class (`alpha`), of -log softmax over all centres and all keys (these times `gamma` in the
    denominator). The other anchors of the batch are keys, too.

    Args:
        centres: `(B, C)` logits of class centres, under the prior.
        anchors: unit `(B, P)`, with gradient.
        keys: unit `(M, P)`, of this batch and the queue.
        labels: of the anchors, `(B,)`.
        key_labels: of the keys, `(M,)`.
        alpha: weight of a key of the anchor's class.
        beta: weight of its class centre.
        gamma: share of keys in the denominator.
        temperature: divisor of the similarities.
    """
    similarities = anchors @ torch.cat([anchors, keys]).T / temperature
    itself = torch.eye(len(anchors), similarities.shape[1], device=anchors.device, dtype=torch.bool)
    others = similarities.masked_fill(itself, -torch.inf) + np.log(gamma)
    log_sum = torch.cat([centres, others], dim=1).logsumexp(dim=1, keepdim=True)
    same = labels.unsqueeze(1) == torch.cat([labels, key_labels])
    weights = alpha * (same & ~itself)
    own = centres.gather(1, labels.unsqueeze(1))
    positives = beta * (own - log_sum) + (weights * (similarities - log_sum)).sum(1, keepdim=True)
    return -(positives / (beta + weights.sum(1, keepdim=True))).mean()


def _of_all_processes(tensor: Tensor) -> Tensor:
    """The tensors of all processes, one after the other."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return tensor
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    # The form that writes into one tensor has another name from torch 2.14 on.
    distributed.all_gather(parts, tensor)
    return torch.cat(parts)
