"""Options that were set and change nothing, or not all they should: who set them is told.

A recipe has the fields of all methods and views; which are read depends on others of them. And what
it does from an epoch on it does from there however many there are.
"""

from collections.abc import Iterator
from dataclasses import fields

from training.config import Recipe, StudentRecipe, TeacherRecipe, kebab

# Fields, whether they are read, and why they are not.
Rule = tuple[tuple[str, ...], bool, str]


def unread_options(recipe: TeacherRecipe | StudentRecipe, named: Recipe) -> list[str]:
    """A note on each option that differs from the recipe it was given to and is not read.

    Args:
        recipe: as it will be run.
        named: as it is without options.
    """
    changed = {f.name for f in fields(recipe) if getattr(recipe, f.name) != getattr(named, f.name)}
    rules = _of_teacher(recipe) if isinstance(recipe, TeacherRecipe) else _of_student(recipe)
    return [
        f"--{kebab(name)} changes nothing {reason}"
        for names, is_read, reason in rules
        for name in names
        if name in changed and not is_read
    ]


def unmoved_steps(recipe: TeacherRecipe | StudentRecipe, named: Recipe) -> list[str]:
    """A note on steps of the schedule that stay where they are, though there are other epochs.

    Args:
        recipe: as it will be run.
        named: as it is without options.
    """
    if recipe.epochs == named.epochs:
        return []
    names = ["drw_epoch"] if recipe.reweights else []
    if isinstance(recipe, TeacherRecipe):
        names += ["decay_epochs"] if recipe.schedule == "step" else []
        names += ["rho_epochs"]
    flags = []
    for name in names:
        value = getattr(recipe, name)
        if value != getattr(named, name) or value == ():
            continue
        steps = value if isinstance(value, tuple) else (value,)
        if min(steps) >= max(recipe.epochs, named.epochs):
            continue  # turned off, and so it stays
        fitted = [str(max(1, step * recipe.epochs // named.epochs)) for step in steps]
        flags.append(f"--{kebab(name)} {' '.join(fitted)}")
    if not flags:
        return []
    return [
        f"steps of recipe {named.name} are those of its {named.epochs} epochs; "
        f"to fit them to {recipe.epochs}, add {' '.join(flags)}"
    ]


def _of_student(recipe: StudentRecipe) -> Iterator[Rule]:
    view, losses = recipe.view, {recipe.cls_loss, recipe.drw_cls_loss, recipe.dist_loss}
    yield from _of_all(recipe, view)
    yield ("crop_padding",), view == "weak", f"with --view {view}"
    yield ("temperature",), recipe.distillation == "soft", "without --distillation soft"
    yield ("dist_loss",), recipe.distillation == "hard", "with --distillation soft"
    expert = ("alpha", "distillation", "renormalise", "dist_loss", "temperature")
    yield expert, recipe.distilled, "without a DIST expert"
    tau = bool(losses & {"logit_adjustment", "vs"})
    yield ("loss_tau",), tau, "without a loss logit_adjustment or vs"
    gamma = bool(losses & {"cb_focal", "vs"})
    yield ("loss_gamma",), gamma, "without a loss cb_focal or vs"
    yield ("max_margin",), "ldam" in losses, "without a loss ldam"
    smoothed = {recipe.cls_loss, recipe.drw_cls_loss or recipe.cls_loss} != {"bce"}
    yield ("label_smoothing",), smoothed, "with --cls-loss bce"
    in_drw = ("drw_cls_loss", "drw_on_cls", "mix_in_drw", "drw_beta")
    yield in_drw, recipe.drw_epoch < recipe.epochs, "without deferred re-weighting (--drw-epoch)"


def _of_teacher(recipe: TeacherRecipe) -> Iterator[Rule]:
    view, method = recipe.view, recipe.method
    yield from _of_all(recipe, view)
    yield ("crop_padding",), view in ("weak", "paco_small"), f"with --view {view}"
    by_method = f"with --method {method}"
    yield ("mixup", "cutmix", "label_smoothing"), method == "ce", by_method
    yield ("drw_epoch", "drw_beta"), method in ("ldam", "ce"), by_method
    yield ("max_margin", "scale"), method == "ldam", by_method
    for prefix in ("paco", "glmc"):
        own = tuple(f.name for f in fields(recipe) if f.name.startswith(f"{prefix}_"))
        yield own, method == prefix, by_method
    stepped = recipe.schedule == "step"
    yield ("decay_epochs", "decay_factor"), stepped, f"with --schedule {recipe.schedule}"
    yield ("sam_batch_norm",), max(recipe.rho, *recipe.rho_values, 0) > 0, "without SAM (--rho)"


def _of_all(recipe: Recipe, view: str) -> Iterator[Rule]:
    strong = ("auto_augment", "random_erasing", "crop_scale", "crop_ratio")
    yield strong, view == "strong", f"with --view {view}"
    yield ("subset_seed",), recipe.imbalance_factor is not None, "without --imbalance-factor"
    yield ("split_seed",), recipe.val_fraction > 0, "with --val-fraction 0"
