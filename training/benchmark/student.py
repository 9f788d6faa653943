"""The whole student step against the conventional pipeline, in turns, and the parts of the step.

Legend: `B` images of a micro-batch, `S` image side, `C` classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import count, islice

import torch
from timm.data.mixup import mixup_target
from torch import Tensor

from deitlt.student import DeiTLT, Size
from deitlt.weights import Card
from training.augmentation.recipe_views import student_view
from training.benchmark.baseline import Conventional
from training.benchmark.images import SyntheticSet
from training.benchmark.measure import PeakMemory, Row, Target, timed, training_flops
from training.config import StudentRecipe
from training.engine.distributed import World
from training.engine.feed import Feed, MicroBatch
from training.engine.seeding import Stream, seed_global
from training.recipes import TEACHERS
from training.students.distillation import StudentLearner
from training.teachers.labelling import Teacher, build_teacher

WANTED_RATIO = 3.0
# Of the card's matrix rate, by size.
WANTED_SHARE: dict[Size, float] = {"base": 0.5, "small": 0.4}
VIEWS = "views alone"


class OurStep:
    """A student in training on the synthetic set, as `train_student` sets it up."""

    def __init__(
        self,
        recipe: StudentRecipe,
        synthetic: SyntheticSet,
        teacher: Teacher,
        world: World,
        *,
        compiled: bool,
    ) -> None:
        self.world, self.teacher, self.recipe = world, teacher, recipe
        images = synthetic.images
        self.num_classes = len(images.classes)
        self.feed = Feed(
            images,
            [student_view(recipe)],
            world,
            batch_size=recipe.batch_size,
            micro_batch_size=recipe.micro_batch_size,
            seed=recipe.seed,
            sampling=recipe.sampling,
        )
        student = DeiTLT(recipe.shape(self.num_classes)).to(world.device)
        self.learner = StudentLearner(
            recipe, student, teacher, self.feed, images.counts(), world, compiled=compiled
        )
        self.learner.start_epoch(0)
        self._steps = self._endless()

    def train(self, num_steps: int) -> int:
        """Do optimiser steps; returns how many images they took."""
        num_images = 0
        for epoch, step, batches in islice(self._steps, num_steps):
            self.learner.step(epoch, step, batches)
            num_images += sum(len(batch.labels) for batch in batches)
        return num_images

    def parts(self) -> dict[str, Callable[[], object]]:
        """What one step consists of, each part by itself, on the images of one step."""
        optimizers = self.learner.optimizers
        _, _, batches = next(self._steps)
        size = self.recipe.at_once
        passes = [batches[i : i + size] for i in range(0, len(batches), size)]
        images = [torch.cat([batch.views[0] for batch in own]) for own in passes]
        labels = [self._ask(shown) for shown in images]
        parts: dict[str, Callable[[], object]] = {
            VIEWS: lambda: next(self._steps),
            "teacher's labels alone": lambda: [self._ask(shown) for shown in images],
            "student forward and backward alone": lambda: self._train(passes, images, labels),
            "optimiser alone": lambda: [optimizer.step() for optimizer in optimizers],
        }
        for part in parts.values():
            part()
        return parts

    def _ask(self, images: Tensor) -> Tensor:
        with self.recipe.precision(self.world.device):
            return self.teacher.label(images)

    def _train(
        self, passes: list[list[MicroBatch]], images: list[Tensor], labels: list[Tensor]
    ) -> None:
        """Forward and backward of a step's passes."""
        smoothing = self.recipe.label_smoothing
        for batches, shown, taught in zip(passes, images, labels, strict=True):
            mixed = [mixup_target(b.labels, self.num_classes, 0.5, smoothing) for b in batches]
            targets, parts = torch.cat(mixed), len(batches)
            with self.recipe.precision(self.world.device):
                losses = self.learner.losses(
                    shown, targets, taught, None, in_drw=False, parts=parts
                )
            losses[:, 0].sum().backward()

    def _endless(self) -> Iterator[tuple[int, int, list[MicroBatch]]]:
        for epoch in count():
            for step, batches in enumerate(self.feed.steps(epoch)):
                yield epoch, step, batches


def untrained_teacher(synthetic: SyntheticSet, device: torch.device) -> Teacher:
    """A ResNet-32 of the recipe `cifar` that answers as fast as a trained one."""
    recipe, images = TEACHERS["cifar"](), synthetic.images
    architecture = recipe.architecture(len(images.classes))
    card = Card(
        kind="teacher",
        architecture=architecture,
        classes=images.classes,
        train_counts=images.counts().tolist(),
        train_files_sha256="",
        preprocess=recipe.preprocess(),
        recipe=asdict(recipe),
        epoch=0,
    )
    return Teacher(build_teacher(architecture), card).to(device)


