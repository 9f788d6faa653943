"""The run folder: what is in it, exact resume, and no pickle anywhere.

```
runs/student/
  recipe.json           every field of the resolved recipe
  results.csv           one row an epoch
  resume.safetensors    everything needed to continue
  student.safetensors   the selected weights with their card (teacher.safetensors for a teacher)
```
"""

import csv
import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from deitlt.errors import CheckpointError
from deitlt.files import write_json, write_text
from deitlt.weights import load_tensors, save_tensors
from training.config import Recipe, kebab

RECIPE = "recipe.json"
RESULTS = "results.csv"
RESUME = "resume.safetensors"
WEIGHTS = ("student.safetensors", "teacher.safetensors")


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: epochs finished.
        best_score: validation score of the selected weights; None before there are any.
        history: one row an epoch, as in results.csv.
    """

    epoch: int = 0
    best_score: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


class RunFolder:
    """A training run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
        """Refuse a folder this run must not use, before any time is spent; changes nothing.

        Raises:
            CheckpointError: it holds another run, another recipe, or other files.
        """
        if self.path.is_file():
            raise CheckpointError(f"{self.path}: is a file; name a folder for the run")
        if (self.path / RECIPE).is_file():
            if resume:
                self._check_same_recipe(_plain(recipe))
            elif not overwrite:
                raise CheckpointError(
                    f"{self.path}: holds a run already; "
                    "pass --resume to continue it or --overwrite to start anew"
                )
        elif self.path.exists() and any(self.path.iterdir()):
            raise CheckpointError(f"{self.path}: holds other files; name an empty or new folder")

    def start(self, recipe: Recipe, *, resume: bool) -> None:
        """Claim the folder for this recipe; without `resume`, a former run in it is gone."""
        if resume and (self.path / RECIPE).is_file():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        for name in (RESUME, RESULTS, *WEIGHTS):
            (self.path / name).unlink(missing_ok=True)
        write_json(self.path / RECIPE, _plain(recipe))

    def save(
        self,
        progress: Progress,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        inputs_sha256: str,
    ) -> None:
        """Write a resume point and results.csv; a kill leaves the former resume point whole."""
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                assert isinstance(value, torch.Tensor), f"optimiser state {name} is not a tensor"
                tensors[f"optimizer.{index}.{name}"] = value
        fields = {"kind": "resume", "inputs_sha256": inputs_sha256, **asdict(progress)}
        save_tensors(self.path / RESUME, tensors, fields)
        write_text(self.path / RESULTS, _to_csv(progress.history))

    def load(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, inputs_sha256: str
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
        if fields.pop("inputs_sha256") != inputs_sha256:
            raise CheckpointError(
                f"{path}: was made on other training images or with another teacher; "
                "resume with the same ones, or pass --overwrite instead of --resume"
            )
        state: dict[int, dict[str, torch.Tensor]] = {}
        weights: dict[str, torch.Tensor] = {}
        for name, value in tensors.items():
            owner, _, rest = name.partition(".")
            if owner == "model":
                weights[rest] = value
            else:
                index, _, key = rest.partition(".")
                state.setdefault(int(index), {})[key] = value
        model.load_state_dict(weights)
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        return Progress(**fields)

    def _check_same_recipe(self, wanted: dict[str, Any]) -> None:
        saved = json.loads((self.path / RECIPE).read_text(encoding="utf-8"))
        for name in wanted:
            if saved.get(name) != wanted[name]:
                raise CheckpointError(
                    f"{self.path}: was started with --{kebab(name)} {saved.get(name)}, not "
                    f"{wanted[name]}; resume with the same recipe or name another --output"
                )


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
