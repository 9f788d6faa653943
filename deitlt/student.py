"""The DeiT-LT student: a distilled vision transformer with a head expert and a tail expert.

Beside it stands the plain vision transformer of the baselines, which has one token and one head.

Legend: `B` images, `S` image side, `C` classes, `N` tokens (CLS, DIST, patches), `D` width.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from deitlt.errors import CheckpointError
from deitlt.weights import Card, load_weights, not_finite

Size = Literal["pico", "nano", "tiny", "small", "base"]

# Width, depth, heads. Tiny, small and base are DeiT's. Nano (32 px and below) and pico (16 px and
# below) are ours: on small images a full-depth transformer learns nothing more.
SIZES: dict[Size, tuple[int, int, int]] = {
    "pico": (64, 4, 4),
    "nano": (128, 6, 4),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
}

# LDAM's factor on cosines.
COSINE_SCALE = 30.0


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Shape of a student.

    Attributes:
        size: pico, nano, tiny, small or base.
        img_size: side of the square input, px; a multiple of `patch_size`.
        patch_size: side of a patch, px.
        num_classes: `C`.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 over the blocks.
        distilled: with DIST token and head; without them it is the plain transformer of baselines.
        layer_scale: initial LayerScale (DeiT-III); None has none.
        classifier: of the plain transformer; `cosine` is LDAM's, whose logits are `COSINE_SCALE`
            times a cosine.
    """

    size: Size
    img_size: int
    patch_size: int
    num_classes: int
    drop_path_rate: float = 0.1
    distilled: bool = True
    layer_scale: float | None = None
    classifier: Literal["linear", "cosine"] = "linear"

    def timm_arguments(self) -> dict[str, Any]:
        """The shape in timm's words."""
        width, depth, num_heads = SIZES[self.size]
        return {
            "img_size": self.img_size,
            "patch_size": self.patch_size,
            "embed_dim": width,
            "depth": depth,
            "num_heads": num_heads,
            "num_classes": self.num_classes,
            "drop_path_rate": self.drop_path_rate,
            "init_values": self.layer_scale,
        }


class DeiTLT(VisionTransformerDistilled):  # type: ignore[misc]  # timm is untyped
    """timm's distilled vision transformer that always answers with both experts' logits.

    Paper section 3; pre-norm blocks, exact GELU, learned position embedding of length `N` in the
    order CLS, DIST, patches; one shared final LayerNorm.
    """

    def __init__(self, config: StudentConfig) -> None:
        assert config.distilled, "a plain transformer is a PlainViT"
        assert config.classifier == "linear", "both experts have linear heads"
        super().__init__(**config.timm_arguments())
        self.config = config

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """CLS and DIST logits, each `(B, C)`, of normalised `(B, 3, S, S)` images."""
        return self.classify(self.tokens(images))

    def tokens(self, images: Tensor) -> Tensor:
        """CLS and DIST token after the final norm, `(B, 2, D)`."""
        tokens: Tensor = self.forward_features(images)
        return tokens[:, :2]

    def classify(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """CLS and DIST logits, each `(B, C)`, of `tokens`."""
        return self.head(tokens[:, 0]), self.head_dist(tokens[:, 1])

    def architecture(self) -> dict[str, Any]:
        """The config as plain JSON types, for the card of a weight file."""
        return asdict(self.config)


class CosineHead(nn.Linear):
    """A linear head on unit features with unit class vectors, scaled (LDAM's classifier)."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__(num_features, num_classes, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Logits `(B, C)`: `COSINE_SCALE` times the cosines of `(B, D)` features."""
        # In single precision under autocast too: the factor would magnify bfloat16's rounding.
        with torch.autocast(features.device.type, enabled=False):
            units = F.normalize(features.float(), dim=-1)
            return COSINE_SCALE * F.linear(units, F.normalize(self.weight, dim=-1))


class PlainViT(VisionTransformer):  # type: ignore[misc]  # timm is untyped
    """timm's plain vision transformer, in the words of `DeiTLT`: the paper's baselines."""

    def __init__(self, config: StudentConfig) -> None:
        assert not config.distilled, "a distilled transformer is a DeiTLT"
        super().__init__(**config.timm_arguments())
        if config.classifier == "cosine":
            self.head = CosineHead(self.embed_dim, config.num_classes)
        self.config = config

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """CLS logits `(B, C)` of normalised `(B, 3, S, S)` images, as a tuple of one."""
        return self.classify(self.tokens(images))

    def tokens(self, images: Tensor) -> Tensor:
        """CLS token after the final norm, `(B, 1, D)`."""
        tokens: Tensor = self.forward_features(images)
        return tokens[:, :1]

    def classify(self, tokens: Tensor) -> tuple[Tensor]:
        """CLS logits `(B, C)` of `tokens`, as a tuple of one."""
        return (self.head(tokens[:, 0]),)

    def architecture(self) -> dict[str, Any]:
        """The config as plain JSON types, for the card of a weight file."""
        return asdict(self.config)


def build_student(config: StudentConfig) -> DeiTLT | PlainViT:
    """The student a config describes, freshly initialised."""
    return DeiTLT(config) if config.distilled else PlainViT(config)


def exact_logits(student: DeiTLT | PlainViT, tokens: Tensor) -> list[Tensor]:
    """What `student.classify(tokens)` gives, in single precision also under autocast.

    In bfloat16 close logits tie, and a tie goes to the lower index, the more frequent class.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        return list(student.classify(tokens.float()))


def average_logits(cls_logits: Tensor, dist_logits: Tensor) -> Tensor:
    """The answer of a student, `(B, C)`: the mean of both experts' logits (not probabilities)."""
    return (cls_logits + dist_logits) / 2


def load_student(path: str | Path) -> tuple[DeiTLT, Card]:
    """A trained student in eval mode on the CPU, from its weight file or run folder.

    Raises:
        CheckpointError: missing, damaged, not a student, a baseline without a DIST expert, or with
            weights that are not finite.
    """
    model, card = load_transformer(path)
    if not isinstance(model, DeiTLT):
        raise CheckpointError(
            f"{path}: is a plain transformer, a baseline without a DIST expert; it can be "
            "evaluated, but only DeiT-LT students are deployed"
        )
    if broken := not_finite(model.state_dict()):
        raise CheckpointError(f"{path}: NaN or infinite numbers in {', '.join(broken[:3])}")
    return model, card


def load_transformer(path: str | Path) -> tuple[DeiTLT | PlainViT, Card]:
    """A trained student or baseline in eval mode on the CPU.

    Raises:
        CheckpointError: missing, damaged, or neither.
    """
    tensors, card = load_weights(Path(path), "student")
    try:
        model = build_student(StudentConfig(**card.architecture))
        model.load_state_dict(tensors)
    # A card may state any shape; timm divides by a patch of 0 px.
    except (KeyError, RuntimeError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: its tensors do not fit its own card") from error
    named, answered = len(card.classes), model.config.num_classes
    if named != answered:
        raise CheckpointError(f"{path}: names {named} classes and its head has {answered}")
    if len(card.train_counts) != named:
        raise CheckpointError(
            f"{path}: names {named} classes and counts the images of {len(card.train_counts)}"
        )
    return model.eval(), card