def measure_student(
    recipe: StudentRecipe,
    synthetic: SyntheticSet,
    world: World,
    *,
    matrix: Row,
    steps: int,
    repeats: int,
    workers: int,
    compiled: bool,
) -> list[Row]:
    """Rows of one size.

    Args:
        recipe: of the student.
        synthetic: what it trains on.
        world: this process and its device.
        matrix: the device's matrix rate.
        steps: optimiser steps a sample.
        repeats: samples; ours and the baseline take turns.
        workers: processes of the baseline.
        compiled: whether ours goes through torch.compile.
    """
    device = world.device
    config = recipe.shape(len(synthetic.images.classes))
    seed_global(recipe.seed, Stream.WEIGHTS)
    teacher = untrained_teacher(synthetic, device)

    our_memory = PeakMemory(device)
    ours = OurStep(recipe, synthetic, teacher, world, compiled=compiled)
    first_s, _ = timed(device, lambda: ours.train(1))
    our_memory.forget()  # what compiling and choosing kernels took
    ours.train(1)
    our_gib = our_memory()

    baseline_memory = PeakMemory(device)
    baseline = Conventional(recipe, config, synthetic, teacher, device, workers=workers)
    baseline.rate(1)
    baseline_memory.forget()
    baseline.rate(1)
    baseline_gib = baseline_memory()

    parts = ours.parts()
    ms: dict[str, list[float]] = {name: [] for name in parts}
    whole, conventional, transforms = _speed_rows(recipe, baseline, compiled, first_s)
    for _ in range(repeats):
        seconds, num_images = timed(device, lambda: ours.train(steps))
        whole.samples.append(num_images / seconds)
        conventional.samples.append(baseline.rate(steps))
        for name, part in parts.items():
            ms[name].append(1000 * timed(device, part)[0])
        transforms.samples.append(baseline.loading_rate(steps))

    whole = whole.against(conventional)
    met = None if device.type == "cpu" else (whole.ratio or 0) >= WANTED_RATIO
    whole = replace(whole, target=Target(f"ratio at least {WANTED_RATIO:g}", met))
    arithmetic = _arithmetic_row(whole, training_flops(config)).against(matrix)
    if recipe.size in WANTED_SHARE:
        wanted = WANTED_SHARE[recipe.size]
        enough = None if device.type == "cpu" else (arithmetic.ratio or 0) >= wanted
        arithmetic = replace(arithmetic, target=Target(f"ratio at least {wanted:g}", enough))
    rows = [whole, conventional, arithmetic]
    rows += _part_rows(whole, ms, recipe.batch_size)
    views = [1000 * recipe.batch_size / sample for sample in ms[VIEWS]]
    views_row = replace(whole, name="views on the device", samples=views, target=None, note="")
    rows += [views_row.against(transforms), transforms]
    memory = Row(part=whole.part, name="peak memory", unit=our_memory.unit, samples=[our_gib])
    if our_memory.of_this_alone:
        memory = memory.against(replace(conventional, samples=[baseline_gib]))
    return [*rows, memory]


def _speed_rows(
    recipe: StudentRecipe, baseline: Conventional, compiled: bool, first_s: float
) -> tuple[Row, Row, Row]:
    """Rows of the whole step, the baseline and its transforms alone, without samples yet."""
    compiling = "torch.compile" if compiled else "eager"
    whole = Row(
        part=f"student {recipe.size}",
        name="whole step",
        unit="images/s",
        samples=[],
        note=f"{recipe.img_size} px, {recipe.batch_size} a step in {baseline.micro}, "
        f"{recipe.at_once} of them a pass, {compiling}; first step {first_s:.1f} s, not counted",
    )
    transforms = f"timm transforms (-j {baseline.workers})"
    return (
        whole,
        replace(whole, name="conventional pipeline", samples=[], note=baseline.describe()),
        replace(whole, name=transforms, samples=[], note=""),
    )


def _arithmetic_row(whole: Row, flops: int) -> Row:
    return Row(
        part=whole.part,
        name="model FLOPs",
        unit="TFLOP/s",
        samples=[images * flops / 1e12 for images in whole.samples],
        note=f"the ratio is MFU; {flops / 1e9:.4g} GFLOP an image, teacher not counted",
    )


def _part_rows(whole: Row, ms: dict[str, list[float]], batch_size: int) -> list[Row]:
    """Parts of the step by their share of it; with host and device side by side, more than all."""
    step = replace(
        whole, unit="ms a step", samples=[1000 * batch_size / rate for rate in whole.samples]
    )
    return [
        replace(step, name=name, samples=samples, target=None, note="").against(step)
        for name, samples in ms.items()
    ]
