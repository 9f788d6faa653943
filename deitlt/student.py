"""The DeiT-LT student: a distilled vision transformer with a head expert and a tail expert.

Legend: `B` images, `S` image side, `C` classes, `N` tokens (CLS, DIST, patches), `D` width.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from timm.models.deit import VisionTransformerDistilled
from torch import Tensor

from deitlt.errors import CheckpointError
from deitlt.weights import Card, load_weights

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


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Shape of a student.

    Attributes:
        size: pico, nano, tiny, small or base.
        img_size: side of the square input, px; a multiple of `patch_size`.
        patch_size: side of a patch, px.
        num_classes: `C`.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 over the blocks.
    """

    size: Size
    img_size: int
    patch_size: int
    num_classes: int
    drop_path_rate: float = 0.1


class DeiTLT(VisionTransformerDistilled):  # type: ignore[misc]  # timm is untyped
    """timm's distilled vision transformer that always answers with both experts' logits.

    Paper section 3; pre-norm blocks, exact GELU, learned position embedding of length `N` in the
    order CLS, DIST, patches; one shared final LayerNorm.
    """

    def __init__(self, config: StudentConfig) -> None:
        width, depth, num_heads = SIZES[config.size]
        super().__init__(
            img_size=config.img_size,
            patch_size=config.patch_size,
            embed_dim=width,
            depth=depth,
            num_heads=num_heads,
            num_classes=config.num_classes,
            drop_path_rate=config.drop_path_rate,
        )
        self.config = config

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """CLS and DIST logits, each `(B, C)`, of normalised `(B, 3, S, S)` images."""
        tokens = self.forward_features(images)
        return self.head(tokens[:, 0]), self.head_dist(tokens[:, 1])

    def architecture(self) -> dict[str, Any]:
        """The config as plain JSON types, for the card of a weight file."""
        return asdict(self.config)


def average_logits(cls_logits: Tensor, dist_logits: Tensor) -> Tensor:
    """The answer of a student, `(B, C)`: the mean of both experts' logits (not probabilities)."""
    return (cls_logits + dist_logits) / 2


def load_student(path: str | Path) -> tuple[DeiTLT, Card]:
    """A trained student in eval mode on the CPU, from its weight file or run folder.

    Raises:
        CheckpointError: missing, damaged, or not a student.
    """
    tensors, card = load_weights(Path(path), "student")
    try:
        model = DeiTLT(StudentConfig(**card.architecture))
        model.load_state_dict(tensors)
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path}: its tensors do not fit its own card") from error
    return model.eval(), card
