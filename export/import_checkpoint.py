"""`python -m export.import_checkpoint FILE --output RUN --data DATA`: use published weights here.

Takes official DeiT-LT students, their PaCo and LDAM teachers, and timm's distilled DeiT, and writes
the run folder that training would have left: `student.safetensors` or `teacher.safetensors`, whose
classes stand in the order of the data. Evaluation, export and distillation go on from there.
"""

import argparse
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch

from deitlt.bundle import MANIFEST
from deitlt.errors import CheckpointError, UsageError
from deitlt.files import file_sha256, new_folder, refuse_mount, restore_stranded
from deitlt.labelled import read_labelled
from deitlt.longtail import IntArray, long_tailed_subset
from deitlt.preprocess import PreprocessSpec
from deitlt.program import OneLineParser, run_program, sigterm_raises
from deitlt.weights import Card, save_tensors
from export.class_order import (
    RENUMBERED,
    ClassOrder,
    order_classes,
    read_class_map,
    trained_on,
)
from export.official import Published, pick_weights, recognise
from export.safe_pickle import read_checkpoint

TIMM_NAMES = re.compile(r"deit_(tiny|small|base)_distilled_patch16_(224|384)(\.fb_in1k)?")


@dataclass(frozen=True)
class Imported:
    """A checkpoint beside the data it answers for.

    Attributes:
        published: its tensors.
        classes: names of the data's classes, `C` of them.
        order: where each stands among the outputs.
        provenance: for the card.
        epochs: epochs trained.
    """

    published: Published
    classes: list[str]
    order: ClassOrder
    provenance: dict[str, str]
    epochs: int


def main(argv: Sequence[str] | None = None) -> int:
    """Import a checkpoint; returns 0, or 2 with one line on what was wrong."""
    arguments = _parser().parse_args(argv)
    with sigterm_raises():
        return run_program("import", lambda: print(_import(arguments)))


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m export.import_checkpoint",
        description="Make a run folder of an official DeiT-LT student, of its PaCo or LDAM "
        "teacher, or of timm's distilled DeiT.",
    )
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help="the checkpoint")
    parser.add_argument("--timm", metavar="NAME", help="download these weights by timm instead")
    parser.add_argument("--output", type=Path, required=True, help="run folder to write")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="what it was trained on (folder, CSV or list): class names, their order and counts",
    )
    parser.add_argument(
        "--imbalance-factor",
        type=float,
        default=None,
        help="the data are balanced, and training drew a long-tailed subset of this factor",
    )
    parser.add_argument(
        "--class-order",
        choices=("original", "by-count"),
        default=None,
        help="order of the outputs: as the published lists number the classes, or by falling "
        "training count; default: by-count for ImageNet-LT and iNaturalist students and LDAM "
        "ResNet-50, else original",
    )
    parser.add_argument(
        "--class-map",
        type=Path,
        default=None,
        help="JSON or text list with the output of each original class; default: the checkpoint's",
    )
    parser.add_argument("--ema", action="store_true", help="take the averaged weights, model_ema")
    parser.add_argument("--crop-pct", type=float, default=None, help="evaluation crop, 0 to 1")
    for name in ("mean", "std"):
        parser.add_argument(f"--{name}", type=float, nargs=3, metavar=("R", "G", "B"))
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run")
    return parser


def _import(arguments: argparse.Namespace) -> str:
    """Do all that was asked for and say what was done; nothing is written on an error.

    Raises:
        DeitLTError: one of its kinds.
    """
    if (arguments.file is None) == (arguments.timm is None):
        raise UsageError("give either a FILE or --timm NAME")
    if arguments.class_map is not None and arguments.class_order == "original":
        raise UsageError("--class-map does not go with --class-order original")
    output = arguments.output.resolve()  # "." has no name to build a temporary one from
    _check_free(output, overwrite=arguments.overwrite)
    if arguments.timm is not None:
        checkpoint, origin, usual = _from_timm(arguments.timm)
    else:
        checkpoint, usual = read_checkpoint(arguments.file), None
        origin = {"source": arguments.file.name, "source_sha256": file_sha256(arguments.file)}
    try:
        imported = _convert(checkpoint, arguments)
    except CheckpointError as error:
        raise CheckpointError(f"{arguments.file or arguments.timm}: {error}") from error
    published, order = imported.published, imported.order
    card = Card(
        kind=published.kind,
        architecture=published.architecture,
        classes=imported.classes,
        train_counts=order.counts,
        train_files_sha256="",
        preprocess=_preprocess(usual or published.preprocess, arguments),
        recipe={"name": "imported", **origin, **imported.provenance},
        epoch=imported.epochs,
    )
    for warning in order.warnings:
        print(f"import: warning: {warning}", file=sys.stderr)
    file = _write(output, published, order, card, overwrite=arguments.overwrite)
    return _describe(file, card)


