"""The flat CNN teacher of small images: ResNet-32 with a cosine classifier.

Legend: `B` images, `S` image side, `C` classes.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deitlt.errors import CheckpointError
from deitlt.weights import Card, load_weights


class CosineClassifier(nn.Module):
    """Linear layer on unit features with unit class vectors: its outputs are cosines."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, num_features).uniform_(-1, 1))
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight, dim=1))

    def forward(self, features: Tensor) -> Tensor:
        """`(B, C)` cosines of `(B, D)` features."""
        return F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions; a wider, smaller output takes the parameter-free shortcut A."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride = stride
        self.new_planes = planes - in_planes

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps of half the size where `stride` is 2."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.new_planes or self.stride != 1:
            # Option A of He et al. 2016: every second pixel, new channels zero, half on each side.
            half = self.new_planes // 2
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.new_planes - half)
            )
        return F.relu(out + x)


class ResNet32(nn.Module):
    """CIFAR's ResNet-32 (16, 32, 64 channels, five blocks each) with a cosine classifier."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, stride=1)
        self.layer2 = self._stage(16, 32, stride=2)
        self.layer3 = self._stage(32, 64, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        self.linear = CosineClassifier(64, num_classes)

    @staticmethod
    def _stage(in_planes: int, planes: int, stride: int) -> nn.Sequential:
        blocks = [BasicBlock(in_planes, planes, stride)]
        blocks += [BasicBlock(planes, planes, 1) for _ in range(4)]
        return nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        """Cosines `(B, C)` of normalised `(B, 3, S, S)` images."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        cosines: Tensor = self.linear(x.mean(dim=(2, 3)))
        return cosines


class Teacher:
    """A trained, frozen teacher that labels the student's own tensors."""

    def __init__(self, model: nn.Module, card: Card) -> None:
        self.model = model.eval().requires_grad_(False)
        self.card = card

    @torch.no_grad()
    def label(self, images: Tensor) -> Tensor:
        """Hard labels `(B,)` of the very `(B, 3, S, S)` tensor the student sees.

        Augmented, mixed and normalised for the student; only resized to the teacher's input
        (section 3.2, out-of-distribution distillation). Bicubic without anti-aliasing, as the
        official code with its torchvision does: from 224 to 32 px these are pixels 3, 10, 17, ...
        """
        side = self.card.preprocess.img_size
        if images.shape[-1] != side:
            images = F.interpolate(images, size=(side, side), mode="bicubic", antialias=False)
        cosines: Tensor = self.model(images)
        labels: Tensor = cosines.argmax(dim=1)
        return labels


def build_teacher(architecture: dict[str, Any]) -> nn.Module:
    """The model that a teacher's card describes.

    Raises:
        CheckpointError: an architecture this version does not know.
    """
    if architecture.get("name") != "resnet32":
        raise CheckpointError(f"unknown teacher architecture {architecture.get('name')!r}")
    return ResNet32(architecture["num_classes"])


def load_teacher(path: Path) -> Teacher:
    """A trained teacher on the CPU, from its run folder or weight file.

    Raises:
        CheckpointError: missing, damaged or not a teacher.
    """
    tensors, card = load_weights(path, "teacher")
    model = build_teacher(card.architecture)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its tensors do not fit its own card") from error
    return Teacher(model, card)
