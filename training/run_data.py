"""What a finished run says of itself: its recipe, and how its classes fit others."""

from deitlt.weights import Card
from training.config import Recipe, StudentRecipe, TeacherRecipe


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
