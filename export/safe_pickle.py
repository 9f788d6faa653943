"""Read other projects' checkpoints, which are pickles, without running what may be in them.

A pickle can name any function and have it called. torch's restricted reader allows tensors and
plain containers; what the published files hold beside them is let in here by name, and mostly as
stand-ins that cannot do anything: an argparse namespace, paths and NumPy numbers.
"""

import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from deitlt.errors import CheckpointError
from deitlt.weights import CARD_KEY

# How torch's reader words that it has met a function or class which is not let in.
REFUSED = re.compile(r"GLOBAL (\S+)")


class PickledDtype:
    """Stands in for `numpy.dtype`, whose own `__setstate__` a file should not reach."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch("b1|[iu][1248]|f[248]", code):
            raise ValueError(f"a NumPy number of type {code!r}")
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.code = ("<" if state[1] == "|" else state[1]) + self.code[-2:]


def pickled_scalar(dtype: PickledDtype, data: bytes) -> float:
    """The Python number that a pickled NumPy scalar stands for."""
    number: float = np.frombuffer(data, dtype.code, count=1)[0].item()
    return number


# Older and newer versions of Python and NumPy write the same things under other names. A path is
# read as text: making a PosixPath fails on Windows.
ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    Namespace,
    (PickledDtype, "numpy.dtype"),
    (pickled_scalar, "numpy.core.multiarray.scalar"),
    (pickled_scalar, "numpy._core.multiarray.scalar"),
    (PurePosixPath, "pathlib.PosixPath"),
    (PurePosixPath, "pathlib._local.PosixPath"),
    (PureWindowsPath, "pathlib.WindowsPath"),
    (PureWindowsPath, "pathlib._local.WindowsPath"),
]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The dictionary in a `.safetensors`, `.pth` or `.pth.tar` file, its tensors on the CPU.

    NumPy scalars come back as Python numbers, paths as pure paths.

    Raises:
        CheckpointError: missing, damaged, not a dictionary, of torch's former tar format, a weight
            file of this project, or holding anything beyond tensors and `ALLOWED`, which is then
            not run.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                has_card = CARD_KEY in (file.metadata() or {})
            if not has_card:
                return dict(load_file(path))
            text = "is of a run of this project, whose card an import would lose; use it as it is"
            raise CheckpointError(f"{path}: {text}")
        with torch.serialization.safe_globals(ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a hostile or cut file raises whatever it likes inside the readers
        if isinstance(error, OSError) and error.filename:  # the file itself cannot be opened
            raise
        raise CheckpointError(f"{path}: {_reason(str(error))}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, not a checkpoint")
    return content


def _reason(message: str) -> str:
    refused = REFUSED.search(message)
    if refused:
        return (
            f"refused, and nothing of it was run: it calls for {refused[1]}, "
            "which no known checkpoint does"
        )
    if ".tar format" in message:
        return (
            "of torch's tar format of 2017 and before, which cannot be read safely; if you trust "
            "it, load it with weights_only=False and save it again"
        )
    return "damaged, or not a checkpoint"
