"""How a student learns: CLS from labels, DIST from a teacher, on the same strongly changed images.

Legend: `B` images of a micro-batch, `S` image side, `C` classes, `D` width.
"""

from typing import Any

import torch
from numpy.typing import ArrayLike
from timm.data.mixup import mixup_target
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from deitlt.student import COSINE_SCALE, DeiTLT, PlainViT, exact_logits
from training.augmentation.mixing import mix
from training.config import StudentRecipe
from training.engine.distributed import World
from training.engine.feed import Feed, MicroBatch
from training.engine.schedules import set_learning_rate, student_learning_rate
from training.engine.seeding import Stream, generator, seed_global
from training.losses import deit_lt_loss, drw_weight, head_loss, soft_dist_loss
from training.students.averaging import AveragedStudent
from training.students.optimizers import student_optimizers
from training.teachers.labelling import Teacher


class Distillation(nn.Module):
    """The losses of a student, as one module that many processes can share."""

    def __init__(
        self, student: DeiTLT | PlainViT, recipe: StudentRecipe, counts: ArrayLike
    ) -> None:
        super().__init__()
        self.student = student
        self.recipe = recipe
        options: dict[str, Any] = {
            "tau": recipe.loss_tau,
            "gamma": recipe.loss_gamma,
            "max_margin": recipe.max_margin,
            "smoothing": recipe.label_smoothing,
        }
        if recipe.classifier == "cosine":
            # The head's logits are scaled cosines already, and so must the margins be.
            options |= {"scale": 1.0, "max_margin": COSINE_SCALE * recipe.max_margin}
        self.cls_loss = head_loss(recipe.cls_loss, counts, **options)
        self.drw_cls_loss = head_loss(recipe.drw_cls_loss or recipe.cls_loss, counts, **options)
        self.dist_loss = head_loss(recipe.dist_loss, counts, **options)
        self.compute_tokens = student.tokens

    def compile_transformer(self) -> None:
        """Let torch.compile make one graph of the transformer; losses stay as they are."""
        # A shorter last pass gets a graph of its own, and not both a slower one of any size.
        self.compute_tokens = torch.compile(self.student.tokens, dynamic=False)

    def forward(
        self,
        images: Tensor,
        targets: Tensor,
        teacher: Tensor | None,
        weight: Tensor | None,
        *,
        in_drw: bool,
        parts: int = 1,
    ) -> Tensor:
        """Losses of each part: one of a plain transformer, else four: all, CLS, DIST, and a cosine.

        Args:
            images: normalised `(B, 3, S, S)`, one or several micro-batches.
            targets: class indices `(B,)`, or mixed and smoothed distributions `(B, C)`.
            teacher: its labels `(B,)` (hard distillation) or logits `(B, C)` (soft).
            weight: class weights `(C,)` of the DRW phase, on DIST alone unless the recipe says.
            in_drw: whether this is the DRW phase.
            parts: how many micro-batches these are; a loss is a weighted mean over one of them.

        Returns:
            `(parts, 1)` or `(parts, 4)`; the first of each carries the gradient, the last is the
            mean cosine of CLS and DIST token.
        """
        tokens = self.compute_tokens(images).chunk(parts)
        taught = [None] * parts if teacher is None else teacher.chunk(parts)
        each = zip(tokens, targets.chunk(parts), taught, strict=True)
        return torch.stack([self._losses(*part, weight, in_drw=in_drw) for part in each])

    def _losses(
        self,
        tokens: Tensor,
        targets: Tensor,
        teacher: Tensor | None,
        weight: Tensor | None,
        *,
        in_drw: bool,
    ) -> Tensor:
        """Losses of one micro-batch, `(1,)` or `(4,)`."""
        logits = exact_logits(self.student, tokens)
        cls_weight = weight if self.recipe.drw_on_cls else None
        loss_cls = (self.drw_cls_loss if in_drw else self.cls_loss)(logits[0], targets, cls_weight)
        if teacher is None:
            return torch.stack([loss_cls])
        if self.recipe.distillation == "soft":
            loss_dist = soft_dist_loss(logits[1], teacher, self.recipe.temperature, weight)
        else:
            loss_dist = self.dist_loss(logits[1], teacher, weight)
        loss = deit_lt_loss(loss_cls, loss_dist, self.recipe.alpha)
        with torch.no_grad():
            cosine = F.cosine_similarity(tokens[:, 0].float(), tokens[:, 1].float()).mean()
        return torch.stack([loss, loss_cls, loss_dist, cosine])


