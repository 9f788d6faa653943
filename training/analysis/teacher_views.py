"""What a teacher is asked during distillation: random views, mixed ones (figure 3).

Legend: `N` images, `C` classes, `S` side of the student's input.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from deitlt.errors import DataError
from deitlt.labelled import LabelledImages
from deitlt.preprocess import PreprocessSpec, normalise, resize_crop
from training.analysis.images import decoded
from training.analysis.teacher_entropy import Sureness, sureness
from training.augmentation.mixing import mix
from training.augmentation.named_views import student_view as strong_view
from training.augmentation.recipe_views import student_view
from training.augmentation.views import RandomView
from training.config import StudentRecipe
from training.teachers.labelling import Teacher

MICRO_BATCH = 64
CLEAN = "clean"
VIEW_NAMES = {"strong": "strong", "three_augment": "3-Augment", "weak": "weak"}
# The paper's, for weights that came without a recipe.
MIXUP, CUTMIX = 0.8, 1.0


def ask_teacher(
    teacher: Teacher,
    images: LabelledImages,
    spec: PreprocessSpec,
    recipe: StudentRecipe | None,
    device: torch.device,
    unreadable: dict[Path, str],
) -> list[Sureness]:
    """The teacher's entropy on the same images seen in two or three ways.

    `clean` is the student's evaluation input, `strong` (`3-Augment`, `weak`: what its recipe has)
    its random training view, and `strong and mixed` that view after mixup or CutMix in
    micro-batches, where the recipe mixes: the tensors the teacher labels.
    A teacher with a cosine classifier answers with LDAM's scale; without it, it would be sure of
    nothing.

    Args:
        teacher: on `device`.
        images: what it is asked about.
        spec: the student's evaluation preprocessing.
        recipe: the student's; None takes the paper's view.
        device: where to run.
        unreadable: gets the files that cannot be read and are left out, and why.

    Raises:
        DataError: no image can be read.
    """
    name, view, mixup, cutmix = _view(spec, recipe)
    generator = np.random.default_rng(0)
    logits: dict[str, list[Tensor]] = {CLEAN: [], name: []}
    labels: dict[str, list[NDArray[np.int64]]] = {CLEAN: [], name: []}
    if mixup or cutmix:
        mixed_name = f"{name} and mixed"
        logits[mixed_name], labels[mixed_name] = [], []

    def ask(how: str, batch: Tensor, right: NDArray[np.int64]) -> None:
        logits[how].append(teacher.logits(batch).float().cpu())
        labels[how].append(right)

    for clean, seen, positions in _views(images, spec, view, generator, device, unreadable):
        own = images.labels[positions]
        ask(CLEAN, clean, own)
        ask(name, seen, own)
        if mixup or cutmix:
            mixed, share = mix(seen, generator, mixup, cutmix)
            ask(mixed_name, mixed, own if share >= 0.5 else own[::-1])
    if not labels[CLEAN]:
        raise DataError(f"none of {len(images)} images can be read")
    return [
        sureness(how, torch.cat(parts).numpy(), np.concatenate(labels[how]))
        for how, parts in logits.items()
    ]


def _view(
    spec: PreprocessSpec, recipe: StudentRecipe | None
) -> tuple[str, RandomView, float, float]:
    if recipe is None:
        view = strong_view(spec.img_size, spec.mean, spec.std)
        return VIEW_NAMES["strong"], view, MIXUP, CUTMIX
    return VIEW_NAMES[recipe.view], student_view(recipe), recipe.mixup, recipe.cutmix


def _views(
    images: LabelledImages,
    spec: PreprocessSpec,
    view: RandomView,
    generator: np.random.Generator,
    device: torch.device,
    unreadable: dict[Path, str],
) -> Iterator[tuple[Tensor, Tensor, NDArray[np.int64]]]:
    """Clean and random views, `(B, 3, S, S)` each, and the positions of their images."""
    bar = tqdm(total=len(images), desc="asking the teacher", unit="image", disable=None)
    with bar:
        for pictures, positions in decoded(images.paths, MICRO_BATCH, unreadable):
            clean = normalise(np.stack([resize_crop(p, spec) for p in pictures]), spec)
            plan = view.draw(generator, len(pictures))
            cut = np.stack([view.crop(p, plan, i) for i, p in enumerate(pictures)])
            crops = torch.from_numpy(cut).permute(0, 3, 1, 2).contiguous().to(device)
            seen = view.apply_cropped(crops, plan)
            yield torch.from_numpy(clean).to(device), seen, np.array(positions)
            bar.update(len(pictures))
