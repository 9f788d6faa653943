"""Training as a GPU runs it, with tensors that have no numbers (`fake_gpu_support`).

Devices and precisions are those of a GPU, and a wait of the host for it is noticed. What the
kernels compute is not tested here.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from deitlt.student import DeiTLT, PlainViT
from deitlt.weights import load_tensors
from tests.fake_gpu_support import GPU, Watch, fake_gpu
from tests.learner_support import SMALL, feed_of, student_learner, tiny, transformer
from training.analysis.attention import experts, walk
from training.analysis.attention_distance import mean_attention_distance
from training.analysis.gallery import rollout_maps
from training.augmentation.crops import PaddedCrop, ResizedCrop
from training.augmentation.operations import Op
from training.augmentation.policies import Drawn
from training.augmentation.recipe_views import student_view, teacher_views
from training.augmentation.views import RandomView
from training.benchmark.images import SyntheticSet, make_cifar_like
from training.benchmark.student import untrained_teacher
from training.config import StudentRecipe, TeacherRecipe
from training.data import EvaluationImages
from training.engine import checkpoint
from training.engine.checkpoint import RESUME, Progress, RunFolder
from training.engine.distributed import World
from training.engine.feed import Feed, MicroBatch
from training.recipes import STUDENTS, TEACHERS
from training.scoring import _answer
from training.students.distillation import StudentLearner
from training.teachers.labelling import Teacher
from training.teachers.learner import TeacherLearner, build_method

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSet:
    return make_cifar_like(tmp_path_factory.mktemp("gpu"), 20)


class OnGPU:
    """A learner on the GPU, and what feeds it."""

    def __init__(self, learner: StudentLearner | TeacherLearner, feed: Feed, watch: Watch) -> None:
        self.learner, self.feed, self.watch = learner, feed, watch

    def step(self, epoch: int) -> list[MicroBatch]:
        """The first step of an epoch; nothing in it may wait for the GPU."""
        self.learner.start_epoch(epoch)
        self.watch.forget()
        batches = next(self.feed.steps(epoch))
        if epoch == 0:  # constants are uploaded once
            self.watch.forget()
        assert all(view.device == GPU for batch in batches for view in batch.views)
        figures = self.learner.step(epoch, 0, batches)
        assert not self.watch.waits
        assert not self.watch.large_uploads
        assert figures.device == GPU
        assert figures.dtype == torch.float32
        assert figures.shape == (len(self.learner.figures),)
        return batches


def student_on(recipe: StudentRecipe, synthetic: SyntheticSet, watch: Watch, teacher: Teacher,
               student: DeiTLT | PlainViT) -> OnGPU:  # fmt: skip
    learner = student_learner(recipe, synthetic, teacher, student, GPU)
    return OnGPU(learner, learner.feed, watch)


# Those of the recipes that differ in more than numbers, and options that no recipe has.
RECIPES = ("cifar", "imagenet_lt", "cifar_weak_views", "cifar_muon", "vit_crt", "vit_ldam", "deit3")
CASES: dict[str, StudentRecipe] = {
    **{name: tiny(name) for name in RECIPES},
    "averaged": tiny("cifar", ema_decay=0.9),
    "at once": tiny("cifar", at_once=2),
    "soft": tiny("cifar", distillation="soft", drw_on_cls=True),
    "renormalised": tiny("cifar", renormalise=True),
    **{loss: tiny("vit", cls_loss=loss) for loss in ("cb_focal", "vs")},
}


@pytest.mark.parametrize("name", CASES)
def test_a_student_takes_steps_that_never_wait(name: str, synthetic: SyntheticSet) -> None:
    recipe = CASES[name]
    student, teacher = transformer(recipe), untrained_teacher(synthetic, CPU)
    if recipe.renormalise:
        teacher = Teacher(teacher.model, teacher.card, recipe.preprocess())
    with fake_gpu() as watch:
        on_gpu = student_on(recipe, synthetic, watch, teacher, student)
        for epoch in (0, 1):
            on_gpu.step(epoch)
        learner = on_gpu.learner
        states = [s for o in learner.optimizers for s in o.state.values()]
        kept = [*learner.modules["model"].parameters(), *(v for s in states for v in s.values())]
        if recipe.ema_decay:
            kept += learner.modules["ema"].parameters()
        assert {(tensor.device, tensor.dtype) for tensor in kept} == {(GPU, torch.float32)}


@pytest.mark.parametrize(
    "name", ["cifar", "cifar_no_sam", "cifar_paco", "cifar_glmc", "cifar_strong", "imagenet_lt"]
)
def test_a_teacher_takes_steps_that_never_wait(name: str, synthetic: SyntheticSet) -> None:
    recipe = teacher_recipe(name)
    method = build_method(recipe, synthetic.images.counts(), 10)
    with fake_gpu() as watch:
        views = teacher_views(recipe)
        feed = feed_of(recipe, synthetic.images, views, GPU, companions=method.companions)
        learner = TeacherLearner(recipe, method, World(GPU), graphed=True)
        assert (learner._graph is not None) == (recipe.micro_batch_size is None)
        learner._graph = None  # there is nothing to capture it with
        on_gpu = OnGPU(learner, feed, watch)
        for epoch in (0, 1):
            batches = on_gpu.step(epoch)
        # A graph can copy nothing from the host, whether that waits or not.
        prepared = [learner._prepare(0, batch) for batch in batches]
        watch.forget()
        learner._sam(prepared)
        assert watch.uploads == 0
        state = [*method.state_dict().values(), *learner.optimizers[0].state_dict()["state"][0]]
        devices = {value.device for value in state if isinstance(value, Tensor)}
        assert devices == {GPU}


def teacher_recipe(name: str) -> TeacherRecipe:
    recipe = TEACHERS[name]()
    smaller = {"resnet50": "resnet32", "timm/regnety_160": "timm/regnety_002"}
    network = smaller.get(recipe.network, recipe.network)
    small = SMALL if recipe.micro_batch_size else {**SMALL, "micro_batch_size": None}
    drw = min(1, recipe.drw_epoch)
    return replace(recipe, network=network, drw_epoch=drw, paco_queue=32, **small)


class Everything:
    """A policy of which every operation comes up, before and after ones that look around."""

    def draw(self, generator: np.random.Generator, num_images: int, side: int) -> Drawn:
        """Two operations an image."""
        codes = (np.arange(num_images)[:, None] + [0, 7]) % len(Op)
        return codes.astype(np.int8), np.ones(codes.shape)


@pytest.mark.parametrize(("crop", "streamed"), [
    (ResizedCrop(), False), (ResizedCrop(interpolation="bilinear"), False), (PaddedCrop(4), False),
    (PaddedCrop(4, reflect=True), False), (ResizedCrop(), True),
])  # fmt: skip
def test_every_operation_runs_on_a_gpu(crop: ResizedCrop | PaddedCrop, streamed: bool) -> None:
    view = RandomView(
        img_size=32,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.2),
        crop=crop,
        policies=(Everything(),),
        random_erasing=0.5,
        cutout_px=8,
    )
    plan = view.draw(np.random.default_rng(0), 2 * len(Op))
    with fake_gpu() as watch:
        pixels = torch.empty(len(plan), 3, 32, 32, dtype=torch.uint8, device=GPU)
        make = view.apply_cropped if streamed else view.apply
        make(pixels, plan)
        watch.forget()
        views = make(pixels, plan)
        assert (views.device, views.dtype, views.shape) == (GPU, torch.float32, pixels.shape)
        assert not watch.waits
        assert not watch.large_uploads


@pytest.mark.parametrize("name", ["cifar", "cifar_weak_views"])
def test_the_plan_of_a_whole_step_is_taken_over_at_once(name: str) -> None:
    """1,024 images of 224 px; what is larger than the driver's buffer would wait for the GPU."""
    view = student_view(STUDENTS[name]())
    plan = view.draw(np.random.default_rng(0), 1024)
    with fake_gpu() as watch:
        view.apply(torch.empty(1024, 3, 224, 224, dtype=torch.uint8, device=GPU), plan)
        assert watch.uploads > 3
        assert not watch.large_uploads


