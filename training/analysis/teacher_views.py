"""What a teacher is asked during distillation: clean images, strong views, mixed ones (figure 3).

Legend: `N` images, `C` classes, `S` side of the student's input.
"""

from collections.abc import Iterator

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
CLEAN, STRONG, MIXED = "clean", "strong", "strong and mixed"
# The paper's, for weights that came without a recipe or a recipe that does not mix.
MIXUP, CUTMIX = 0.8, 1.0


def ask_teacher(
    teacher: Teacher,
    images: LabelledImages,
    spec: PreprocessSpec,
    recipe: StudentRecipe | None,
    device: torch.device,
) -> list[Sureness]:
    """The teacher's entropy on the same images seen in three ways.

    `clean` is the student's evaluation input, `strong` its random training view, and `strong and
    mixed` that view after mixup or CutMix in micro-batches: the tensors the teacher labels.
    A teacher with a cosine classifier answers with LDAM's scale; without it, it would be sure of
    nothing.

    Args:
        teacher: on `device`.
        images: what it is asked about; files that cannot be read are left out.
        spec: the student's evaluation preprocessing.
        recipe: the student's; None takes the paper's view.
        device: where to run.

    Raises:
        DataError: no image can be read.
    """
    view, mixup, cutmix = _view(spec, recipe)
    generator = np.random.default_rng(0)
    logits: dict[str, list[Tensor]] = {CLEAN: [], STRONG: [], MIXED: []}
    own, dominant = [], []
    for clean, strong, positions in _views(images, spec, view, generator, device):
        mixed, share = mix(strong, generator, mixup, cutmix)
        for name, batch in zip(logits, (clean, strong, mixed), strict=True):
            logits[name].append(teacher.logits(batch).float().cpu())
        labels = images.labels[positions]
        own.append(labels)
        dominant.append(labels if share >= 0.5 else labels[::-1])
    if not own:
        raise DataError(f"none of {len(images)} images can be read")
    answers = {name: torch.cat(parts).numpy() for name, parts in logits.items()}
    plain, larger = np.concatenate(own), np.concatenate(dominant)
    return [
        sureness(name, scores, larger if name == MIXED else plain)
        for name, scores in answers.items()
    ]


def _view(spec: PreprocessSpec, recipe: StudentRecipe | None) -> tuple[RandomView, float, float]:
    if recipe is None:
        return strong_view(spec.img_size, spec.mean, spec.std), MIXUP, CUTMIX
    if not recipe.mixup and not recipe.cutmix:
        return student_view(recipe), MIXUP, CUTMIX
    return student_view(recipe), recipe.mixup, recipe.cutmix


def _views(
    images: LabelledImages,
    spec: PreprocessSpec,
    view: RandomView,
    generator: np.random.Generator,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor, NDArray[np.int64]]]:
    """Clean and strong views, `(B, 3, S, S)` each, and the positions of their images."""
    bar = tqdm(total=len(images), desc="asking the teacher", unit="image", disable=None)
    with bar:
        for pictures, positions in decoded(images.paths, MICRO_BATCH, {}):
            clean = normalise(np.stack([resize_crop(p, spec) for p in pictures]), spec)
            plan = view.draw(generator, len(pictures))
            cut = np.stack([view.crop(p, plan, i) for i, p in enumerate(pictures)])
            crops = torch.from_numpy(cut).permute(0, 3, 1, 2).contiguous().to(device)
            strong = view.apply_cropped(crops, plan)
            yield torch.from_numpy(clean).to(device), strong, np.array(positions)
            bar.update(len(pictures))
