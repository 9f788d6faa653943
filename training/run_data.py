"""How a finished run and a data set fit: their classes, what it has seen, what it is judged by."""

import sys
from pathlib import Path

from deitlt import labelled
from deitlt.errors import DataError
from deitlt.labelled import LabelledImages, read_labelled
from deitlt.weights import Card
from training.config import Recipe, StudentRecipe, TeacherRecipe
from training.data import FILES_HASH, load_splits


def recipe_of(card: Card) -> Recipe | None:
    """The recipe of a run; None for weights that were imported."""
    kind = StudentRecipe if card.kind == "student" else TeacherRecipe
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in card.recipe.items()}
    try:
        return kind(**fields)  # type: ignore[arg-type]
    except TypeError:
        return None


def class_difference(card: Card, classes: list[str]) -> str:
    """How the classes of a run differ from those of data, after its name; empty if in nothing."""
    if card.classes == classes:
        return ""
    if sorted(card.classes) == sorted(classes):
        at = next(i for i, name in enumerate(classes) if card.classes[i] != name)
        return (
            f"has the classes in another order (its class {at} is {card.classes[at]!r}, "
            f"the data's {classes[at]!r})"
        )
    return f"knows {len(card.classes)} classes, the data has {len(classes)} and not the same ones"


def own_splits(data: Path, card: Card) -> dict[str, LabelledImages]:
    """What the run trained on and held out, if this is the data it was trained on; else nothing."""
    recipe = recipe_of(card)
    if recipe is None:
        return {}
    try:
        splits = load_splits(data, recipe, card.classes)
    except DataError:  # data to evaluate on alone need not be fit to train on
        return {}
    if splits.train_sha256 != card.train_files_sha256:
        return {}
    return {"train": splits.train} | ({"val": splits.val} if splits.val is not None else {})


def pick_split(data: Path, split: str | None, card: Card) -> tuple[str, LabelledImages]:
    """The images of a split and its name; by default test, else val, else all, else train.

    On the data of the run, train and val are what it trained on and held out.
    Warns on stderr of images that the run was trained on, or where its card is too old to tell.

    Raises:
        DataError: there is no such split.
    """
    own = own_splits(data, card)
    name, images = labelled.pick_split(read_labelled(data, card.classes) | own, split, data)
    if card.train_files_sha256 and not card.train_files_sha256.startswith(FILES_HASH):
        print(
            f"warning: {data}: which of these images the run was trained on cannot be told; it is "
            "of an earlier version, which noted names alone",
            file=sys.stderr,
        )
    seen = set(own["train"].paths).intersection(images.paths) if own else ()
    if seen:
        print(
            f"warning: {data}: the run was trained on {len(seen)} of these {len(images)} images; "
            "figures on them say little of new ones",
            file=sys.stderr,
        )
    return name, images
