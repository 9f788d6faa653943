"""The outer loop that teacher and student share: epochs, validation, selection, resume points."""

import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deitlt.errors import UsageError
from deitlt.metrics import Report
from training.config import Recipe
from training.data import EvaluationImages
from training.engine.checkpoint import CURVES, Progress, RunFolder
from training.engine.distributed import World
from training.engine.feed import Feed, MicroBatch
from training.engine.stopping import Pace, Stopped, StopRequest, stop_request
from training.engine.tracking import Curves, ProgressBar
from training.scoring import HeadLogits, all_finite, head_reports


class Learner(Protocol):
    """What the loop trains.

    Attributes:
        modules: all that a resume point must hold, by name.
        optimizers: likewise.
        figures: names of what `step` returns; the first is the loss.
    """

    modules: dict[str, nn.Module]
    optimizers: list[Optimizer]
    figures: tuple[str, ...]

    def start_epoch(self, epoch: int) -> None:
        """Whatever depends on the epoch alone."""

    def step(self, epoch: int, step: int, batches: list[MicroBatch]) -> Tensor:
        """One optimiser step; returns each figure's sum over this process's micro-batches."""


@dataclass(frozen=True)
class Validation:
    """Held-out images and how to score a model on them.

    Attributes:
        images: as deployment will see them.
        logits: the model's logits of each head on them.
        train_counts: training images of each class.
        selects: the heads whose balanced accuracy may select the epoch.
    """

    images: EvaluationImages
    logits: Callable[[EvaluationImages], HeadLogits]
    train_counts: list[int]
    selects: tuple[str, ...]

    def reports(self) -> dict[str, Report] | None:
        """Figures of each head now; None where answers are NaN or infinite."""
        logits = self.logits(self.images)
        if not all_finite(logits):
            return None
        return head_reports(logits, self.images.labels, self.train_counts)


