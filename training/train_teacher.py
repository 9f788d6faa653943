"""`python -m training.train_teacher RECIPE --data DATA --output RUN`: LDAM-DRW with SAM."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from deitlt.weights import Card, save_weights
from training.augment import teacher_transform
from training.checkpoint import RunFolder
from training.command_line import Command, parse, pick_recipe, run_program
from training.config import TeacherRecipe
from training.data import EvaluationImages, TrainingLoader, files_sha256, load_splits
from training.loop import Validation, pick_device, train
from training.losses import LDAMLoss, drw_weight
from training.recipes import TEACHERS
from training.sam import sam_step
from training.scoring import teacher_logits
from training.seeding import Stream, seed_global
from training.teachers import build_teacher

PROGRAM = "training.train_teacher"


@dataclass(frozen=True, kw_only=True)
class TeacherCommand(Command):
    """What `train_teacher` is told."""

    recipe: TeacherRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Train a teacher; returns 0, or 2 with one line on what was wrong."""
    return run_program(PROGRAM, argv, _main)


def _main(argv: list[str]) -> None:
    recipe, rest = pick_recipe(PROGRAM, argv, TEACHERS)
    train_teacher(parse(PROGRAM, TeacherCommand, rest, recipe=recipe))


def train_teacher(command: TeacherCommand) -> None:
    """Train one teacher as told, into its run folder.

    Raises:
        DeitLTError: one of its kinds; the text is for the user.
    """
    recipe, device = command.recipe, pick_device(command.device)
    splits = load_splits(command.data, recipe)
    print(splits.describe())
    run = RunFolder(command.output)
    run.check(recipe, resume=command.resume, overwrite=command.overwrite)
    counts = splits.train.counts()
    data_sha256 = files_sha256(splits.train)
    loader = TrainingLoader(
        splits.train,
        teacher_transform(recipe),
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        num_workers=command.workers,
        device=device,
    )
    val_images = None
    if splits.val is not None:
        val_images = EvaluationImages(splits.val, recipe.preprocess(), device)

    seed_global(recipe.seed, Stream.WEIGHTS)
    architecture = {"name": "resnet32", "num_classes": len(counts)}
    model = build_teacher(architecture).to(device)
    # Channels last make small convolutions up to a third faster, on CPU and GPU.
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
    )
    criterion = LDAMLoss(counts, recipe.max_margin, recipe.scale).to(device)

    def train_epoch(epoch: int) -> dict[str, float]:
        lr = learning_rate(recipe, epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        weight = drw_weight(counts, recipe.drw_beta, epoch, recipe.drw_epoch)
        weight = None if weight is None else weight.to(device)
        model.train()
        total = torch.zeros((), device=device)
        for images, labels in loader.epoch(epoch):
            images = images.contiguous(memory_format=torch.channels_last)
            total += sam_step(
                model,
                optimizer,
                lambda x=images, y=labels: criterion(model(x), y, weight),  # type: ignore[misc]
                recipe.rho,
                freeze_batch_norm=recipe.sam_batch_norm == "first",
            )
        return {"lr": lr, "loss": float(total) / len(loader)}

    def save_selected(epoch: int, figures: dict[str, Any]) -> None:
        card = Card(
            kind="teacher",
            architecture=architecture,
            classes=splits.train.classes,
            train_counts=counts.tolist(),
            train_files_sha256=data_sha256,
            preprocess=recipe.preprocess(),
            recipe=asdict(recipe),
            epoch=epoch,
            validation=figures,
        )
        save_weights(command.output / "teacher.safetensors", model, card)

    validation = None
    if val_images is not None:
        validation = Validation(
            val_images,
            lambda images: teacher_logits(model, images),
            counts.tolist(),
            head="teacher",
        )
    run.start(recipe, resume=command.resume)
    train(
        run,
        recipe,
        model,
        optimizer,
        inputs_sha256=data_sha256,
        train_epoch=train_epoch,
        validation=validation,
        save_selected=save_selected,
    )
    print(f"teacher in {command.output / 'teacher.safetensors'}")


def learning_rate(recipe: TeacherRecipe, epoch: int) -> float:
    """Linear warm-up over the first epochs, then steps down (LDAM-DRW's schedule; epoch from 0)."""
    if epoch < recipe.warmup_epochs:
        return recipe.lr * (epoch + 1) / recipe.warmup_epochs
    return recipe.lr * recipe.decay_factor ** sum(epoch >= step for step in recipe.decay_epochs)


if __name__ == "__main__":
    sys.exit(main())
