"""The pictures of an evaluation, drawn by matplotlib into PNG files; there is no window."""

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from deitlt.errors import UsageError
from deitlt.evaluation.answers import Answers
from deitlt.evaluation.confusion import count_pairs
from deitlt.evaluation.confusion_picture import confusion_figure
from deitlt.evaluation.figures import Figures
from deitlt.evaluation.reliability_picture import reliability_figure
from deitlt.evaluation.tables import Names
from deitlt.longtail import all_groups

DPI = 130
# Names of classes are no formulas, and a user's own style must not make pictures unreadable.
STYLE = {
    "text.parse_math": False,
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12.0,
}


def check_matplotlib() -> None:
    """Refuse to begin what ends in pictures that cannot be drawn.

    Raises:
        UsageError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UsageError(
            "plots need matplotlib: pip install 'deitlt[plots]', or pass --no-plots to do without"
        )


def draw(
    folder: Path, answers: Answers, figures: Figures, names: Names, bundle: str, images: str
) -> None:
    """Draw confusion.png, and reliability_GROUP.png of all images and of each group with images.

    Args:
        folder: where to.
        answers: what the bundle said.
        figures: what that is worth.
        names: of the classes.
        bundle: what the bundle is called.
        images: what the images are called, such as "test images".
    """
    from matplotlib import rc_context, rcParamsDefault

    groups = {"all": list(range(len(names.classes))), **all_groups(names.train_counts)}
    style: Any = {**rcParamsDefault, **STYLE}
    with rc_context(style), warnings.catch_warnings():
        # The font lacks the letters of some languages; the CSV files have the names too.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        average = answers.heads["average"].predicted
        confusion = count_pairs(answers.labels, average, len(names.classes))
        picture = confusion_figure(confusion, names, f"{images}, average of both experts\n{bundle}")
        picture.savefig(folder / "confusion.png", dpi=DPI)
        for group, classes in groups.items():
            inside = np.isin(answers.labels, classes)
            if inside.any():
                title = f"Reliability, {group}: {int(inside.sum()):,} {images}\n{bundle}"
                picture = reliability_figure(answers, figures, group, inside, title)
                picture.savefig(folder / f"reliability_{group}.png", dpi=DPI)
