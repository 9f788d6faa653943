"""The outer loop that teacher and student share: epochs, validation, selection, resume points."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tqdm import tqdm

from deitlt.errors import UsageError
from deitlt.metrics import Report
from training.checkpoint import Progress, RunFolder
from training.config import Recipe
from training.data import EvaluationImages
from training.scoring import HeadLogits, head_reports

# Lines printed over a run, for logs that show no progress bar.
MILESTONES = 10


@dataclass(frozen=True)
class Validation:
    """Held-out images and how to score a model on them.

    Attributes:
        images: as deployment will see them.
        logits: the model's logits of each head on them.
        train_counts: training images of each class.
        head: whose balanced accuracy selects the epoch.
    """

    images: EvaluationImages
    logits: Callable[[EvaluationImages], HeadLogits]
    train_counts: list[int]
    head: str

    def reports(self) -> dict[str, Report]:
        """Figures of each head now."""
        return head_reports(self.logits(self.images), self.images.labels, self.train_counts)


def train(
    run: RunFolder,
    recipe: Recipe,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    inputs_sha256: str,
    train_epoch: Callable[[int], dict[str, float]],
    validation: Validation | None,
    save_selected: Callable[[int, dict[str, Any]], None],
) -> Progress:
    """Train to the last epoch, from the resume point if there is one.

    Selection: the epoch with the best balanced accuracy on held-out images, the later of equals;
    the last epoch where nothing is held out. The test set plays no part.

    Args:
        run: where resume points go.
        recipe: what to do.
        model: trained in place.
        optimizer: holds the model's parameters.
        inputs_sha256: identity of what the run learns from: the images, and the teacher if any.
        train_epoch: trains one epoch (from 0) and returns the figures of its row.
        validation: None selects the last epoch.
        save_selected: writes the weights to keep: `(epochs trained, validation figures)`.

    Raises:
        CheckpointError: the resume point does not fit the run.
        UsageError: the loss is no longer finite.
    """
    progress = run.load(model, optimizer, inputs_sha256)
    if progress.epoch:
        print(f"resuming after epoch {progress.epoch} of {recipe.epochs}")
    bar = tqdm(
        range(progress.epoch, recipe.epochs),
        initial=progress.epoch,
        total=recipe.epochs,
        unit="epoch",
        disable=None,
    )
    for epoch in bar:
        start = time.perf_counter()
        row: dict[str, Any] = {"epoch": epoch + 1, **train_epoch(epoch)}
        if not math.isfinite(row["loss"]):
            raise UsageError(
                f"training diverged: the loss of epoch {epoch + 1} is {row['loss']}; what was "
                f"selected before is kept in {run.path}; lower --lr and start anew"
            )
        last = epoch + 1 == recipe.epochs
        if validation is not None:
            reports = validation.reports()
            row |= _figures(reports)
            score = reports[validation.head].balanced.value
            assert score is not None
            if progress.best_score is None or score >= progress.best_score:
                progress.best_score = score
                save_selected(epoch + 1, {h: r.to_dict() for h, r in reports.items()})
        elif last:
            save_selected(epoch + 1, {})
        row["seconds"] = round(time.perf_counter() - start, 3)
        progress.history.append(row)
        progress.epoch = epoch + 1
        if last or progress.epoch % recipe.checkpoint_epochs == 0:
            run.save(progress, model, optimizer, inputs_sha256)
        bar.set_postfix_str(f"loss {row['loss']:.3f}", refresh=False)
        if last or progress.epoch % max(1, recipe.epochs // MILESTONES) == 0:
            tqdm.write(_line(row, recipe.epochs))
    return progress


def pick_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The torch device of a `--device` flag; `auto` is CUDA where there is a GPU.

    Raises:
        UsageError: CUDA was asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("--device cuda: torch sees no CUDA GPU; use --device cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def _figures(reports: dict[str, Report]) -> dict[str, float | None]:
    row: dict[str, float | None] = {}
    for head, figures in reports.items():
        row[f"val_{head}_overall"] = figures.overall.value
        row[f"val_{head}_balanced"] = figures.balanced.value
        for group in ("head", "mid", "tail"):
            row[f"val_{head}_{group}"] = figures.groups[group].value
    return row


def _line(row: dict[str, Any], epochs: int) -> str:
    figures = [
        f"{name.removeprefix('val_').replace('_balanced', '')} {100 * value:.1f}"
        for name, value in row.items()
        if name.endswith("_balanced") and value is not None
    ]
    balanced = f"  balanced validation accuracy: {', '.join(figures)} %" if figures else ""
    return f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.3f}{balanced}"