def _convert(checkpoint: dict[str, Any], arguments: argparse.Namespace) -> Imported:
    """Recognise a checkpoint and find the data's classes among its outputs.

    Raises:
        CheckpointError: what is wrong with the checkpoint, without its name.
        DeitLTError: the data or the class map are wrong.
    """
    weights, key = pick_weights(checkpoint, ema=arguments.ema)
    known = trained_on(checkpoint)
    published = recognise(weights, by_count=known.data_set in RENUMBERED)
    classes, counts = _read_data(arguments.data, arguments.imbalance_factor)
    if len(classes) != published.num_classes:
        raise CheckpointError(
            f"answers {published.num_classes} classes, but {arguments.data} has {len(classes)}; "
            "give the data it was trained on"
        )
    by_count = published.by_count or arguments.class_map is not None
    order = order_classes(
        classes,
        counts,
        known,
        order=arguments.class_order or ("by-count" if by_count else "original"),
        class_map=arguments.class_map and read_class_map(arguments.class_map),
    )
    provenance = {
        "source_kind": published.source,
        "weights": key or "the whole file",
        "data_set": known.data_set,
        "class_order": order.source,
    }
    return Imported(published, classes, order, provenance, known.epochs)


def _from_timm(name: str) -> tuple[dict[str, Any], dict[str, str], PreprocessSpec]:
    """Downloaded weights, where they are from, and the preprocessing timm states for them."""
    if not TIMM_NAMES.fullmatch(name):
        raise UsageError(f"--timm {name}: is none of deit_tiny|small|base_distilled_patch16_224")
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # every layer below has its own for a network that is not there
        raise CheckpointError(
            f"{name}: timm could not download it ({type(error).__name__}); "
            "pass a file that you have downloaded instead"
        ) from error
    stated = model.pretrained_cfg
    spec = PreprocessSpec(
        stated["input_size"][-1], stated["crop_pct"], tuple(stated["mean"]), tuple(stated["std"])
    )
    return dict(model.state_dict()), {"source": f"timm {timm.__version__}: {name}"}, spec


def _read_data(data: Path, factor: float | None) -> tuple[list[str], IntArray | None]:
    """The data's classes, and the training images of each, `(C,)`, where there are any."""
    splits = read_labelled(data)
    images = splits.get("train", splits.get("all"))
    if images is None:
        return next(iter(splits.values())).classes, None
    if factor is not None:
        subset = long_tailed_subset(images.labels, len(images.classes), factor)
        images = images.subset(subset)
    return images.classes, images.counts()


def _preprocess(usual: PreprocessSpec, arguments: argparse.Namespace) -> PreprocessSpec:
    """The kind's preprocessing with what was set on the command line."""
    fields: dict[str, Any] = {}
    if arguments.crop_pct is not None:
        if not 0 < arguments.crop_pct <= 1:
            raise UsageError(f"--crop-pct must be above 0 and at most 1, not {arguments.crop_pct}")
        fields["crop_pct"] = arguments.crop_pct
    if arguments.mean is not None:
        if not all(map(math.isfinite, arguments.mean)):
            raise UsageError("--mean must be a number in every channel")
        fields["mean"] = tuple(arguments.mean)
    if arguments.std is not None:
        if not all(0 < value < math.inf for value in arguments.std):
            raise UsageError("--std must be positive in every channel")
        fields["std"] = tuple(arguments.std)
    return replace(usual, **fields)


def _check_free(output: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds something, before any work is done.

    Raises:
        CheckpointError: `output` is a file, a run and `overwrite` is off, or holds other files.
        UsageError: a volume is mounted there.
    """
    refuse_mount(output)
    restore_stranded(output)
    if output.is_file():
        raise CheckpointError(f"{output}: is a file; name a folder for the run")
    if (output / MANIFEST).is_file():
        raise CheckpointError(f"{output}: is a bundle; name a folder for the run")
    if any((output / f"{kind}.safetensors").is_file() for kind in ("student", "teacher")):
        if not overwrite:
            raise CheckpointError(f"{output}: holds a run; pass --overwrite to replace it")
    elif output.exists() and any(output.iterdir()):
        raise CheckpointError(f"{output}: holds other files; name an empty or new folder")


def _write(
    output: Path, published: Published, order: ClassOrder, card: Card, *, overwrite: bool
) -> Path:
    """The run folder, whole or not at all; returns its weight file."""
    rows = torch.from_numpy(order.rows)
    heads = {name: published.tensors[name][rows] for name in published.heads}
    fields = {**asdict(card), "preprocess": card.preprocess.to_dict()}
    name = f"{card.kind}.safetensors"
    with new_folder(output, overwrite=overwrite) as folder:
        save_tensors(folder / name, {**published.tensors, **heads}, fields)
    return output / name


def _describe(file: Path, card: Card) -> str:
    architecture, counts = card.architecture, card.train_counts
    shape = architecture.get("size") or f"{architecture['name']} ({architecture['classifier']})"
    return (
        f"{file}: {card.recipe['source_kind']}, {shape}, {card.preprocess.img_size} px, "
        f"{len(counts)} classes of {min(counts)} to {max(counts)} training images, "
        f"class order {card.recipe['class_order']}, {card.epoch} epochs"
    )


if __name__ == "__main__":
    sys.exit(main())
