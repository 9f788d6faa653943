"""Weight files: safetensors whose header carries a JSON card. Needs torch; never a pickle.

A run folder's result is one such file, `student.safetensors` or `teacher.safetensors`, complete by
itself: anyone who has the file knows the classes, their order, their training counts and the
preprocessing.
"""

import json
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from deitlt.errors import CheckpointError
from deitlt.files import write_atomic
from deitlt.preprocess import PreprocessSpec

Kind = Literal["student", "teacher"]
Tensors = dict[str, torch.Tensor]

CARD_KEY = "deitlt"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a weight file says of itself.

    Attributes:
        kind: `student` or `teacher`.
        architecture: keyword arguments that rebuild the model.
        classes: names in the order of the outputs, `C` of them.
        train_counts: images of each class it was trained on, `(C,)`.
        train_files_sha256: identity of the training files (`deitlt.run_splits.files_sha256`); empty
            where it is not known.
        preprocess: evaluation preprocessing.
        recipe: every field of the resolved recipe.
        epoch: epochs trained when these weights were taken.
        validation: accuracy on the held-out validation images; empty without any.
    """

    kind: Kind
    architecture: dict[str, Any]
    classes: list[str]
    train_counts: list[int]
    train_files_sha256: str
    preprocess: PreprocessSpec
    recipe: dict[str, Any]
    epoch: int
    validation: dict[str, Any] = field(default_factory=dict)


def save_weights(path: Path, model: torch.nn.Module, card: Card) -> None:
    """Write a model and its card atomically."""
    fields = {**asdict(card), "preprocess": card.preprocess.to_dict()}
    save_tensors(path, dict(model.state_dict()), fields)


def load_weights(path: Path, kind: Kind) -> tuple[Tensors, Card]:
    """Tensors (on the CPU) and card of a weight file, or of the one in a run folder.

    Raises:
        CheckpointError: missing, damaged, or not of this kind.
    """
    file = weight_file(path, kind)
    tensors, fields = load_tensors(file)
    if fields.get("kind") != kind:
        raise CheckpointError(f"{file}: holds a {fields.get('kind', 'resume state')}, not a {kind}")
    try:
        fields["preprocess"] = PreprocessSpec.from_dict(fields["preprocess"])
        card = Card(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: its card was written by another version") from error
    return tensors, card


def weight_file(path: Path, kind: Kind) -> Path:
    """The weight file that `path`, a run folder or the file itself, stands for."""
    return path / f"{kind}.safetensors" if path.is_dir() else path


def not_finite(tensors: Tensors) -> list[str]:
    """The names of those that hold NaN or infinite numbers."""
    return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]


def save_tensors(path: Path, tensors: Tensors, fields: dict[str, Any]) -> None:
    """Write tensors and JSON fields as one safetensors file, atomically.

    Raises:
        CheckpointError: it cannot be written, as the disk is full; a former file stays.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {CARD_KEY: json.dumps(fields)}

    def write(file: Path) -> None:
        file.touch()
        mode = stat.S_IMODE(file.stat().st_mode)
        save_file(whole, str(file), header)
        file.chmod(mode)  # safetensors 0.8 lets nobody but the owner read what it writes

    try:
        write_atomic(path, write)
    except SafetensorError as error:  # of the system's errors, too
        raise CheckpointError(f"{path}: cannot be written ({error})") from error


def load_tensors(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """What `save_tensors` wrote.

    Raises:
        CheckpointError: missing, damaged or written by another program.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; has the training run finished?")
    try:
        with safe_open(str(path), framework="pt") as file:
            fields = json.loads(file.metadata()[CARD_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or not written by this program") from error
    return tensors, fields
