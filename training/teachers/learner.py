"""How a teacher learns: a method's loss under SAM, on one GPU as one replayed graph.

Legend: `B` images of a micro-batch, `S` image side, `C` classes.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.optim import Optimizer

from training.config import TeacherRecipe
from training.engine.distributed import World
from training.engine.feed import MicroBatch
from training.engine.schedules import set_learning_rate, teacher_learning_rate
from training.engine.seeding import Stream, generator, seed_global
from training.teachers.glmc import GLMCMethod
from training.teachers.graphs import GraphedSGD, GraphedStep
from training.teachers.methods import CrossEntropyMethod, LDAMMethod, TeacherMethod
from training.teachers.paco import PaCoMethod
from training.teachers.sam import rho_at, sam_step


def build_method(recipe: TeacherRecipe, counts: ArrayLike, num_classes: int) -> TeacherMethod:
    """The method of a recipe, freshly initialised.

    Raises:
        CheckpointError: a network that does not exist.
    """
    architecture = recipe.architecture(num_classes)
    drw = {"drw_epoch": recipe.drw_epoch, "drw_beta": recipe.drw_beta}
    match recipe.method:
        case "ldam":
            margins = {"max_margin": recipe.max_margin, "scale": recipe.scale}
            return LDAMMethod(counts, architecture, **margins, **drw)
        case "ce":
            return CrossEntropyMethod(
                counts,
                architecture,
                mixup=recipe.mixup,
                cutmix=recipe.cutmix,
                label_smoothing=recipe.label_smoothing,
                **drw,
            )
        case "paco":
            return PaCoMethod(
                counts,
                architecture,
                alpha=recipe.paco_alpha,
                temperature=recipe.paco_temperature,
                queue_size=recipe.paco_queue,
                width=recipe.paco_width,
                momentum=recipe.paco_momentum,
            )
        case "glmc":
            return GLMCMethod(
                counts,
                architecture,
                contrast=recipe.glmc_contrast,
                power=recipe.glmc_power,
                sam=recipe.rho > 0,
            )


class TeacherLearner:
    """One teacher in training."""

    figures: tuple[str, ...] = ("loss",)

    def __init__(
        self, recipe: TeacherRecipe, method: TeacherMethod, world: World, *, graphed: bool
    ) -> None:
        self.recipe, self.method, self.world = recipe, method, world
        # Channels last make small convolutions up to a third faster, on CPU and GPU.
        method.to(world.device).to(memory_format=torch.channels_last)
        self.modules: dict[str, nn.Module] = {"model": method}
        self.losses = world.wrap(method)
        alone = world.size == 1 and world.device.type == "cuda"
        whole = recipe.micro_batch_size in (None, recipe.batch_size)
        self._graph = GraphedStep() if graphed and alone and whole else None
        trained = [p for p in method.parameters() if p.requires_grad]
        # Not torch's fused kind: it walks memory, so gradients must lie there as the weights do.
        kind = torch.optim.SGD if self._graph is None else GraphedSGD
        self.optimizers: list[Optimizer] = [
            kind(trained, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
        ]
        self._rho = recipe.rho

    def start_epoch(self, epoch: int) -> None:
        """Schedules that depend on the epoch alone."""
        recipe = self.recipe
        lr = teacher_learning_rate(recipe, epoch)
        set_learning_rate(self.optimizers, lr)
        for optimizer in self.optimizers:
            if isinstance(optimizer, GraphedSGD):
                optimizer.rate.fill_(lr)
        steps = zip((0, *recipe.rho_epochs), (recipe.rho, *recipe.rho_values), strict=True)
        former, self._rho = self._rho, rho_at(epoch, tuple(steps))
        self.method.set_epoch(epoch, recipe.epochs)
        self.method.train()
        if self._graph is not None and self._rho != former:
            self._graph.forget()  # the one constant in it; all else lives in buffers

    def step(self, epoch: int, step: int, batches: list[MicroBatch]) -> Tensor:
        """One SAM step over this process's micro-batches; the sum of their losses."""
        self.method.before_step()
        prepared = [self._prepare(epoch, batch) for batch in batches]
        if self._graph is not None and len(prepared) == 1:
            loss = self._graph(lambda *batch: self._sam([batch]), *prepared[0])
        else:
            loss = self._sam(prepared)
        for batch in prepared:
            self.method.after_step(*batch)
        return (loss * len(prepared)).unsqueeze(0)

    def _prepare(self, epoch: int, batch: MicroBatch) -> tuple[Tensor, ...]:
        rng = generator(self.recipe.seed, Stream.MIX, epoch, batch.number)
        seed_global(self.recipe.seed, Stream.STEP, epoch, batch.number)
        views = [view.contiguous(memory_format=torch.channels_last) for view in batch.views]
        return self.method.batch(views, batch.labels, rng)

    def _sam(self, batches: list[tuple[Tensor, ...]]) -> Tensor:
        losses: list[Callable[[bool], Tensor]] = [
            lambda second, batch=batch: self.losses(*batch, second_pass=second)  # type: ignore[misc]
            for batch in batches
        ]
        no_sync = getattr(self.losses, "no_sync", nullcontext)
        return sam_step(
            self.method,
            self.optimizers[0],
            losses,
            self._rho,
            freeze_batch_norm=self.recipe.sam_batch_norm == "first",
            no_sync=no_sync,
        )
