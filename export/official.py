"""What the published checkpoints hold, and what their tensors are called here.

- DeiT-LT students (val-iisc/DeiT-LT) and timm's distilled DeiT: named as `deitlt.student` names
  them, for both follow timm.
- PaCo teachers: a contrastive wrapper, of which the teacher is `encoder_q` without its projector
  `fc`, followed by `linear`.
- LDAM teachers: a ResNet whose classifier has no bias and holds its weight as (features, classes).

Teachers come out with the names that `training.teachers.networks` gives to the same networks.

Legend: `C` classes, `D` features.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from deitlt.errors import CheckpointError
from deitlt.preprocess import CIFAR_MEAN, CIFAR_STD, PreprocessSpec
from deitlt.student import SIZES, DeiTLT, StudentConfig
from deitlt.weights import Kind, Tensors, not_finite

Shapes = dict[str, tuple[int, ...]]

# Parts of PaCo's wrapper that only its training needs: the momentum copy, the queue, the projector.
PACO_TRAINING = ("encoder_k.", "linear_k.", "queue", "encoder_q.fc.")
# Test images are resized to 256 / 224 of the input and cropped (official data code; CIFAR as well).
CROP_PCT = 0.875
# Names a refusal lists of each kind before it only counts them.
MAX_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Published:
    """A recognised checkpoint under our names.

    Attributes:
        kind: student or teacher.
        source: what it is, for people.
        architecture: for the card.
        tensors: under our names; still in the checkpoint's class order.
        heads: the tensors with one row a class.
        preprocess: evaluation preprocessing, as the official code has it.
        by_count: whether this kind orders its classes by training count.
    """

    kind: Kind
    source: str
    architecture: dict[str, Any]
    tensors: Tensors
    heads: tuple[str, ...]
    preprocess: PreprocessSpec
    by_count: bool

    @property
    def num_classes(self) -> int:
        """`C`."""
        return self.tensors[self.heads[0]].shape[0]


def pick_weights(checkpoint: dict[str, Any], *, ema: bool) -> tuple[Tensors, str]:
    """The state dict in a checkpoint without DataParallel's prefix, and the key it stood under.

    Args:
        checkpoint: what the file holds: `model`, `state_dict`, or a state dict itself.
        ema: take `model_ema`.

    Raises:
        CheckpointError: no weights there, or other things among them.
    """
    keys = ("model_ema",) if ema else ("model", "state_dict")
    key = next((k for k in keys if isinstance(checkpoint.get(k), dict)), "")
    if ema and not key:
        raise CheckpointError("there are no EMA weights in it; leave out --ema")
    weights = checkpoint[key] if key else checkpoint
    if not weights or not all(isinstance(n, str) and _is_plain(w) for n, w in weights.items()):
        raise CheckpointError("there are no weights in it, neither 'model' nor 'state_dict'")
    if all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return weights, key


def recognise(weights: Tensors, *, by_count: bool) -> Published:
    """Tell what a state dict is, by its names and shapes, and check every tensor.

    Args:
        weights: the state dict, without prefix.
        by_count: whether a student's classes are ordered by count; teachers show it themselves.

    Raises:
        CheckpointError: of an unknown kind or size, or with missing, unknown or misshapen tensors,
            or numbers that are not finite.
    """
    whole = {n: w.float() if w.is_floating_point() else w for n, w in weights.items()}
    if broken := not_finite(whole):
        raise CheckpointError(f"NaN or infinite numbers in {_some(broken)}")
    if "pos_embed" in whole:
        return _student(whole, by_count=by_count)
    if any(name.startswith("encoder_q.") for name in whole):
        kept = {n: w for n, w in whole.items() if not n.startswith(PACO_TRAINING)}
        encoder = {n.removeprefix("encoder_q."): w for n, w in kept.items()}
        return _teacher(encoder, "PaCo teacher", head="linear")
    if "layer1.0.conv1.weight" in whole:
        deep = "layer4.0.conv1.weight" in whole
        source = "ResNet teacher" if {"fc.bias", "linear.bias"} & whole.keys() else "LDAM teacher"
        return _teacher(whole, source, head="fc" if deep else "linear")
    raise CheckpointError(
        f"holds {_some(list(whole))}: neither a DeiT-LT student, nor a PaCo or LDAM teacher, "
        "nor timm's distilled DeiT"
    )


def _student(weights: Tensors, *, by_count: bool) -> Published:
    if "head_dist.weight" not in weights:
        raise CheckpointError("has no head_dist: a transformer without DIST is not a student")
    try:
        width = weights["pos_embed"].shape[2]
        patch_size = weights["patch_embed.proj.weight"].shape[3]
        side = math.isqrt(weights["pos_embed"].shape[1] - 2)
        num_classes = weights["head.weight"].shape[0]
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError("its patch or position embedding or its head is missing") from error
    if side * patch_size == 0:
        raise CheckpointError(f"takes images of {side} patches of {patch_size} px a side")
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    size = next((s for s, (w, d, _) in SIZES.items() if (w, d) == (width, depth)), None)
    if size is None:
        raise CheckpointError(f"no student size is {width} wide and {depth} blocks deep")
    config = StudentConfig(
        size=size, img_size=side * patch_size, patch_size=patch_size, num_classes=num_classes
    )
    with torch.device("meta"):  # names and shapes are all that is asked of it
        model = DeiTLT(config)
    check_shapes(weights, {n: tuple(w.shape) for n, w in model.state_dict().items()})
    return Published(
        kind="student",
        source="distilled transformer",
        architecture=model.architecture(),
        tensors=weights,
        heads=("head.weight", "head.bias", "head_dist.weight", "head_dist.bias"),
        preprocess=PreprocessSpec(config.img_size, CROP_PCT),
        by_count=by_count,
    )


def _teacher(weights: Tensors, source: str, *, head: str) -> Published:
    """A ResNet with `head` as its classifier: linear with a bias, LDAM's cosine without one."""
    if f"{head}.weight" not in weights or weights[f"{head}.weight"].ndim != 2:
        raise CheckpointError(f"has no classifier, {head}.weight")
    ours = {f"{head}.weight": "linear.weight", f"{head}.bias": "linear.bias"}
    tensors = {ours.get(name, name): weight for name, weight in weights.items()}
    linear = "linear.bias" in tensors
    if not linear:
        tensors["linear.weight"] = tensors["linear.weight"].T
    num_classes = tensors["linear.weight"].shape[0]
    deep = "layer4.0.conv1.weight" in tensors
    shapes = resnet50_shapes() if deep else resnet32_shapes()
    shapes["linear.weight"] = (num_classes, 2048 if deep else 64)
    if linear:
        shapes["linear.bias"] = (num_classes,)
    check_shapes(tensors, shapes)
    return Published(
        kind="teacher",
        source=source,
        architecture={
            "name": "resnet50" if deep else "resnet32",
            "classifier": "linear" if linear else "cosine",
            "num_classes": num_classes,
        },
        tensors=tensors,
        heads=("linear.weight", "linear.bias") if linear else ("linear.weight",),
        preprocess=PreprocessSpec(224, CROP_PCT)
        if deep
        else PreprocessSpec(32, 1.0, CIFAR_MEAN, CIFAR_STD),
        by_count=deep and not linear,  # the data of LDAM's ResNet-50 are those renumbered
    )


