"""In which order a published checkpoint answers its classes, and how to undo it.

The official code numbers the classes of ImageNet-LT and iNaturalist anew, by falling training
count, with a sort that leaves the order of equal counts to the NumPy version. `class_map[i]` is the
output row of the class with the original number `i`. Students carry the map that they were trained
with in their arguments if the code was new enough.

Defaults: students of ImageNet-LT and iNaturalist and LDAM teachers with a ResNet-50 are ordered by
count; PaCo teachers keep the original numbers (the official `--map-targets` maps their answers), as
do timm's weights and everything of CIFAR, whose classes are by count already.

Legend: `C` classes.
"""

import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deitlt.errors import CheckpointError, DataError, UsageError
from deitlt.longtail import IntArray

Order = Literal["original", "by-count"]

# Data sets, as the official `--data-set` calls them, whose classes its code numbers anew.
RENUMBERED = ("IMAGENETLT", "INAT18")


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """What a checkpoint itself says of its training; official students say all of it.

    Attributes:
        data_set: the official name of the data, empty if unknown.
        class_map: output row of each original number, `C` of them; None if unknown.
        counts: training images by output row, `C` of them; None if unknown.
        epochs: epochs trained.
    """

    data_set: str
    class_map: list[int] | None
    counts: list[int] | None
    epochs: int


def trained_on(checkpoint: dict[str, Any]) -> TrainedOn:
    """Read a checkpoint's own statements; what is missing or of a wrong type counts as unknown."""
    args = checkpoint.get("args")
    fields = vars(args) if isinstance(args, Namespace) else {}
    data_set, epoch = fields.get("data_set"), checkpoint.get("epoch")
    epochs = epoch if isinstance(epoch, int) else 0
    return TrainedOn(
        data_set=data_set if isinstance(data_set, str) else "",
        class_map=_whole_numbers(fields.get("class_map")),
        counts=_whole_numbers(fields.get("cls_num_list")),
        # Students state the epoch they have finished, from 0; teachers, which have no arguments in
        # them, the number of epochs finished.
        epochs=epochs + 1 if fields else epochs,
    )


@dataclass(frozen=True)
class ClassOrder:
    """The output row of each class, and what training said of it.

    Attributes:
        rows: row of each class of the data, `(C,)`.
        counts: training images of each class of the data, `(C,)`.
        source: where the order comes from, for the card.
        warnings: what the user should look at.
    """

    rows: IntArray
    counts: list[int]
    source: str
    warnings: list[str]


def order_classes(
    classes: list[str],
    counts: IntArray | None,
    known: TrainedOn,
    *,
    order: Order,
    class_map: list[int] | None = None,
) -> ClassOrder:
    """Find each class of the data among the outputs.

    The checkpoint's own training counts go before those of the data.

    Args:
        classes: names of the data's classes in their order, `C` of them.
        counts: training images of each in the data, `(C,)`; None if it has none to count.
        known: what the checkpoint says.
        order: `original` numbers, or renumbered `by-count`.
        class_map: the map to use for `by-count`; by default the checkpoint's own, else one from
            `counts`, ties in the order of the numbers.

    Raises:
        CheckpointError: a map or counts of another number of classes, or a map with a double row.
        DataError: `counts` are needed and not there.
    """
    warnings = []
    original = original_numbers(classes)
    if class_map is None and known.class_map is not None:
        class_map, source = known.class_map, "class map of the checkpoint"
    else:
        source = "class map given"
    if order == "original":
        rows, source = original, "original"
    elif class_map is not None:
        rows = _checked(class_map, len(classes))[original]
    else:
        ranks, num_tied = _rank_by_count(_needed(counts), original)
        rows, source = ranks[original], "by count"
        if num_tied:
            warnings.append(
                f"{num_tied} of {len(classes)} classes have as many training images as another, so "
                "their order is a guess; pass the map of the training run with --class-map"
            )
    if known.counts is None:
        return ClassOrder(rows, _needed(counts).tolist(), source, warnings)
    if len(known.counts) != len(classes):
        raise CheckpointError(
            f"states training counts of {len(known.counts)} classes, but answers {len(classes)}"
        )
    stated = np.array(known.counts, dtype=np.int64)[rows]
    num_other = 0 if counts is None else int((stated != counts).sum())
    if num_other:
        warnings.append(
            f"{num_other} of {len(classes)} classes had another number of training images than the "
            "data has, so check that data and class order are right; the checkpoint's are kept"
        )
    return ClassOrder(rows, stated.tolist(), source, warnings)


def original_numbers(classes: list[str]) -> IntArray:
    """The number of each class in the published lists, `(C,)`.

    That is its name, if the names are the numbers 0 to C - 1, however they are sorted; otherwise
    its place.
    """
    by_name = {str(number): number for number in range(len(classes))}
    if by_name.keys() == set(classes):
        return np.array([by_name[name] for name in classes], dtype=np.int64)
    return np.arange(len(classes), dtype=np.int64)


def read_class_map(path: Path) -> list[int]:
    """A class map from a JSON list, or from a text file of numbers.

    Raises:
        UsageError: not a list of whole numbers.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = json.loads(text) if text.lstrip().startswith("[") else text.split()
        return [int(value) for value in values]
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path}: not a JSON list or a text of whole numbers") from error


def _rank_by_count(counts: IntArray, original: IntArray) -> tuple[IntArray, int]:
    """Rank of each original number by falling count, `(C,)`, and how many classes share theirs."""
    by_number = np.empty_like(counts)
    by_number[original] = counts
    ranks = np.argsort(np.argsort(-by_number, kind="stable"), kind="stable")
    _, sizes = np.unique(counts, return_counts=True)
    return ranks.astype(np.int64), int(sizes[sizes > 1].sum())


def _needed(counts: IntArray | None) -> IntArray:
    if counts is None:
        raise DataError("the data have no train split, and the checkpoint states no counts")
    return counts


def _checked(class_map: list[int], num_classes: int) -> IntArray:
    if sorted(class_map) != list(range(num_classes)):
        raise CheckpointError(
            f"the class map must have each row from 0 to {num_classes - 1} once; "
            f"it has {len(class_map)} entries, {len(set(class_map))} of them different"
        )
    return np.array(class_map, dtype=np.int64)


def _whole_numbers(values: object) -> list[int] | None:
    if isinstance(values, list) and values and all(type(value) is int for value in values):
        return list(values)
    return None
