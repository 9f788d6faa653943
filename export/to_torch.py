"""A fused student as TorchScript and as a `torch.export` program, for who deploys with PyTorch."""

import io
import json
import warnings
from pathlib import Path

import torch

from deitlt.weights import Card
from export.fuse import FusedStudent


def export_torchscript(model: FusedStudent, card: Card, path: Path) -> None:
    """Write a TorchScript archive for `torch.jit.load` (C++ too); PyTorch calls the format legacy.

    Class names, counts and preprocessing are in it as the extra file `deitlt.json`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch advises torch.export, which is the other variant
        traced = torch.jit.trace(model, _example(model, card), check_trace=False)
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer, _extra_files={EXTRA_FILE: _describe(card)})
    # Written by Python: the error of a full disk keeps its name.
    path.write_bytes(buffer.getvalue())


def export_program(model: FusedStudent, card: Card, path: Path) -> None:
    """Write a `torch.export` program (.pt2) for `torch.export.load`, batch size free.

    Class names, counts and preprocessing are in it as the extra file `deitlt.json`.
    """
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        model, (_example(model, card),), dynamic_shapes={"images": {0: batch}}
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={EXTRA_FILE: _describe(card)})
    path.write_bytes(buffer.getvalue())


EXTRA_FILE = "deitlt.json"


def _example(model: FusedStudent, card: Card) -> torch.Tensor:
    assert model.takes == "pixels"
    side = card.preprocess.img_size
    return torch.zeros(2, side, side, 3, dtype=torch.uint8)


def _describe(card: Card) -> str:
    fields = {
        "classes": card.classes,
        "train_counts": card.train_counts,
        "preprocess": card.preprocess.to_dict(),
    }
    return json.dumps(fields)
