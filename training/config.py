"""What a recipe may set. Frozen: a run never changes its own recipe.

Every field is a command-line flag of the training programs, under its own name in kebab case.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from itertools import pairwise
from math import isfinite
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from deitlt.errors import UsageError
from deitlt.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec
from deitlt.student import SIZES, Size, StudentConfig
from training.losses import HeadLoss

# Fields that must be above 0, and those that must not be above 1.
POSITIVE = {
    *("img_size", "patch_size", "epochs", "batch_size", "micro_batch_size", "lr"),
    *("checkpoint_epochs", "val_epochs", "temperature", "paco_temperature", "paco_queue"),
    *("paco_width", "imbalance_factor", "layer_scale", "at_once"),
}
SHARES = {
    *("val_fraction", "flip", "random_erasing", "label_smoothing", "drop_path_rate", "alpha"),
    *("momentum", "paco_momentum", "crop_scale", "ema_decay"),
}

Sampling = Literal["all", "repeated", "repeated_full", "balanced"]


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
    """Images an optimiser step, over all processes."""
    micro_batch_size: int | None = None
    """Images a forward pass of one process; gradients accumulate to `batch_size`. None divides
    `batch_size` among the processes. Mixing pairs the images of a micro-batch."""
    lr: float
    """Peak learning rate; for SGD and AdamW alike it is used as it is, never scaled by a batch."""
    weight_decay: float
    """Weight decay."""
    warmup_epochs: int = 5
    """Epochs of linear warm-up."""
    drw_epoch: int
    """First epoch, from 0, of deferred re-weighting; `epochs` turns it off."""
    drw_beta: float = 0.9999
    """Beta of the effective-number class weights."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Random resized crop of strong views: share of the area kept."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Random resized crop of strong views: aspect ratio."""
    crop_padding: int = 4
    """Padding of the random crop of weak views, px."""
    flip: float = 0.5
    """Probability of a horizontal flip; 0 where left and right differ, as in digits."""
    auto_augment: str = "rand-m9-mstd0.5-inc1"
    """timm's RandAugment string for strong views; empty turns it off."""
    random_erasing: float = 0.25
    """Strong views: probability of erasing a rectangle with noise."""
    mixup: float = 0.8
    """Mixup's alpha where images are mixed; 0 turns it off."""
    cutmix: float = 1.0
    """CutMix's alpha where images are mixed; 0 turns it off."""
    label_smoothing: float = 0.1
    """Smoothing of labels, also where mixing is off; none in a DRW phase without mixing."""
    seed: int = 0
    """Seed of weights, order, augmentation and stochastic depth."""
    checkpoint_epochs: int = 1
    """Epochs between resume points; a killed run loses fewer than this."""
    val_epochs: int = 1
    """Epochs between looks at the held-out images; the last epoch is always looked at."""

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            self._check_range(name, getattr(self, name))
        if not 0 < self.crop_pct <= 1:
            raise UsageError(f"--crop-pct must be above 0 and at most 1, not {self.crop_pct:g}")
        if not 0 <= self.drw_beta < 1:
            raise UsageError(f"--drw-beta must be in [0, 1), not {self.drw_beta:g}")
        if min(self.std) <= 0:
            raise UsageError("--std must be positive in every channel")
        micro = self.batch_size if self.micro_batch_size is None else self.micro_batch_size
        if self.batch_size % micro:
            raise UsageError(
                f"--batch-size {self.batch_size} is not a multiple of --micro-batch-size {micro}"
            )

    def _check_range(self, name: str, value: object) -> None:
        """Refuse numbers that are infinite, negative, or not positive where they must be."""
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int | float):
                continue
            positive = name in POSITIVE
            if not isfinite(number) or number < 0 or (positive and number == 0):
                wanted = "positive" if positive else "a number of at least 0"
                raise UsageError(f"--{kebab(name)} must be {wanted}, not {number}")
            if name in SHARES and number > 1:
                raise UsageError(f"--{kebab(name)} must be at most 1, not {number:g}")

    def notes(self) -> list[str]:
        """What the fields mean together that a user may not have meant."""
        notes = []
        if self.reweights and self.epochs < self.drw_epoch:
            start = f"--drw-epoch is {self.drw_epoch}, --epochs {self.epochs}"
            notes.append(f"deferred re-weighting never starts: {start}")
        if 1 < self.epochs <= self.warmup_epochs:
            end = f"--warmup-epochs is {self.warmup_epochs}, --epochs {self.epochs}"
            notes.append(f"the learning rate only warms up: {end}")
        return notes

    @property
    def reweights(self) -> bool:
        """Whether the method knows deferred re-weighting."""
        return True

    def preprocess(self) -> PreprocessSpec:
        """How images are prepared for evaluation and deployment."""
        return PreprocessSpec(self.img_size, self.crop_pct, self.mean, self.std)


