"""The folder of an evaluation: complete under its name, or not there at all.

```
evaluation/
  metrics.json          all figures with intervals, what they mean, and what was evaluated
  per_class.csv         a row a class: recall of each head, precision, F1, whether to claim anything
  confusion.csv         images of each pair of true and answered class that occurs, of each head
  most_confused.csv     its pairs of two classes, most frequent first, of the average
  confusion.png         that matrix; above 120 classes its errors by blocks of classes
  reliability_*.png     confidence against accuracy: all, head, mid, tail, many, medium, few
  unreadable.csv        images that could not be read, where there are any
  predictions.csv       on request: a row an image
```
"""

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deitlt import __version__
from deitlt.errors import UsageError
from deitlt.evaluation.answers import Answers
from deitlt.evaluation.figures import Figures
from deitlt.evaluation.pictures import draw
from deitlt.evaluation.tables import Names, write_tables
from deitlt.files import new_folder, refuse_mount, restore_stranded, write_json

METRICS = "metrics.json"
KIND = "deitlt evaluation"


@dataclass(frozen=True)
class Origin:
    """What was evaluated on what.

    Attributes:
        bundle: its name.
        version: the first digits of its hash.
        variant: form of the model, or triton.
        provider: what it ran on.
        data: folder or file of the labelled images, as it was given.
        split: which of them.
        fast_decode: whether images were prepared fast, with pixels a little different.
    """

    bundle: str
    version: str
    variant: str
    provider: str
    data: str
    split: str
    fast_decode: bool = False

    @property
    def name(self) -> str:
        """The bundle and its form, for people."""
        form = f"{self.variant}, fast decode" if self.fast_decode else self.variant
        return f"{self.bundle} (version {self.version}, {form})"

    @property
    def images(self) -> str:
        """What the images are called, for people."""
        return "images" if self.split == "all" else f"{self.split} images"


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse a folder that cannot be written or holds something else, before any work is done.

    Raises:
        UsageError: `path` is a file, holds an evaluation and `overwrite` is off, or other files; or
            no folder can be made where it would be, or a volume is mounted there.
    """
    refuse_mount(path)
    restore_stranded(path)
    above = next((folder for folder in path.absolute().parents if folder.exists()), path)
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UsageError(f"{above}: no folder can be made in it for the evaluation")
    if not path.exists():
        return
    if not path.is_dir():
        raise UsageError(f"{path}: is a file; name a folder for the evaluation")
    if _is_evaluation(path):
        if not overwrite:
            raise UsageError(f"{path}: holds an evaluation already; pass --overwrite to replace it")
    elif any(path.iterdir()):
        raise UsageError(f"{path}: holds other files; name an empty or new folder")


def write_evaluation(
    path: Path,
    answers: Answers,
    figures: Figures,
    names: Names,
    origin: Origin,
    *,
    plots: bool,
    predictions: bool,
    overwrite: bool,
) -> None:
    """Write the folder.

    Args:
        path: where to; `check_output` has accepted it.
        answers: what the bundle said.
        figures: what that is worth.
        names: of the classes.
        origin: what was evaluated.
        plots: also draw the PNG files, which needs matplotlib.
        predictions: also write predictions.csv.
        overwrite: replace an evaluation that stands there.
    """
    target = path.resolve()  # "." has no name to build a temporary one from
    check_output(target, overwrite=overwrite)
    with new_folder(target, overwrite=overwrite) as folder:
        write_json(folder / METRICS, _metrics(answers, figures, names, origin))
        write_tables(folder, answers, figures, names, predictions=predictions)
        if plots:
            draw(folder, answers, figures, names, origin.name, origin.images)


def _metrics(answers: Answers, figures: Figures, names: Names, origin: Origin) -> dict[str, Any]:
    unreadable = Counter(failure.code for failure in answers.failures)
    data = os.fsencode(origin.data).decode(errors="replace")
    return {
        "kind": KIND,
        "deitlt": __version__,
        **asdict(origin),
        "data": data,
        "num_classes": len(names.classes),
        "num_images": len(answers.positions),
        "num_unreadable": len(answers.failures),
        "unreadable": dict(sorted(unreadable.items())),
        **figures.to_dict(names.classes),
    }


def _is_evaluation(path: Path) -> bool:
    try:
        metrics = json.loads((path / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(metrics, dict) and metrics.get("kind") == KIND
