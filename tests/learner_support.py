"""Small students in training on a synthetic set, on any device."""

from dataclasses import replace
from typing import Any

import torch

from deitlt.labelled import LabelledImages
from deitlt.student import DeiTLT, PlainViT, build_student
from training.augmentation.recipe_views import student_view
from training.augmentation.views import RandomView
from training.benchmark.images import SyntheticSet
from training.config import StudentRecipe, TeacherRecipe
from training.engine.distributed import World
from training.engine.feed import Feed
from training.recipes import STUDENTS
from training.students.distillation import StudentLearner
from training.teachers.labelling import Teacher

SMALL: dict[str, Any] = {"img_size": 32, "batch_size": 16, "micro_batch_size": 8}
PICO: dict[str, Any] = {"size": "pico", "patch_size": 8, **SMALL}


def student_learner(
    recipe: StudentRecipe,
    synthetic: SyntheticSet,
    teacher: Teacher,
    student: DeiTLT | PlainViT,
    device: torch.device,
) -> StudentLearner:
    images, views = synthetic.images, [student_view(recipe)]
    return StudentLearner(
        recipe,
        student.to(device),
        teacher.to(device) if recipe.distilled else None,
        feed_of(recipe, images, views, device, sampling=recipe.sampling),
        images.counts(),
        World(device),
        compiled=False,
    )


def feed_of(
    recipe: StudentRecipe | TeacherRecipe,
    images: LabelledImages,
    views: list[RandomView],
    device: torch.device,
    **options: Any,
) -> Feed:
    return Feed(
        images,
        views,
        World(device),
        batch_size=recipe.batch_size,
        micro_batch_size=recipe.micro_batch_size,
        seed=0,
        **options,
    )


def transformer(recipe: StudentRecipe) -> DeiTLT | PlainViT:
    return build_student(recipe.shape(10))


def tiny(name: str, **fields: Any) -> StudentRecipe:
    recipe = STUDENTS[name]()
    drw = 1 if recipe.drw_epoch < recipe.epochs else recipe.epochs
    return replace(recipe, drw_epoch=drw, **PICO, **fields)
