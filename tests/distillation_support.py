"""A student's learner on 26 images, with a teacher that keeps what it is shown."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from deitlt.labelled import LabelledImages
from deitlt.preprocess import PreprocessSpec
from deitlt.student import build_student
from deitlt.weights import Card
from training.augmentation.named_views import weak_view
from training.config import StudentRecipe
from training.engine.distributed import World
from training.engine.feed import Feed, MicroBatch
from training.recipes import students
from training.students.distillation import StudentLearner
from training.teachers.labelling import Teacher

COUNTS = [13, 8, 5]
CPU = World(torch.device("cpu"))
RECIPE = replace(
    students.digits(),
    epochs=10,
    drw_epoch=6,
    batch_size=8,
    micro_batch_size=4,
    label_smoothing=0.1,
    mix_in_drw=False,
    drw_beta=0.9,
)


class Seen(nn.Module):
    """A teacher's network that keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.linear = nn.Linear(3 * 16 * 16, 3)
        self.images: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.images.append(images.clone())
        logits: Tensor = self.linear(images.flatten(1))
        return logits


class Case:
    """A learner, a copy of its student as it was, and its teacher's eyes."""

    def __init__(self, images: LabelledImages, **fields: Any) -> None:
        self.recipe: StudentRecipe = replace(RECIPE, **fields)
        recipe = self.recipe
        view = weak_view(16, recipe.mean, recipe.std, padding=0, flip=0.5)
        self.feed = Feed(
            images, [view], CPU, batch_size=recipe.batch_size, micro_batch_size=4, seed=0
        )
        torch.manual_seed(1)
        student = build_student(recipe.shape(3))
        with torch.no_grad():  # heads start near zero, where all losses are alike
            for name, parameter in student.named_parameters():
                if name.startswith("head"):
                    parameter.normal_(0, 0.5)
        self.eyes = Seen()
        card = Card(
            kind="teacher",
            architecture={"name": "resnet32", "classifier": "linear", "num_classes": 3},
            classes=["a", "b", "c"],
            train_counts=COUNTS,
            train_files_sha256="",
            preprocess=PreprocessSpec(16),
            recipe={},
            epoch=1,
        )
        teacher = Teacher(self.eyes, card) if recipe.distilled else None
        self.learner = StudentLearner(
            recipe, student, teacher, self.feed, COUNTS, CPU, compiled=False
        )
        self.before = copy.deepcopy(student)

    def step(self, epoch: int = 0, step: int = 0) -> tuple[list[MicroBatch], Tensor]:
        """The micro-batches of a step, and the figures that the learner gives for them."""
        steps = list(self.feed.steps(epoch))
        self.learner.start_epoch(epoch)
        return steps[step], self.learner.step(epoch, step, steps[step])

    def teacher_logits(self, images: Tensor) -> Tensor:
        weight, bias = self.eyes.linear.weight, self.eyes.linear.bias
        return images.flatten(1) @ weight.T.detach() + bias.detach()

    def gradients(self) -> dict[str, Tensor]:
        named = self.learner.student.named_parameters()
        return {name: p.grad.clone() for name, p in named if p.grad is not None}