class StudentLearner:
    """One student in training."""

    def __init__(
        self,
        recipe: StudentRecipe,
        student: DeiTLT | PlainViT,
        teacher: Teacher | None,
        feed: Feed,
        counts: ArrayLike,
        world: World,
        *,
        compiled: bool,
    ) -> None:
        assert (teacher is not None) == recipe.distilled, "DIST needs a teacher, CLS alone has none"
        self.recipe, self.student, self.teacher = recipe, student, teacher
        if teacher is not None and (world.device.type == "cuda" or recipe.bf16):
            # Else every convolution in bfloat16 rearranges its images, before and after.
            teacher.to(memory_format=torch.channels_last)
        self.feed, self.counts, self.world = feed, counts, world
        if recipe.retrain_heads:
            student.requires_grad_(False)
            student.head.requires_grad_(True)
            if isinstance(student, DeiTLT):
                student.head_dist.requires_grad_(True)
        self.optimizers: list[Optimizer] = student_optimizers(student, recipe)
        self.modules: dict[str, nn.Module] = {"model": student}
        self.ema: AveragedStudent | None = None
        if recipe.ema_decay > 0:
            self.ema = AveragedStudent(student, recipe.ema_decay)
            self.modules["ema"] = self.ema
        losses = Distillation(student, recipe, counts).to(world.device)
        if compiled:
            losses.compile_transformer()
        self.losses = world.wrap(losses)
        distilled = ("loss", "loss_cls", "loss_dist", "cls_dist_cosine", "teacher_agreement")
        self.figures: tuple[str, ...] = distilled if teacher is not None else ("loss",)
        self._weight: Tensor | None = None
        self._in_drw = False

    def start_epoch(self, epoch: int) -> None:
        """Deferred re-weighting and the mode of the layers."""
        recipe = self.recipe
        weight = drw_weight(self.counts, recipe.drw_beta, epoch, recipe.drw_epoch)
        self._weight = None if weight is None else weight.to(self.world.device)
        self._in_drw = epoch >= recipe.drw_epoch
        # Where heads alone are trained, the features must stand still: no stochastic depth.
        self.student.train(not recipe.retrain_heads)

    def step(self, epoch: int, step: int, batches: list[MicroBatch]) -> Tensor:
        """One optimiser step over this process's micro-batches; sums of the figures."""
        recipe, feed = self.recipe, self.feed
        at = epoch + step * feed.cut.per_step / feed.num_micro
        set_learning_rate(self.optimizers, student_learning_rate(recipe, at))
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(len(self.figures), device=self.world.device)
        # Processes average their gradients, micro-batches of one process add up. An incomplete last
        # step keeps the divisor of a whole one, as the official code does.
        share = self.world.size / feed.cut.per_step
        for first in range(0, len(batches), recipe.at_once):
            together = batches[first : first + recipe.at_once]
            with self.world.accumulating(self.losses, first + len(together) < len(batches)):
                figures = self._figures(epoch, together)
                (figures[:, 0].sum() * share).backward()
            sums += figures.detach().sum(dim=0)
        for optimizer in self.optimizers:
            optimizer.step()
        if self.ema is not None:
            self.ema.update_parameters(self.student)
        return sums

    def _figures(self, epoch: int, batches: list[MicroBatch]) -> Tensor:
        """Figures of micro-batches, in one forward pass."""
        seed_global(self.recipe.seed, Stream.STEP, epoch, batches[0].number)
        prepared = [self._targets(epoch, batch) for batch in batches]
        images, targets = map(_joined, zip(*prepared, strict=True))
        with self.recipe.precision(self.world.device):
            teacher = self._ask_teacher(images)
            losses: Tensor = self.losses(
                images, targets, teacher, self._weight, in_drw=self._in_drw, parts=len(batches)
            )
        if teacher is None:
            return losses
        labels = teacher.argmax(dim=1) if teacher.ndim == 2 else teacher
        dominant = targets.argmax(dim=1) if targets.ndim == 2 else targets
        agreement = (labels == dominant).float().view(len(batches), -1).mean(dim=1, keepdim=True)
        return torch.cat([losses, agreement], dim=1)

    def _targets(self, epoch: int, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Mixed images and soft targets; in the DRW phase of CIFAR plain ones with hard labels."""
        recipe, images = self.recipe, batch.views[0]
        if self._in_drw and not recipe.mix_in_drw:
            return images, batch.labels
        share = 1.0
        if recipe.mixup > 0 or recipe.cutmix > 0:
            rng = generator(recipe.seed, Stream.MIX, epoch, batch.number)
            images, share = mix(images, rng, recipe.mixup, recipe.cutmix)
        num_classes = self.student.config.num_classes
        return images, mixup_target(batch.labels, num_classes, share, recipe.label_smoothing)

    def _ask_teacher(self, images: Tensor) -> Tensor | None:
        """What the teacher says of the very tensor the student sees (section 3.2)."""
        if self.teacher is None:
            return None
        if self.recipe.distillation == "soft":
            return self.teacher.logits(images).float()
        return self.teacher.label(images)


def _joined(tensors: tuple[Tensor, ...]) -> Tensor:
    """The tensors as one, which a single one is already."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