class Training:
    """A run from its resume point to its last epoch.

    Selection: the epoch with the best balanced accuracy on held-out images, the later of equals;
    the last epoch where nothing is held out (of averaged weights, if there are any). The test set
    plays no part.
    """

    def __init__(
        self,
        run: RunFolder,
        recipe: Recipe,
        learner: Learner,
        feed: Feed,
        world: World,
        *,
        inputs_sha256: str,
        validation: Validation | None,
        save_selected: Callable[[int, str, dict[str, Any]], None],
    ) -> None:
        """Load the resume point, if there is one.

        Args:
            run: where resume points go.
            recipe: what to do.
            learner: what is trained.
            feed: training images.
            world: the processes that train.
            inputs_sha256: identity of what the run learns from: images, and teacher if any.
            validation: None selects the last epoch.
            save_selected: writes the weights to keep: `(epochs trained, head that was best or "",
                validation figures)`.

        Raises:
            CheckpointError: the resume point does not fit the run.
        """
        self.run, self.recipe, self.learner, self.feed, self.world = (
            run,
            recipe,
            learner,
            feed,
            world,
        )
        self.inputs_sha256, self.validation = inputs_sha256, validation
        self.save_selected = save_selected
        self.pace = Pace(world)
        with world.together():
            self.progress = run.load(learner.modules, learner.optimizers, inputs_sha256)
        world.agree([self.progress.epoch, self.progress.step])
        if self.progress.epoch or self.progress.step:
            self._say(f"resuming {self._where()}")

    def __call__(self) -> Progress:
        """Train.

        Raises:
            UsageError: the loss is no longer finite.
            Stopped: asked to stop by a signal; the resume point is written.
        """
        recipe, progress, leads = self.recipe, self.progress, self.world.leads
        with self.world.leading() as leading:
            if leading:
                self._replace_lost_weights()
                if progress.history:  # a kill may have come between resume point and table
                    self.run.write_results(progress)
        bar = ProgressBar(self.feed.num_samples, recipe.epochs, progress.epoch, leads)
        curves = Curves(self.run.path / CURVES if leads else None, progress.epoch)
        with stop_request() as stop, bar, curves:
            for epoch in range(progress.epoch, recipe.epochs):
                row = self._epoch(epoch, stop, bar)
                progress.finish_epoch(row)
                last = progress.epoch == recipe.epochs
                asked = self.world.any(bool(stop))
                curves.add(row)
                if last or asked or progress.epoch % recipe.checkpoint_epochs == 0:
                    self._save()
                bar.finish_epoch(row)
                if asked and not last:
                    raise self._stopped(stop)
        return progress

    def _epoch(self, epoch: int, stop: StopRequest, bar: ProgressBar) -> dict[str, Any]:
        learner, progress, feed = self.learner, self.progress, self.feed
        start = time.perf_counter() - progress.seconds
        learner.start_epoch(epoch)
        sums = torch.zeros(len(learner.figures), device=self.world.device)
        if progress.step and self.world.leads:
            # Of images, as another number of processes may cut other micro-batches.
            done = [figure / feed.cut.size for figure in progress.sums]
            sums += torch.tensor(done, device=self.world.device)
        first = progress.step
        for step, batches in enumerate(feed.steps(epoch, first), start=first):
            sums += learner.step(epoch, step, batches)
            meet = self.pace.due()
            look = bar.due() if self.world.size == 1 else meet
            if look:
                self._check(epoch, self.world.total(sums))
                bar.show(epoch, (step + 1) / feed.num_steps)
            if meet and self.world.any(bool(stop)) and step + 1 < feed.num_steps:
                progress.step = step + 1
                progress.sums = [s * feed.cut.size for s in self.world.total(sums).tolist()]
                progress.seconds = time.perf_counter() - start
                self._save()
                raise self._stopped(stop)
        means = self.world.total(sums) / feed.num_micro
        self._check(epoch, means)
        seconds = time.perf_counter() - start
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "lr": learner.optimizers[0].param_groups[0]["lr"],
            **dict(zip(learner.figures, means.tolist(), strict=True)),
        }
        self.world.average_buffers(learner.modules["model"])
        with self.world.leading() as leading:
            if leading:
                row |= self._validate(epoch)
        row["images_per_s"] = round(feed.num_samples / seconds, 1)
        row["seconds"] = round(time.perf_counter() - start, 3)
        return row

    def _validate(self, epoch: int) -> dict[str, Any]:
        if self.validation is None:
            if epoch + 1 == self.recipe.epochs:
                self.save_selected(epoch + 1, "", {})
            return {}
        last = epoch + 1 == self.recipe.epochs
        if not last and (epoch + 1) % self.recipe.val_epochs:
            return {}
        reports = self.validation.reports()
        if reports is None:
            raise self._diverged(f"answers after epoch {epoch + 1} are NaN or infinite")
        scores = {head: reports[head].balanced.value or 0.0 for head in self.validation.selects}
        best = max(scores, key=lambda head: scores[head])
        if self.progress.best_score is None or scores[best] >= self.progress.best_score:
            self.progress.best_score = scores[best]
            self.save_selected(epoch + 1, best, {h: r.to_dict() for h, r in reports.items()})
        return _figures(reports)

    def _replace_lost_weights(self) -> None:
        """Select anew where selected weights should be and are not, so that a run ends with some.

        Those of a finished run are then of its last epoch, which the resume point holds.
        """
        progress = self.progress
        finished = progress.epoch == self.recipe.epochs
        if self.run.has_weights() or not (finished or progress.best_score is not None):
            return
        first = progress.epoch if finished else progress.epoch + 1
        print(
            f"warning: {self.run.path}: the selected weights are gone; those of epoch {first} "
            f"{'take their place' if finished else 'will, or of a later one'}",
            file=sys.stderr,
        )
        progress.best_score = None
        if finished:
            self._validate(progress.epoch - 1)

    def _check(self, epoch: int, figures: Tensor) -> None:
        """End all processes where a loss, summed over them, is no number any more."""
        loss = float(figures[0])
        if math.isfinite(loss):
            return
        with self.world.leading() as leading:
            if leading:
                raise self._diverged(f"the loss of epoch {epoch + 1} is {loss}")

    def _diverged(self, how: str) -> UsageError:
        kept = ""
        if self.progress.best_score is not None:
            kept = f"; what was selected before is kept in {self.run.path}"
        return UsageError(f"training diverged: {how}{kept}; lower --lr and start anew")

    def _save(self) -> None:
        learner = self.learner
        with self.world.leading() as leading:
            if leading:
                self.run.save(
                    self.progress, learner.modules, learner.optimizers, self.inputs_sha256
                )

    def _stopped(self, stop: StopRequest) -> Stopped:
        # Another process may have been the one that was asked.
        return Stopped(stop.signal_number or signal.SIGTERM, self._where())

    def _where(self) -> str:
        within = f", step {self.progress.step} of the next" if self.progress.step else ""
        return f"after epoch {self.progress.epoch} of {self.recipe.epochs}{within}"

    def _say(self, line: str) -> None:
        if self.world.leads:
            print(line)


def _figures(reports: dict[str, Report]) -> dict[str, float | None]:
    row: dict[str, float | None] = {}
    for head, figures in reports.items():
        row[f"val_{head}_overall"] = figures.overall.value
        row[f"val_{head}_balanced"] = figures.balanced.value
        for group, accuracy in figures.groups.items():
            row[f"val_{head}_{group}"] = accuracy.value
    return row
