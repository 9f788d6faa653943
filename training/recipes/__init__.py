"""Recipes: one function each, whose docstring is the run book.

- `teachers`: every teacher of the paper, and stronger or shorter ones.
- `students`: DeiT-LT on every data set of the paper.
- `baselines`: what the paper compares with, and its ablations.
- `cheaper`: ours, less work for the same purpose; never in place of the faithful ones.

By default a tenth of each training class is held out to select the epoch. Published figures are of
all training images and the last (or best test) epoch: add `--val-fraction 0` to compare with them.

Derived recipes replace fields of another. The resolved fields are saved with every run.
A run book gives the source, the published or measured figures (overall; head, mid, tail, in %), the
accuracy on the way there, hardware and time, and the command. "Estimated" times are arithmetic over
the given rate, not measurements.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from training.config import StudentRecipe, TeacherRecipe
from training.recipes import baselines, cheaper, students, teachers


def _recipes(module: ModuleType) -> dict[str, Any]:
    """The public functions of a module, by name, in the order they are written."""
    return {
        name: make
        for name, make in vars(module).items()
        if callable(make) and getattr(make, "__module__", "") == module.__name__
    }


TEACHERS: dict[str, Callable[[], TeacherRecipe]] = _recipes(teachers)
STUDENTS: dict[str, Callable[[], StudentRecipe]] = {
    **_recipes(students),
    **_recipes(baselines),
    **_recipes(cheaper),
}
