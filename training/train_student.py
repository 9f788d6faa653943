"""`python -m training.train_student RECIPE --data DATA --teacher RUN --output RUN`: DeiT-LT."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data.mixup import mixup_target
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor

from deitlt.errors import CheckpointError
from deitlt.files import file_sha256
from deitlt.labelled import LabelledImages
from deitlt.student import DeiTLT, StudentConfig
from deitlt.weights import Card, save_weights, weight_file
from training.augment import student_mixing, student_transform
from training.checkpoint import RunFolder
from training.command_line import Command, parse, pick_recipe, run_program
from training.config import StudentRecipe
from training.data import EvaluationImages, TrainingLoader, files_sha256, load_splits
from training.loop import Validation, pick_device, train
from training.losses import cls_loss, deit_lt_loss, dist_loss, drw_weight
from training.recipes import STUDENTS
from training.scoring import student_logits
from training.seeding import Stream, seed_global
from training.teachers import Teacher, load_teacher

PROGRAM = "training.train_student"


@dataclass(frozen=True, kw_only=True)
class StudentCommand(Command):
    """What `train_student` is told."""

    recipe: StudentRecipe
    teacher: Path
    """Run folder of the teacher, or its teacher.safetensors."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train a student; returns 0, or 2 with one line on what was wrong."""
    return run_program(PROGRAM, argv, _main)


def _main(argv: list[str]) -> None:
    recipe, rest = pick_recipe(PROGRAM, argv, STUDENTS)
    train_student(parse(PROGRAM, StudentCommand, rest, recipe=recipe))


def train_student(command: StudentCommand) -> None:
    """Distil one student as told, into its run folder.

    Raises:
        DeitLTError: one of its kinds; the text is for the user.
    """
    recipe, device = command.recipe, pick_device(command.device)
    splits = load_splits(command.data, recipe)
    print(splits.describe())
    teacher = load_teacher(command.teacher)
    check_teacher(teacher.card, splits.train, command.teacher)
    teacher.model.to(device)
    run = RunFolder(command.output)
    run.check(recipe, resume=command.resume, overwrite=command.overwrite)
    counts = splits.train.counts()
    data_sha256 = files_sha256(splits.train)
    loader = TrainingLoader(
        splits.train,
        student_transform(recipe),
        batch_size=recipe.micro_batch_size or recipe.batch_size,
        seed=recipe.seed,
        num_workers=command.workers,
        device=device,
    )
    val_images = None
    if splits.val is not None:
        val_images = EvaluationImages(splits.val, recipe.preprocess(), device)

    seed_global(recipe.seed, Stream.WEIGHTS)
    config = StudentConfig(
        size=recipe.size,
        img_size=recipe.img_size,
        patch_size=recipe.patch_size,
        num_classes=len(counts),
        drop_path_rate=recipe.drop_path_rate,
    )
    model = DeiTLT(config).to(device)
    distillation = Distillation(recipe, model, teacher, loader, counts, device)

    def save_selected(epoch: int, figures: dict[str, Any]) -> None:
        card = Card(
            kind="student",
            architecture=model.architecture(),
            classes=splits.train.classes,
            train_counts=counts.tolist(),
            train_files_sha256=data_sha256,
            preprocess=recipe.preprocess(),
            recipe=asdict(recipe),
            epoch=epoch,
            validation=figures,
        )
        save_weights(command.output / "student.safetensors", model, card)

    validation = None
    if val_images is not None:
        validation = Validation(
            val_images,
            lambda images: student_logits(model, images),
            counts.tolist(),
            head="average",
        )
    teacher_sha256 = file_sha256(weight_file(command.teacher, "teacher"))
    inputs = sha256(f"{data_sha256} {teacher_sha256}".encode())
    run.start(recipe, resume=command.resume)
    train(
        run,
        recipe,
        model,
        distillation.optimizer,
        inputs_sha256=inputs.hexdigest(),
        train_epoch=distillation.train_epoch,
        validation=validation,
        save_selected=save_selected,
    )
    print(f"student in {command.output / 'student.safetensors'}")