@dataclass(frozen=True, kw_only=True)
class TeacherRecipe(Recipe):
    """A flat CNN teacher, trained by LDAM-DRW, PaCo, GLMC or plain cross-entropy, with SAM."""

    method: Literal["ldam", "paco", "glmc", "ce"] = "ldam"
    """What it learns by; `ce` mixes images as the student does (DeiT's strong teacher)."""
    network: str = "resnet32"
    """resnet32, resnet34 (both for 32 px), resnet50, or timm/NAME."""
    classifier: Literal["cosine", "linear"] = "cosine"
    """Last layer; LDAM needs cosines, the other methods have linear ones."""
    view: Literal["weak", "jitter", "strong", "paco_small", "paco_large"] = "weak"
    """Random views: padded crop; resized crop with colour jitter (224 px); the student's; PaCo's
    two at 32 px; PaCo's two at 224 px. All flip."""
    momentum: float = 0.9
    """Momentum of SGD."""
    schedule: Literal["step", "cosine"] = "step"
    """Learning rate after the warm-up: steps by `decay_epochs`, or a cosine to 0."""
    decay_epochs: tuple[int, ...] = ()
    """Epochs, from 0, at which the learning rate is multiplied by `decay_factor`."""
    decay_factor: float = 0.01
    """What it is multiplied by."""
    rho: float = 0.05
    """SAM: radius of the ascent step; 0 turns SAM off."""
    rho_epochs: tuple[int, ...] = ()
    """SAM: epochs, from 0, at which the radius changes to the next of `rho_values`."""
    rho_values: tuple[float, ...] = ()
    """SAM: the radius from each of `rho_epochs` on."""
    sam_batch_norm: Literal["first", "both"] = "first"
    """SAM: passes that update batch-norm's running statistics."""
    max_margin: float = 0.5
    """LDAM: margin of the rarest class."""
    scale: float = 30.0
    """LDAM: factor on the cosines inside the loss."""
    paco_alpha: float = 0.01
    """PaCo: weight of a positive pair of images."""
    paco_temperature: float = 0.05
    """PaCo: temperature of the contrast."""
    paco_queue: int = 1024
    """PaCo: keys remembered; at least a batch."""
    paco_width: int = 32
    """PaCo: width of the projection."""
    paco_momentum: float = 0.999
    """PaCo: momentum of the key encoder."""
    glmc_contrast: float = 1.0
    """GLMC: weight of the contrast between both views."""
    glmc_power: float = 1.2
    """GLMC: the re-balanced head weighs a class by its count to minus this power."""

    @property
    def reweights(self) -> bool:
        """Whether the method knows deferred re-weighting."""
        return self.method in ("ldam", "ce")

    def architecture(self, num_classes: int) -> dict[str, Any]:
        """What a card says of the network."""
        return {
            "name": self.network,
            "classifier": self.classifier,
            "num_classes": num_classes,
        }

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.rho_epochs) != len(self.rho_values):
            raise UsageError("--rho-epochs and --rho-values must name as many steps as each other")
        if any(later <= earlier for earlier, later in pairwise(self.rho_epochs)):
            raise UsageError("--rho-epochs must rise")
        if self.method == "ldam" and self.classifier != "cosine":
            raise UsageError("--method ldam needs --classifier cosine: its margins are of cosines")
        if self.method != "ldam" and self.classifier != "linear":
            raise UsageError(f"--method {self.method} needs --classifier linear")
        if (self.method == "paco") != self.view.startswith("paco"):
            raise UsageError("--method paco goes with --view paco_small or paco_large, and they")
        if self.method == "paco" and self.paco_queue < self.batch_size:
            raise UsageError(
                f"--paco-queue {self.paco_queue} is smaller than --batch-size {self.batch_size}"
            )