def resnet32_shapes() -> Shapes:
    """Tensors of CIFAR's ResNet-32 but its classifier; its shortcuts have none."""
    shapes = _conv_norm("", 1, 16, 3, kernel=3)
    width = 16
    for stage, planes in enumerate((16, 32, 64), 1):
        for block in range(5):
            prefix = f"layer{stage}.{block}."
            shapes |= _conv_norm(prefix, 1, planes, width, kernel=3)
            shapes |= _conv_norm(prefix, 2, planes, planes, kernel=3)
            width = planes
    return shapes


def resnet50_shapes() -> Shapes:
    """Tensors of ResNet-50 but its classifier."""
    shapes = _conv_norm("", 1, 64, 3, kernel=7)
    width = 64
    for stage, (planes, depth) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for block in range(depth):
            prefix = f"layer{stage}.{block}."
            shapes |= _conv_norm(prefix, 1, planes, width, kernel=1)
            shapes |= _conv_norm(prefix, 2, planes, planes, kernel=3)
            shapes |= _conv_norm(prefix, 3, 4 * planes, planes, kernel=1)
            if block == 0:
                shapes[f"{prefix}downsample.0.weight"] = (4 * planes, width, 1, 1)
                shapes |= _norm(f"{prefix}downsample.1", 4 * planes)
            width = 4 * planes
    return shapes


def check_shapes(tensors: Tensors, expected: Shapes) -> None:
    """Require exactly these tensors of exactly these shapes.

    Raises:
        CheckpointError: names what is missing, unknown or of another shape.
    """
    faults = {
        "missing": [name for name in expected if name not in tensors],
        "unknown": [name for name in tensors if name not in expected],
        "of another shape": [
            name
            for name, shape in expected.items()
            if name in tensors and tuple(tensors[name].shape) != shape
        ],
    }
    texts = [f"{fault}: {_some(names)}" for fault, names in faults.items() if names]
    if texts:
        raise CheckpointError("; ".join(texts))


def _is_plain(value: object) -> bool:
    """Whether it is a tensor as any state dict has it: not sparse, quantised or without content."""
    return (
        torch.is_tensor(value)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and (value.is_floating_point() or value.dtype == torch.int64)
    )


def _conv_norm(prefix: str, number: int, out: int, width: int, *, kernel: int) -> Shapes:
    conv: Shapes = {f"{prefix}conv{number}.weight": (out, width, kernel, kernel)}
    return conv | _norm(f"{prefix}bn{number}", out)


def _norm(name: str, width: int) -> Shapes:
    vectors = ("weight", "bias", "running_mean", "running_var")
    shapes: Shapes = {f"{name}.{vector}": (width,) for vector in vectors}
    return {**shapes, f"{name}.num_batches_tracked": ()}


def _some(names: list[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