class Distillation:
    """One student learning from labels (CLS) and from a teacher (DIST)."""

    def __init__(
        self,
        recipe: StudentRecipe,
        model: DeiTLT,
        teacher: Teacher,
        loader: TrainingLoader,
        counts: np.ndarray,
        device: torch.device,
    ) -> None:
        self.recipe, self.model, self.teacher = recipe, model, teacher
        self.loader, self.counts, self.device = loader, counts, device
        self.mixing = student_mixing(recipe, len(counts))
        # No decay on biases, norms, position embedding and tokens, as DeiT does.
        groups = param_groups_weight_decay(
            model, recipe.weight_decay, no_weight_decay_list=model.no_weight_decay()
        )
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=recipe.epochs,
            lr_min=recipe.min_lr,
            warmup_t=recipe.warmup_epochs,
            warmup_lr_init=recipe.warmup_lr,
        )

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """One pass over the training images; returns the means of its losses."""
        recipe, loader = self.recipe, self.loader
        weight = drw_weight(self.counts, recipe.drw_beta, epoch, recipe.drw_epoch)
        weight = None if weight is None else weight.to(self.device)
        soften = epoch < recipe.drw_epoch or recipe.mix_in_drw
        accumulate = recipe.batch_size // (recipe.micro_batch_size or recipe.batch_size)
        sums = torch.zeros(4, device=self.device)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        for step, (images, labels) in enumerate(loader.epoch(epoch)):
            seed_global(recipe.seed, Stream.STEP, epoch, step)
            if step % accumulate == 0:
                self.schedule.step(epoch + step / len(loader))
            images, targets = self._soft_targets(images, labels) if soften else (images, labels)
            losses, teacher_labels = self._losses(images, targets, weight)
            # A trailing, incomplete group keeps this divisor, as the official code does.
            (losses[0] / accumulate).backward()
            if (step + 1) % accumulate == 0 or step + 1 == len(loader):
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
            dominant = targets.argmax(dim=1) if targets.ndim == 2 else targets
            agreement = (teacher_labels == dominant).float().mean()
            sums += torch.stack([*losses, agreement]).detach()
        loss, loss_cls, loss_dist, agreement = (sums / len(loader)).tolist()
        return {
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": loss,
            "loss_cls": loss_cls,
            "loss_dist": loss_dist,
            "teacher_agreement": agreement,
        }

    def _losses(
        self, images: Tensor, targets: Tensor, weight: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            teacher_labels = self.teacher.label(images)
            cls_logits, dist_logits = self.model(images)
        loss_cls = cls_loss(cls_logits.float(), targets)
        loss_dist = dist_loss(dist_logits.float(), teacher_labels, weight)
        loss = deit_lt_loss(loss_cls, loss_dist, self.recipe.alpha)
        return [loss, loss_cls, loss_dist], teacher_labels

    def _soft_targets(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.mixing is not None:
            return self.mixing(images, labels)
        smoothing = self.recipe.label_smoothing
        return images, mixup_target(labels, len(self.counts), smoothing=smoothing)


def check_teacher(card: Card, images: LabelledImages, path: Path) -> None:
    """Refuse a teacher whose answers mean other classes; warn of one trained on other images.

    Raises:
        CheckpointError: its classes, or their order, are not those of the data.
    """
    if card.classes != images.classes:
        if sorted(card.classes) == sorted(images.classes):
            at = next(i for i, name in enumerate(images.classes) if card.classes[i] != name)
            raise CheckpointError(
                f"{path}: the teacher has the classes in another order (its class {at} is "
                f"{card.classes[at]!r}, the data's {images.classes[at]!r}); retrain it on this data"
            )
        raise CheckpointError(
            f"{path}: the teacher knows {len(card.classes)} classes, the data has "
            f"{len(images.classes)} and not the same ones; train a teacher on this data"
        )
    if card.train_files_sha256 != files_sha256(images):
        print(
            f"warning: {path}: the teacher was trained on other images than this student will be; "
            "if it saw the held-out ones, selection is biased",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
