"""The run folder: what is in it, exact resume, and no pickle anywhere.

```
runs/student/
  recipe.json           every field of the resolved recipe
  results.csv           one row an epoch
  tensorboard/          the same figures as curves
  resume.safetensors    everything needed to continue
  student.safetensors   the selected weights with their card (teacher.safetensors for a teacher)
```
"""

import csv
import io
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from deitlt.errors import CheckpointError
from deitlt.files import write_json, write_text
from deitlt.run_splits import FILES_HASH
from deitlt.weights import load_tensors, save_tensors
from training.config import Recipe, kebab

RECIPE = "recipe.json"
RESULTS = "results.csv"
RESUME = "resume.safetensors"
CURVES = "tensorboard"
OPTIMIZER = "optimizer"
WEIGHTS = ("student.safetensors", "teacher.safetensors")
# Unfinished files of `write_atomic`, and of safetensors inside it.
KILLED_WRITES = (".*.tmp", ".tmp??????")


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: epochs finished.
        step: optimiser steps of the next epoch that are done already (a run stopped by a signal).
        sums: what those steps add to the figures of its row, summed over images.
        seconds: how long they took.
        best_score: validation score of the selected weights; None before there are any.
        history: one row an epoch, as in results.csv.
    """

    epoch: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=list)
    seconds: float = 0.0
    best_score: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    def finish_epoch(self, row: dict[str, Any]) -> None:
        """Add the row of the epoch that is done."""
        self.history.append(row)
        self.epoch, self.step, self.sums, self.seconds = self.epoch + 1, 0, [], 0.0


class RunFolder:
    """A training run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
        """Refuse a folder this run must not use, before any time is spent; changes nothing.

        Raises:
            CheckpointError: it holds another run, another recipe, or other files, or has lost its
                resume point.
        """
        if self.path.is_file():
            raise CheckpointError(f"{self.path}: is a file; name a folder for the run")
        if (self.path / RECIPE).is_file():
            if resume:
                self._check_same_recipe(_plain(recipe))
                if (self.path / RESULTS).is_file() and not (self.path / RESUME).is_file():
                    raise CheckpointError(
                        f"{self.path / RESUME}: is gone, so that the run cannot go on; "
                        "put it back, or pass --overwrite instead of --resume"
                    )
            elif not overwrite:
                raise CheckpointError(
                    f"{self.path}: holds a run already; "
                    "pass --resume to continue it or --overwrite to start anew"
                )
        elif self.path.exists() and any(self.path.iterdir()):
            raise CheckpointError(f"{self.path}: holds other files; name an empty or new folder")

    def has_weights(self) -> bool:
        """Whether there are selected weights."""
        return any((self.path / name).is_file() for name in WEIGHTS)

    def start(self, recipe: Recipe, *, resume: bool) -> None:
        """Claim the folder for this recipe; without `resume`, a former run in it is gone.

        So is what writes that were killed have left, which may be gigabytes each time.
        """
        for pattern in KILLED_WRITES:
            for left in self.path.glob(pattern):
                left.unlink(missing_ok=True)
        if resume and (self.path / RECIPE).is_file():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        for name in (RESUME, RESULTS, *WEIGHTS):
            (self.path / name).unlink(missing_ok=True)
        for figures in (*self.path.glob("metrics-*.json"), *self.path.glob("per_class-*.csv")):
            figures.unlink()  # of weights that are gone
        shutil.rmtree(self.path / CURVES, ignore_errors=True)
        write_json(self.path / RECIPE, _plain(recipe))

    def save(
        self,
        progress: Progress,
        modules: dict[str, nn.Module],
        optimizers: list[Optimizer],
        inputs_sha256: str,
    ) -> None:
        """Write a resume point and results.csv; a kill leaves the former resume point whole."""
        tensors = {
            f"{owner}.{name}": value
            for owner, module in modules.items()
            for name, value in module.state_dict().items()
        }
        for number, optimizer in enumerate(optimizers):
            state = optimizer.state_dict()
            for index, values in state["state"].items():
                for name, value in values.items():
                    assert isinstance(value, torch.Tensor), f"optimiser state {name}: no tensor"
                    tensors[f"{OPTIMIZER}{number}.{index}.{name}"] = value
        fields = {
            "kind": "resume",
            "inputs_sha256": inputs_sha256,
            # LAMB counts its steps in the group.
            "group_steps": [[int(g.get("step", 0)) for g in o.param_groups] for o in optimizers],
            **asdict(progress),
        }
        save_tensors(self.path / RESUME, tensors, fields)
        self.write_results(progress)

    def write_results(self, progress: Progress) -> None:
        """Write results.csv."""
        write_text(self.path / RESULTS, _to_csv(progress.history))

    def load(
        self, modules: dict[str, nn.Module], optimizers: list[Optimizer], inputs_sha256: str
    ) -> Progress:
        """Continue from the resume point; a fresh `Progress` where there is none yet.

        Learning rate and random numbers are functions of the epoch and need no state.

        Raises:
            CheckpointError: the resume point is damaged, or was made on other images or with
                another teacher.
        """
        path = self.path / RESUME
        if not path.is_file():
            return Progress()
        tensors, fields = load_tensors(path)
        if fields.pop("kind", None) != "resume":
            raise CheckpointError(f"{path}: is not a resume point")
        known = fields.pop("inputs_sha256")
        if known != inputs_sha256 and not known.startswith(FILES_HASH):
            raise CheckpointError(
                f"{path}: is of an earlier version, which knew training images by name alone; "
                "finish the run with that version, or pass --overwrite instead of --resume"
            )
        if known != inputs_sha256:
            raise CheckpointError(
                f"{path}: was made on other training images or with another teacher; "
                "resume with the same ones, or pass --overwrite instead of --resume"
            )
        owned: dict[str, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            owner, _, rest = name.partition(".")
            owned.setdefault(owner, {})[rest] = value
        for owner, module in modules.items():
            module.load_state_dict(owned.get(owner, {}))
        steps = fields.pop("group_steps")
        for number, optimizer in enumerate(optimizers):
            state: dict[int, dict[str, torch.Tensor]] = {}
            for name, value in owned.get(f"{OPTIMIZER}{number}", {}).items():
                index, _, key = name.partition(".")
                state.setdefault(int(index), {})[key] = value
            groups = optimizer.state_dict()["param_groups"]
            for group, step in zip(groups, steps[number], strict=True):
                if step:
                    group["step"] = step
            optimizer.load_state_dict({"state": state, "param_groups": groups})
            _lay_out_as_weights(optimizer)
        return Progress(**fields)

    def _check_same_recipe(self, wanted: dict[str, Any]) -> None:
        try:
            saved = json.loads((self.path / RECIPE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            text = "is missing or damaged; put it back, or start anew with --overwrite"
            raise CheckpointError(f"{self.path / RECIPE}: {text}") from error
        for name in wanted:
            if saved.get(name) != wanted[name]:
                raise CheckpointError(
                    f"{self.path}: was started with --{kebab(name)} {saved.get(name)}, not "
                    f"{wanted[name]}; resume with the same recipe or name another --output"
                )


def unfinished(weights: Path) -> str:
    """How far the run of a weight file or folder is, `12 of 200 epochs`; empty if done or unknown.

    Selected weights lie there from the first epochs on.
    """
    folder = weights if weights.is_dir() else weights.parent
    try:
        epochs = json.loads((folder / RECIPE).read_text(encoding="utf-8"))["epochs"]
        text = (folder / RESULTS).read_text(encoding="utf-8") if (folder / RESULTS).exists() else ""
        done = max((int(row["epoch"]) for row in csv.DictReader(io.StringIO(text))), default=0)
        return f"{done} of {epochs} epochs" if done < epochs else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _lay_out_as_weights(optimizer: Optimizer) -> None:
    """Give momenta the memory layout of their weights (channels last), which a file does not keep.

    Else a GPU would update them one by one: torch's kernels for many tensors want one layout.
    """
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON gives it back: tuples are lists."""
    fields: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return fields


def _to_csv(history: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in history for name in row))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
