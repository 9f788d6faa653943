"""What a recipe may set. Frozen: a run never changes its own recipe.

Every field is a command-line flag of the training programs, under its own name in kebab case.
"""

from dataclasses import dataclass
from typing import Literal

from deitlt.errors import UsageError
from deitlt.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec
from deitlt.student import SIZES, Size


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What teacher and student recipes share."""

    name: str
    """Name of the recipe the fields started from."""

    img_size: int
    """Side of the square input, px."""
    crop_pct: float = 1.0
    """Evaluation: share of the resized short side that the centre crop keeps."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Per-channel mean on the [0, 1] scale."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Per-channel standard deviation on the [0, 1] scale."""

    imbalance_factor: float | None = None
    """Make an exponential long-tailed subset of a balanced set: largest over smallest class."""
    subset_seed: int = 0
    """Seed of that subset; 0 draws the subset of the paper."""
    val_fraction: float = 0.1
    """Share of each training class held out to select the epoch; 0 keeps the last epoch.
    Unused where the data has a val split of its own."""
    split_seed: int = 0
    """Seed of the held-out split."""

    epochs: int
    """Passes over the training images."""
    batch_size: int
    """Images an optimiser step."""
    lr: float
    """Peak learning rate."""
    weight_decay: float
    """Weight decay."""
    warmup_epochs: int = 5
    """Epochs of linear warm-up."""
    drw_epoch: int
    """First epoch, from 0, of deferred re-weighting; `epochs` turns it off."""
    drw_beta: float = 0.9999
    """Beta of the effective-number class weights."""
    flip: float = 0.5
    """Probability of a horizontal flip; 0 where left and right differ, as in digits."""
    seed: int = 0
    """Seed of weights, order, augmentation and stochastic depth."""
    checkpoint_epochs: int = 1
    """Epochs between resume points; a killed run loses fewer than this."""

    def __post_init__(self) -> None:
        for field in ("img_size", "epochs", "batch_size", "lr", "checkpoint_epochs"):
            if getattr(self, field) <= 0:
                raise UsageError(f"--{kebab(field)} must be positive, not {getattr(self, field)}")
        if not 0 < self.crop_pct <= 1:
            raise UsageError(f"--crop-pct must be above 0 and at most 1, not {self.crop_pct:g}")
        if not 0 <= self.drw_beta < 1:
            raise UsageError(f"--drw-beta must be in [0, 1), not {self.drw_beta:g}")
        if min(self.std) <= 0:
            raise UsageError("--std must be positive in every channel")

    def preprocess(self) -> PreprocessSpec:
        """How images are prepared for evaluation and deployment."""
        return PreprocessSpec(self.img_size, self.crop_pct, self.mean, self.std)


@dataclass(frozen=True, kw_only=True)
class TeacherRecipe(Recipe):
    """A flat CNN teacher: cosine classifier, LDAM loss with DRW, SAM."""

    momentum: float = 0.9
    """Momentum of SGD."""
    decay_epochs: tuple[int, ...] = ()
    """Epochs, from 0, at which the learning rate is multiplied by `decay_factor`."""
    decay_factor: float = 0.01
    """What it is multiplied by."""
    max_margin: float = 0.5
    """LDAM: margin of the rarest class."""
    scale: float = 30.0
    """LDAM: factor on the cosines inside the loss."""
    rho: float = 0.05
    """SAM: radius of the ascent step; 0 turns SAM off."""
    sam_batch_norm: Literal["first", "both"] = "first"
    """SAM: passes that update batch-norm's running statistics."""
    crop_padding: int = 4
    """Padding of the random crop, px."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rho < 0:
            raise UsageError(f"--rho must not be negative, not {self.rho:g}")


@dataclass(frozen=True, kw_only=True)
class StudentRecipe(Recipe):
    """A DeiT-LT student, distilled from a teacher on out-of-distribution images."""

    size: Size
    """pico or nano (ours, for small images), tiny, small or base (DeiT's)."""
    patch_size: int
    """Side of a patch, px."""
    drop_path_rate: float = 0.1
    """Stochastic depth of the last block."""
    alpha: float = 0.5
    """Share of the distillation loss; the label loss has the rest."""
    label_smoothing: float = 0.1
    """Smoothing of the labels CLS learns; off with mixing in the DRW phase."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine."""
    warmup_lr: float = 1e-6
    """Learning rate at the start of the warm-up."""
    micro_batch_size: int | None = None
    """Images a forward pass; gradients accumulate to `batch_size`. None does all at once."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Random resized crop: share of the area kept."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Random resized crop: aspect ratio."""
    auto_augment: str = "rand-m9-mstd0.5-inc1"
    """timm's policy string; empty turns it off."""
    random_erasing: float = 0.25
    """Probability of erasing a rectangle with noise."""
    mixup: float = 0.8
    """Mixup's alpha; 0 turns it off."""
    cutmix: float = 1.0
    """CutMix's alpha; 0 turns it off."""
    mix_in_drw: bool = False
    """Keep mixing and label smoothing in the DRW phase (ImageNet-LT, iNaturalist)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size not in SIZES:
            raise UsageError(f"--size must be one of {', '.join(SIZES)}, not {self.size}")
        if self.img_size % self.patch_size:
            raise UsageError(
                f"--img-size {self.img_size} is not a multiple of --patch-size {self.patch_size}"
            )
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"--alpha must be in [0, 1], not {self.alpha:g}")
        micro = self.micro_batch_size or self.batch_size
        if self.batch_size % micro:
            raise UsageError(
                f"--batch-size {self.batch_size} is not a multiple of --micro-batch-size {micro}"
            )
        if (self.mixup > 0 or self.cutmix > 0) and micro % 2:
            raise UsageError(f"mixing pairs images: a batch of {micro} is odd; make it even")


def kebab(field: str) -> str:
    """The flag of a field: `batch_size` becomes `batch-size`."""
    return field.replace("_", "-")
