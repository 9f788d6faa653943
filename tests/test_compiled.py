"""The compiled transformer is one graph, compiled once, whatever changes over a run.

Without code generation (`aot_eager`), which changes nothing about what is traced and guarded.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from deitlt.student import build_student
from training.augmentation.recipe_views import student_view
from training.benchmark.images import SyntheticSet, make_cifar_like
from training.benchmark.student import untrained_teacher
from training.config import StudentRecipe
from training.engine.distributed import World
from training.engine.feed import Feed
from training.recipes import STUDENTS
from training.scoring import student_logits
from training.students.distillation import StudentLearner

CPU = World(torch.device("cpu"))
SMALL: dict[str, Any] = {
    "size": "pico",
    "img_size": 16,
    "patch_size": 8,
    "batch_size": 16,
    "micro_batch_size": 4,
    "epochs": 4,
    "warmup_epochs": 1,
    "drw_epoch": 2,
}


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSet:
    return make_cifar_like(tmp_path_factory.mktemp("compiled"), 10)


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A graph break and a second compilation are errors."""
    compiler = partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", compiler)
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("name", ["cifar", "deit3", "vit_ldam", "vit_crt"])
def test_one_graph_serves_a_whole_run(name: str, synthetic: SyntheticSet) -> None:
    train(replace(STUDENTS[name](), ema_decay=0.9, **SMALL), synthetic)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.usefixtures("strict")
def test_a_shorter_last_pass_has_a_graph_of_its_own(synthetic: SyntheticSet) -> None:
    with torch._dynamo.config.patch(error_on_recompile=False):
        train(replace(STUDENTS["cifar"](), at_once=4, **SMALL), synthetic)
    assert counters["stats"]["unique_graphs"] == 2


def train(recipe: StudentRecipe, synthetic: SyntheticSet) -> None:
    """All epochs of a run, with validation."""
    images = synthetic.images
    sizes: dict[str, Any] = {"batch_size": 16, "micro_batch_size": 4, "seed": 0}
    feed = Feed(images, [student_view(recipe)], CPU, sampling=recipe.sampling, **sizes)
    assert feed.num_micro % feed.cut.per_step  # the last step is shorter
    teacher = untrained_teacher(synthetic, CPU.device) if recipe.distilled else None
    learner = StudentLearner(
        recipe, build_student(recipe.shape(10)), teacher, feed, images.counts(), CPU, compiled=True
    )
    for epoch in range(recipe.epochs):
        learner.start_epoch(epoch)  # another learning rate, then DRW
        for step, batches in enumerate(feed.steps(epoch)):
            assert torch.isfinite(learner.step(epoch, step, batches)).all()
        student_logits(learner.student, [torch.randn(3, 3, 16, 16)])  # validation, in eval mode
