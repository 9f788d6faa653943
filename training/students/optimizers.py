"""Optimisers of the student."""

import torch
from timm.optim import Lamb, param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer

from deitlt.student import DeiTLT, PlainViT
from training.config import StudentRecipe


def student_optimizers(model: DeiTLT | PlainViT, recipe: StudentRecipe) -> list[Optimizer]:
    """What updates a student: one optimiser, or for `muon` two.

    No decay on biases, norms, position embedding and tokens (DeiT). Muon takes the matrices of the
    blocks with the step size of AdamW (`match_rms_adamw`), so that learning rate and decay carry
    over; embeddings, heads and everything one-dimensional stay with AdamW.
    """
    matrices: list[nn.Parameter] = []
    if recipe.optimizer == "muon":
        matrices = [p for p in model.blocks.parameters() if p.ndim == 2 and p.requires_grad]
    taken = {id(p) for p in matrices}
    groups = param_groups_weight_decay(
        model, recipe.weight_decay, no_weight_decay_list=model.no_weight_decay()
    )
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in taken]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "lamb":
        return [Lamb(groups, lr=recipe.lr)]
    optimizers: list[Optimizer] = [torch.optim.AdamW(groups, lr=recipe.lr, fused=True)]
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                matrices,
                lr=recipe.lr,
                weight_decay=recipe.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers
