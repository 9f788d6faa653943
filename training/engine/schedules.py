"""Learning rates as functions of the epoch; no state to resume.

Epochs count from 0 and may be fractional.
"""

import math

from torch.optim import Optimizer

from training.config import StudentRecipe, TeacherRecipe


def student_learning_rate(recipe: StudentRecipe, epoch: float) -> float:
    """Linear warm-up from `warmup_lr`, then the cosine of all epochs down to `min_lr` (DeiT).

    The cosine starts at epoch 0, so the warm-up ends a little below the peak (timm without
    `warmup_prefix`).
    """
    if epoch < recipe.warmup_epochs:
        return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * epoch / recipe.warmup_epochs
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / recipe.epochs)))
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * cosine


def teacher_learning_rate(recipe: TeacherRecipe, epoch: int) -> float:
    """Linear warm-up over the first epochs, then steps down (LDAM-DRW, PaCo) or a cosine to 0.

    The cosine starts in the last epoch of the warm-up (PaCo on the large sets). Deviation: PaCo's
    CIFAR program warms up for one epoch more, whose rate is 1.1 times the peak.
    """
    if epoch < recipe.warmup_epochs:
        return recipe.lr * (epoch + 1) / recipe.warmup_epochs
    if recipe.schedule == "cosine":
        start = max(0, recipe.warmup_epochs - 1)
        share = (epoch - start) / (recipe.epochs - start)
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * share))
    return recipe.lr * recipe.decay_factor ** sum(epoch >= step for step in recipe.decay_epochs)


def set_learning_rate(optimizers: list[Optimizer], lr: float) -> None:
    """Give every group the same learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