@pytest.mark.parametrize("name", ["cifar", "vit", "vit_ldam"])
def test_a_student_is_scored_on_a_gpu(name: str, synthetic: SyntheticSet) -> None:
    recipe = tiny(name)
    student = transformer(recipe).eval()
    with fake_gpu(), torch.inference_mode():
        student.to(GPU)
        for batch in EvaluationImages(synthetic.images, recipe.preprocess(), GPU):
            for logits in _answer(student, batch, recipe.bf16):
                assert (logits.device, logits.dtype) == (GPU, torch.float32)
                assert logits.shape == (len(batch), 10)


@pytest.mark.parametrize("name", ["cifar", "vit"])
def test_a_student_is_looked_into_on_a_gpu(name: str) -> None:
    student = transformer(tiny(name)).eval()
    with fake_gpu():
        student.to(GPU)
        images = torch.empty(3, 3, 32, 32, device=GPU)
        num_experts = len(experts(student))
        assert rollout_maps(student, images).device == GPU
        for view in walk(student, images):
            distances = mean_attention_distance(view.attention, num_experts, 8)
            assert (distances.device, distances.shape) == (GPU, (3, 4))


@pytest.mark.parametrize("side", [28, 32, 64, 224])
def test_a_teacher_answers_for_views_of_any_size(side: int, synthetic: SyntheticSet) -> None:
    teacher = untrained_teacher(synthetic, CPU)
    with fake_gpu() as watch:
        labels = teacher.to(GPU).label(torch.empty(4, 3, side, side, device=GPU))
        watch.forget()
        teacher.label(torch.empty(4, 3, side, side, device=GPU))
        assert (labels.device, labels.dtype, watch.uploads) == (GPU, torch.int64, 0)


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon"])
def test_a_resume_point_is_loaded_onto_the_gpu(
    optimizer: str, synthetic: SyntheticSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny("cifar", optimizer=optimizer)
    teacher, run = untrained_teacher(synthetic, CPU), RunFolder(tmp_path)
    images, world = synthetic.images, World(CPU)
    feed = Feed(images, [student_view(recipe)], world, batch_size=16, micro_batch_size=8, seed=0)
    learner = StudentLearner(
        recipe, transformer(recipe), teacher, feed, images.counts(), world, compiled=False
    )
    learner.step(0, 0, next(feed.steps(0)))
    run.save(Progress(epoch=1), learner.modules, learner.optimizers, "")
    read = load_tensors(tmp_path / RESUME)  # a file has numbers
    monkeypatch.setattr(checkpoint, "load_tensors", lambda _: read)
    other = transformer(recipe)
    with fake_gpu() as watch:
        on_gpu = student_on(recipe, synthetic, watch, teacher, other)
        resumed = on_gpu.learner
        assert run.load(resumed.modules, resumed.optimizers, "").epoch == 1
        for theirs, own in zip(resumed.optimizers, learner.optimizers, strict=True):
            assert len(theirs.state) == len(own.state)
            for state in theirs.state.values():
                assert {value.device for value in state.values()} == {GPU}
        on_gpu.step(0)


def test_the_fake_gpu_notices_what_a_gpu_would() -> None:
    with fake_gpu() as watch:
        here, there = torch.ones(3), torch.ones(3, device=GPU)
        with pytest.raises(Exception, match=r"same device|two different devices"):
            here + there
        with pytest.raises(Exception, match="local_scalar_dense"):
            bool(there.sum() > 0)
        with pytest.raises(Exception, match="nonzero"):
            there[there > 0]
        assert not watch.waits
        there.cpu()
        here.to(GPU)
        here.to(GPU, non_blocking=True)
        there.copy_(here)
        torch.ones(1 << 20).to(GPU, non_blocking=True)
    assert watch.waits == {"_to_copy cuda to cpu": 1, "_to_copy cpu to cuda": 1,
                           "copy_ cpu to cuda": 1}  # fmt: skip
    assert watch.large_uploads == [4 << 20]
    assert watch.uploads == 4
