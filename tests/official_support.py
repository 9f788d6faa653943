"""Stand-ins for the published checkpoints, whose logits the official code has computed.

`official_golden.json` holds, for each kind of published file, the names and shapes that the
official code (repository and commit are in the file) gives its tensors, and the logits of its own
model on `inputs(...)` with the weights of `tensors(...)`. Weights follow from name and shape alone,
so neither their code nor their files are needed here.
"""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any, cast
from zlib import crc32

import numpy as np
import torch

from deitlt.student import DeiTLT, StudentConfig

Shapes = dict[str, list[int]]

GOLDEN = json.loads(Path(__file__).with_name("official_golden.json").read_text(encoding="utf-8"))


def shapes_of(model: str) -> Shapes:
    """Names and shapes of a model's tensors in the official code."""
    return cast(Shapes, GOLDEN["models"][model]["shapes"])


def logits_of(model: str) -> torch.Tensor:
    """What the official code answers: `(2, C)`, of the student `(2, 2, C)` with CLS first."""
    return torch.tensor(GOLDEN["models"][model]["logits"])


def inputs(img_size: int) -> torch.Tensor:
    """Two normalised images of noise, `(2, 3, S, S)`."""
    noise = np.random.RandomState(0).standard_normal((2, 3, img_size, img_size))
    return torch.from_numpy(noise).float()


def tensors(shapes: Shapes) -> dict[str, torch.Tensor]:
    """A state dict of these names and shapes: noise of a size at which every tensor matters."""
    return {name: _tensor(name, shape) for name, shape in shapes.items()}


def _tensor(name: str, shape: list[int]) -> torch.Tensor:
    generator = np.random.RandomState(crc32(name.encode()))
    noise = (generator.random_sample(shape) - 0.5) * np.sqrt(12)  # variance 1
    last = name.split(".")[-1]
    if last in ("num_batches_tracked", "queue_l", "queue_ptr"):
        return torch.zeros(shape, dtype=torch.int64)
    if last == "running_var":
        values = 1 + np.abs(noise) / 5
    elif len(shape) < 2:
        values = noise / 10 + (last == "weight")  # gains lie around 1, biases and means around 0
    elif len(shape) == 3:
        values = noise / 2  # tokens and position embedding
    else:
        values = noise / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values)).float()


def student_tensors(config: StudentConfig) -> dict[str, torch.Tensor]:
    """Made-up weights of a student of ours."""
    with torch.device("meta"):  # only for names and shapes
        model = DeiTLT(config)
    return tensors({name: list(tensor.shape) for name, tensor in model.state_dict().items()})


def student_file(path: Path, weights: dict[str, torch.Tensor], **args: Any) -> Path:
    """A checkpoint as the official `main.py` saves it, with the types that make it a pickle.

    Args:
        path: where to.
        weights: `model`; `model_ema` is the same with one class more likely.
        args: overwrite what stands in the namespace.
    """
    head_bias = weights["head.bias"].clone()
    head_bias[0] += 1
    num_classes = len(head_bias)
    counts = [np.int64(50 * num_classes - 50 * i) for i in range(num_classes)]
    options = {"output_dir": Path("out"), "cls_num_list": counts, "data_set": "CIFAR10LT", **args}
    torch.save(
        {
            "model": weights,
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
            "epoch": 1199,
            "model_ema": {**weights, "head.bias": head_bias},
            "args": Namespace(**options),
            "best_acc_avg": np.float64(87.5),
        },
        path,
    )
    return path
