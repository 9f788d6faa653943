"""The teacher's SAM step, kernel by kernel and as one CUDA graph, and how long a teacher takes."""

from dataclasses import replace
from functools import partial

import torch

from training.augmentation.recipe_views import teacher_views
from training.benchmark.images import SyntheticSet
from training.benchmark.measure import Row, Target, timed
from training.config import TeacherRecipe
from training.engine.distributed import World
from training.engine.feed import Feed, MicroBatch
from training.engine.seeding import Stream, seed_global
from training.recipes.teachers import cifar
from training.teachers.learner import TeacherLearner, build_method

PART = "teacher"
# CIFAR-10-LT, imbalance factor 100: all its training images, none held out.
CIFAR_IMAGES = 12_406
WANTED_MINUTES = 3.0
# A learner captures its step in the fourth call.
WARM_UP_STEPS = 5


def measure_teacher(
    synthetic: SyntheticSet, world: World, *, batch_size: int, steps: int, repeats: int
) -> list[Row]:
    """Rows of ResNet-32 with LDAM and SAM, recipe `cifar`.

    Args:
        synthetic: what it trains on.
        world: this process and its device.
        batch_size: images a step; the recipe's own is 128.
        steps: a sample.
        repeats: samples; eager steps and graph take turns.
    """
    recipe, device = replace(cifar(), batch_size=batch_size), world.device
    feed = Feed(
        synthetic.images,
        teacher_views(recipe),
        world,
        batch_size=recipe.batch_size,
        micro_batch_size=None,
        seed=recipe.seed,
    )
    learners = {"eager": _learner(recipe, synthetic, world, graphed=False)}
    if device.type == "cuda":
        learners["CUDA graph"] = _learner(recipe, synthetic, world, graphed=True)
    # One batch will do: the time does not depend on what is in it.
    batch = next(feed.steps(0))
    for learner in learners.values():
        _run(learner, batch, WARM_UP_STEPS)
    step_ms: dict[str, list[float]] = {way: [] for way in learners}
    for _ in range(repeats):
        for way, learner in learners.items():
            seconds, _ = timed(device, partial(_run, learner, batch, steps))
            step_ms[way].append(1000 * seconds / steps)
    epoch_s = {way: [_epoch_s(learner, feed, device)] for way, learner in learners.items()}
    epochs = recipe.epochs * CIFAR_IMAGES / (feed.num_steps * feed.cut.size)
    minutes = {way: [epochs * samples[0] / 60] for way, samples in epoch_s.items()}
    projected = _rows(
        f"{recipe.epochs} epochs of CIFAR-10-LT, projected",
        "min",
        minutes,
        note=f"from the epoch above to {CIFAR_IMAGES:,} images, without validation",
    )
    best = projected[-1]
    met = None if device.type == "cpu" else best.value <= WANTED_MINUTES
    target = Target(f"at most {WANTED_MINUTES:g} min", met)
    return [
        *_rows(f"SAM step of {batch_size}", "ms", step_ms),
        *_rows(f"epoch of {feed.num_steps} steps, measured", "s", epoch_s, note="with its views"),
        *projected[:-1],
        replace(best, target=target),
    ]


def _learner(
    recipe: TeacherRecipe, synthetic: SyntheticSet, world: World, *, graphed: bool
) -> TeacherLearner:
    seed_global(recipe.seed, Stream.WEIGHTS)
    images = synthetic.images
    method = build_method(recipe, images.counts(), len(images.classes))
    learner = TeacherLearner(recipe, method, world, graphed=graphed)
    learner.start_epoch(0)
    return learner


def _run(learner: TeacherLearner, batch: list[MicroBatch], num_steps: int) -> None:
    for step in range(num_steps):
        learner.step(0, step, batch)


def _epoch_s(learner: TeacherLearner, feed: Feed, device: torch.device) -> float:
    """Seconds of a whole epoch, capturing of the graph included."""

    def train() -> None:
        learner.start_epoch(1)
        for step, batches in enumerate(feed.steps(1)):
            learner.step(1, step, batches)

    return timed(device, train)[0]


def _rows(name: str, unit: str, samples: dict[str, list[float]], note: str = "") -> list[Row]:
    """A row each way; the first is what the others are compared with."""
    rows = [
        Row(part=PART, name=f"{name}, {way}", unit=unit, samples=values, note=note)
        for way, values in samples.items()
    ]
    first, *others = rows
    return [first, *[row.against(first) for row in others]]