@dataclass(frozen=True, kw_only=True)
class StudentRecipe(Recipe):
    """A DeiT-LT student, distilled from a teacher on out-of-distribution images; or a baseline."""

    size: Size
    """pico or nano (ours, for small images), tiny, small or base (DeiT's)."""
    patch_size: int
    """Side of a patch, px."""
    drop_path_rate: float = 0.1
    """Stochastic depth of the last block."""
    distilled: bool = True
    """With a DIST token, head and teacher; without, a plain transformer (baselines)."""
    layer_scale: float | None = None
    """Initial LayerScale (DeiT-III)."""
    classifier: Literal["linear", "cosine"] = "linear"
    """Head of a plain transformer; cosine for LDAM."""
    view: Literal["strong", "three_augment", "weak"] = "strong"
    """Random views: RandAugment and erasing; 3-Augment; padded crop and flip (table 1)."""
    sampling: Sampling = "all"
    """What an epoch shows: every image once; a third of them three times each, drawn anew each
    epoch (the official sampler); likewise but all of them in three epochs; or classes equally."""
    distillation: Literal["hard", "soft"] = "hard"
    """What DIST learns: the teacher's label, or its distribution."""
    temperature: float = 1.0
    """Soft distillation: temperature of both distributions."""
    renormalise: bool = False
    """Give the teacher images in its own normalisation; the official code gives the student's."""
    alpha: float = 0.5
    """Share of the distillation loss; the label loss has the rest."""
    cls_loss: HeadLoss = "ce"
    """What CLS learns by."""
    drw_cls_loss: HeadLoss | None = None
    """What CLS learns by in the DRW phase; None goes on as before."""
    dist_loss: HeadLoss = "ce"
    """What DIST learns the teacher's labels by."""
    loss_tau: float = 1.0
    """Strength of logit adjustment (1 is balanced softmax) and VS."""
    loss_gamma: float | None = None
    """Focusing of the focal loss (2 by default); exponent of VS (0.15)."""
    max_margin: float = 0.5
    """LDAM: margin of the rarest class."""
    drw_on_cls: bool = False
    """Re-weight the label loss too in the DRW phase (the LDAM baseline)."""
    mix_in_drw: bool = False
    """Keep mixing and label smoothing in the DRW phase (ImageNet-LT, iNaturalist)."""
    optimizer: Literal["adamw", "lamb", "muon"] = "adamw"
    """AdamW; LAMB (DeiT-III); or Muon for matrices and AdamW for the rest."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine."""
    warmup_lr: float = 1e-6
    """Learning rate at the start of the warm-up."""
    ema_decay: float = 0.0
    """Decay a step of averaged weights, which are evaluated and selected if better, or without
    held-out images always; 0 has none. The official code keeps some (0.99996) and never looks."""
    at_once: int = 1
    """Micro-batches a forward pass, each mixed and weighted by itself all the same. More keep a GPU
    busy with a small student, and take as much more memory."""
    bf16: bool | None = None
    """Transformer and teacher multiply in bfloat16; the rest stays in float32. By default on a GPU
    alone; a CPU with instructions for it (AVX512-BF16, AMX) trains twice as fast with it, others
    more slowly. A student is judged so on a GPU too, on a CPU always in float32."""
    retrain_heads: bool = False
    """Start heads anew and train them alone, on the weights given by --init (cRT)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size not in SIZES:
            raise UsageError(f"--size must be one of {', '.join(SIZES)}, not {self.size}")
        if self.img_size % self.patch_size:
            raise UsageError(
                f"--img-size {self.img_size} is not a multiple of --patch-size {self.patch_size}"
            )
        if self.ema_decay == 1:
            raise UsageError("--ema-decay must be below 1")
        if self.distilled and self.classifier != "linear":
            raise UsageError("--classifier cosine is for plain transformers (--no-distilled)")
        ldam = "ldam" in (self.cls_loss, self.drw_cls_loss, self.dist_loss)
        if ldam and self.classifier != "cosine":
            raise UsageError("loss ldam is for cosines: --no-distilled --classifier cosine")
        micro = self.micro_batch_size or self.batch_size
        if (self.mixup > 0 or self.cutmix > 0) and micro % 2:
            raise UsageError(f"mixing pairs images: a batch of {micro} is odd; make it even")

    def shape(self, num_classes: int) -> StudentConfig:
        """The student, or the plain transformer."""
        return StudentConfig(
            size=self.size,
            img_size=self.img_size,
            patch_size=self.patch_size,
            num_classes=num_classes,
            drop_path_rate=self.drop_path_rate,
            distilled=self.distilled,
            layer_scale=self.layer_scale,
            classifier=self.classifier,
        )

    @contextmanager
    def precision(self, device: torch.device) -> Iterator[None]:
        """What a forward pass of training multiplies in there: see `bf16`."""
        on_gpu = device.type == "cuda"
        on = on_gpu if self.bf16 is None else self.bf16
        # torch 2.14: the gradient of fused attention in bfloat16 takes a CPU five times as long as
        # that of plain products.
        plain = on and not on_gpu
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=on),
            sdpa_kernel(SDPBackend.MATH) if plain else nullcontext(),
        ):
            yield


def kebab(field: str) -> str:
    """The flag of a field: `batch_size` becomes `batch-size`."""
    return field.replace("_", "-")
