"""The pipeline that ours is compared with: what most training scripts of the kind do.

Image by image through timm's transforms in worker processes, timm's Mixup, half precision with a
scaled loss, and the model as it is. The official code also waits for the device at every
micro-batch; this one does not, and so is somewhat faster than what it stands for.

Legend: `B` images of a micro-batch, `S` image side.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from PIL import Image
from timm.data import Mixup, auto_augment, create_transform
from timm.loss import SoftTargetCrossEntropy
from timm.optim import param_groups_weight_decay
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler

from deitlt.student import DeiTLT, StudentConfig
from training.benchmark.images import SyntheticSet
from training.benchmark.measure import timed
from training.config import StudentRecipe
from training.losses import deit_lt_loss
from training.teachers.labelling import Teacher

# DataLoader's own default: micro-batches ready for each worker.
PREFETCHED = 2


class _Transformed(Dataset[tuple[Tensor, int]]):
    """Decoded images, as torchvision's CIFAR10 holds them, through timm's transforms."""

    def __init__(self, synthetic: SyntheticSet, recipe: StudentRecipe) -> None:
        self._pixels = synthetic.pixels
        self._labels = synthetic.images.labels.tolist()
        self._transform = create_transform(
            input_size=recipe.img_size,
            is_training=True,
            scale=recipe.crop_scale,
            ratio=recipe.crop_ratio,
            hflip=recipe.flip,
            auto_augment=recipe.auto_augment,
            interpolation="bicubic",
            mean=recipe.mean,
            std=recipe.std,
            re_prob=recipe.random_erasing,
            re_mode="pixel",
        )
        for stage in self._transform.transforms:
            for operation in getattr(stage, "ops", ()):  # RandAugment's
                if operation.name.startswith("Posterize"):
                    operation.aug_fn = _posterize

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._pixels[index])), self._labels[index]


def _posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """timm's, whose strongest keeps no bits: newer Pillow raises where older made it black."""
    if bits_to_keep == 0:
        return Image.new(image.mode, image.size)
    posterized: Image.Image = auto_augment.posterize(image, bits_to_keep)
    return posterized


class Conventional:
    """A student in training the conventional way."""

    def __init__(
        self,
        recipe: StudentRecipe,
        config: StudentConfig,
        synthetic: SyntheticSet,
        teacher: Teacher,
        device: torch.device,
        *,
        workers: int,
    ) -> None:
        self.recipe, self.teacher, self.device, self.workers = recipe, teacher, device, workers
        self.micro = recipe.micro_batch_size or recipe.batch_size
        self.per_step = recipe.batch_size // self.micro
        self._data = _Transformed(synthetic, recipe)
        self._model = DeiTLT(config).to(device).train()
        groups = param_groups_weight_decay(
            self._model, recipe.weight_decay, no_weight_decay_list=self._model.no_weight_decay()
        )
        self._optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
        self._half = device.type == "cuda"
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._half)
        self._soft_loss = SoftTargetCrossEntropy()
        self._mixup = Mixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            label_smoothing=recipe.label_smoothing,
            num_classes=config.num_classes,
        )

    def describe(self) -> str:
        """What it is, for the table."""
        precision = "float16 autocast and scaled loss" if self._half else "float32"
        return f"timm transforms (-j {self.workers}), timm Mixup, {precision}, eager"

    def rate(self, num_steps: int) -> float:
        """Images a second of the whole step."""
        loaded = self._load(num_steps)
        self._train(islice(loaded, self._warm_up()))
        timed_batches = num_steps * self.per_step
        run = islice(loaded, timed_batches)
        seconds, _ = timed(self.device, lambda: self._train(run))
        return timed_batches * self.micro / seconds

    def loading_rate(self, num_steps: int) -> float:
        """Images a second of the transforms alone, up to tensors on the host."""
        loaded = self._load(num_steps)
        for _ in islice(loaded, self._warm_up()):
            pass
        timed_batches = num_steps * self.per_step
        seconds, _ = timed(torch.device("cpu"), lambda: list(islice(loaded, timed_batches)))
        return timed_batches * self.micro / seconds

    def _warm_up(self) -> int:
        """Micro-batches of whole steps that use up what was fetched ahead."""
        steps = max(1, -(-PREFETCHED * self.workers // self.per_step))
        return steps * self.per_step

    def _load(self, num_steps: int) -> Iterator[list[Tensor]]:
        """Micro-batches for a sample, its warm-up, and as many that workers begin for the next.

        Workers live for one sample, so that they take nothing from what is timed in between; and
        they are still busy when it ends.
        """
        ahead = PREFETCHED * self.workers
        num_batches = self._warm_up() + num_steps * self.per_step + ahead
        sampler = RandomSampler(self._data, replacement=True, num_samples=num_batches * self.micro)
        loader: DataLoader[tuple[Tensor, int]] = DataLoader(
            self._data,
            batch_size=self.micro,
            sampler=sampler,
            num_workers=self.workers,
            pin_memory=self._half,
            prefetch_factor=PREFETCHED if self.workers else None,
            drop_last=True,
        )
        return iter(loader)

    def _train(self, batches: Iterator[list[Tensor]]) -> None:
        for number, (images, labels) in enumerate(batches, start=1):
            images = images.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
            images, targets = self._mixup(images, labels)
            with torch.autocast(self.device.type, torch.float16, enabled=self._half):
                taught = self.teacher.label(images)
                cls_logits, dist_logits = self._model(images)
                loss = deit_lt_loss(
                    self._soft_loss(cls_logits, targets),
                    F.cross_entropy(dist_logits, taught),
                    self.recipe.alpha,
                )
            self._scaler.scale(loss / self.per_step).backward()
            if number % self.per_step == 0:
                self._scaler.step(self._optimizer)
                self._scaler.update()
                self._optimizer.zero_grad(set_to_none=True)
