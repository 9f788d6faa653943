"""Convolutional networks of teachers: a body that gives features, and a classifier named `linear`.

Legend: `B` images, `S` image side, `D` features, `C` classes.
"""

from abc import ABC, abstractmethod
from typing import Any, Literal, get_args

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet50

from deitlt.errors import CheckpointError

Classifier = Literal["cosine", "linear"]


class CosineClassifier(nn.Module):
    """Linear layer on unit features with unit class vectors: its outputs are cosines."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, num_features).uniform_(-1, 1))
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight, dim=1))

    def forward(self, features: Tensor) -> Tensor:
        """`(B, C)` cosines of `(B, D)` features, in single precision also under autocast.

        LDAM multiplies them by 30: bfloat16's three digits would not survive that.
        """
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(F.normalize(features.float(), dim=1), F.normalize(self.weight, dim=1))


class Network(nn.Module, ABC):
    """What all teacher networks are: `linear(features(images))`."""

    linear: nn.Module

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """`(B, D)`, pooled, of normalised `(B, 3, S, S)` images."""

    def forward(self, images: Tensor) -> Tensor:
        """`(B, C)` cosines or logits of normalised `(B, 3, S, S)` images.

        The classifier stays in single precision: in bfloat16 close logits tie, and a tie goes to
        the lower index, which is the more frequent class.
        """
        features = self.features(images)
        with torch.autocast(features.device.type, enabled=False):
            scores: Tensor = self.linear(features.float())
        return scores


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions; a wider, smaller output takes shortcut A or B of He et al. 2016.

    A has no parameters: every second pixel, new channels zero, half on each side. B projects.
    """

    def __init__(self, in_planes: int, planes: int, stride: int, *, project: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_planes != planes:
            self.shortcut = PaddingShortcut(planes - in_planes, stride)
            if project:
                convolution = nn.Conv2d(in_planes, planes, 1, stride, bias=False)
                self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps of half the size where `stride` is 2."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class PaddingShortcut(nn.Module):
    """Shortcut A."""

    def __init__(self, new_planes: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before, self.after = new_planes // 2, new_planes - new_planes // 2

    def forward(self, x: Tensor) -> Tensor:
        """Every `stride`-th pixel, between channels of zeros."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


def _stage(in_planes: int, planes: int, blocks: int, stride: int, project: bool) -> nn.Sequential:
    """Blocks of one width, the first of which changes width and size."""
    first = BasicBlock(in_planes, planes, stride, project=project)
    rest = [BasicBlock(planes, planes, 1, project=project) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


class ResNet32(Network):
    """CIFAR's ResNet-32: 16, 32, 64 channels, five blocks each, shortcut A (LDAM-DRW's, PaCo's)."""

    def __init__(self, num_classes: int, classifier: Classifier = "cosine") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 5, stride=1, project=False)
        self.layer2 = _stage(16, 32, 5, stride=2, project=False)
        self.layer3 = _stage(32, 64, 5, stride=2, project=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        self.linear = _classifier(classifier, 64, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """`(B, 64)` of normalised `(B, 3, S, S)` images."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        pooled: Tensor = x.mean(dim=(2, 3))
        return pooled


class ResNet34(Network):
    """GLMC's ResNet-34 for CIFAR: 3 x 3 stem, no pooling, 64 to 512 channels, shortcut B."""

    def __init__(self, num_classes: int, classifier: Classifier = "linear") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, 3, stride=1, project=True)
        self.layer2 = _stage(64, 128, 4, stride=2, project=True)
        self.layer3 = _stage(128, 256, 6, stride=2, project=True)
        self.layer4 = _stage(256, 512, 3, stride=2, project=True)
        self.linear = _classifier(classifier, 512, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """`(B, 512)` of normalised `(B, 3, S, S)` images."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        pooled: Tensor = x.mean(dim=(2, 3))
        return pooled


class ResNet50(Network):
    """ResNet-50 for 224 px, torchvision's, with its names of tensors."""

    def __init__(self, num_classes: int, classifier: Classifier = "cosine") -> None:
        super().__init__()
        body = resnet50(weights=None)
        self.conv1, self.bn1 = body.conv1, body.bn1
        self.layer1, self.layer2 = body.layer1, body.layer2
        self.layer3, self.layer4 = body.layer3, body.layer4
        self.linear = _classifier(classifier, 2048, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """`(B, 2048)` of normalised `(B, 3, S, S)` images."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        pooled: Tensor = x.mean(dim=(2, 3))
        return pooled


class TimmNetwork(Network):
    """Any convolutional network of timm, untrained, with a classifier of ours."""

    def __init__(self, name: str, num_classes: int, classifier: Classifier) -> None:
        super().__init__()
        self.body = timm.create_model(name, pretrained=False, num_classes=0)
        if isinstance(self.body, VisionTransformer):
            raise CheckpointError(f"timm/{name}: a teacher is a convolutional network")
        self.linear = _classifier(classifier, self.body.head_hidden_size, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """`(B, D)` of normalised `(B, 3, S, S)` images."""
        features: Tensor = self.body(images)
        return features


def build_teacher(architecture: dict[str, Any]) -> Network:
    """The network that a teacher's card describes: name, classifier, num_classes.

    Names: `resnet32`, `resnet34` (of CIFAR), `resnet50` (224 px), and `timm/NAME`, as
    `timm/regnety_160`, DeiT's own teacher.

    Raises:
        CheckpointError: an architecture this version does not know.
    """
    name, num_classes = str(architecture.get("name")), architecture["num_classes"]
    classifier = classifier_of(architecture)
    if name == "resnet32":
        return ResNet32(num_classes, classifier)
    if name == "resnet34":
        return ResNet34(num_classes, classifier)
    if name == "resnet50":
        return ResNet50(num_classes, classifier)
    model = name.removeprefix("timm/")
    if model != name and timm.is_model(model):
        return TimmNetwork(model, num_classes, classifier)
    raise CheckpointError(
        f"unknown teacher network {name!r}; there are resnet32, resnet34, resnet50 and timm/NAME"
    )


def classifier_of(architecture: dict[str, Any]) -> Classifier:
    """The classifier that a card names; those written before there was a choice had cosines.

    Raises:
        CheckpointError: a classifier this version does not know.
    """
    classifier: Classifier = architecture.get("classifier", "cosine")
    if classifier not in get_args(Classifier):
        raise CheckpointError(f"unknown teacher classifier {classifier!r}")
    return classifier


def _classifier(kind: Classifier, num_features: int, num_classes: int) -> nn.Module:
    if kind == "cosine":
        return CosineClassifier(num_features, num_classes)
    return nn.Linear(num_features, num_classes)
