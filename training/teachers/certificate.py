"""A teacher is checked before any student learns from it.

Its certificate is its card: classes in order, training counts, input size, normalisation, and what
it was measured to be able to do on held-out images. All of it is compared with the student's data,
and the ability is measured again.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from deitlt.errors import CheckpointError
from deitlt.metrics import Report, report
from deitlt.preprocess import PreprocessSpec
from deitlt.run_splits import FILES_HASH, Splits
from deitlt.weights import Card
from training.data import EvaluationImages
from training.engine.distributed import speaks
from training.run_data import class_difference
from training.teachers.labelling import Teacher

# A teacher must have come this share of the way from guessing to knowing.
MIN_SKILL = 0.1
# How far the balanced accuracy measured now may lie from the certified one (other hardware).
TOLERANCE = 0.02
# Without held-out images this many training images stand in.
NUM_STAND_IN = 2000


@dataclass(frozen=True)
class Measured:
    """What a teacher can do.

    Attributes:
        own: figures under its own preprocessing.
        seen: figures on images as the student's views are normalised and sized.
        held_out: whether the images were held out of training.
        certified: balanced accuracy its card claims for these very images; None if it does not.
        renormalised: whether the student's images are re-normalised for it.
    """

    own: Report
    seen: Report
    held_out: bool
    certified: float | None
    renormalised: bool = False

    def describe(self) -> str:
        """One line for people."""
        shares = {name: self.own.groups[name].value for name in ("head", "mid", "tail")}
        groups = ", ".join(
            f"{name} {100 * share:.1f}" for name, share in shares.items() if share is not None
        )
        kind = "held-out" if self.held_out else "training"
        return (
            f"teacher: {_percent(self.own)} % balanced on {self.own.overall.num_images} {kind} "
            f"images ({groups}); {_percent(self.seen)} % in the student's size and normalisation"
        )

    def check(self, path: Path | None, *, allow_weak: bool) -> None:
        """Refuse a teacher that cannot teach, and print what it can do.

        Raises:
            CheckpointError: near chance, or not what its certificate says.
        """
        own, seen = (r.balanced.value or 0.0 for r in (self.own, self.seen))
        if self.certified is not None and abs(own - self.certified) > TOLERANCE:
            raise CheckpointError(
                f"{path}: the teacher has {100 * own:.1f} % on the images its certificate gives "
                f"{100 * self.certified:.1f} % for; the file or the data was changed: retrain it"
            )
        if not allow_weak:
            for value, how, advice in (
                (own, "", "train it longer"),
                (
                    seen,
                    " in the student's size and normalisation",
                    "retrain it in these" if self.renormalised else "pass --renormalise",
                ),
            ):
                if skill(value, len(self.own.per_class)) < MIN_SKILL:
                    raise CheckpointError(
                        f"{path}: the teacher is near chance, {100 * value:.1f} % balanced"
                        f"{how}; {advice}, or pass --allow-weak-teacher"
                    )
        print(self.describe(), flush=True)


def skill(balanced: float, num_classes: int) -> float:
    """How far a balanced accuracy stands between guessing (0) and knowing (1)."""
    chance = 1 / num_classes
    return (balanced - chance) / (1 - chance)


def check_teacher(card: Card, splits: Splits, path: Path) -> None:
    """Refuse a teacher whose answers mean other classes; warn of one trained on other images.

    Raises:
        CheckpointError: its classes, or their order, are not those of the data.
    """
    images = splits.train
    if difference := class_difference(card, images.classes):
        raise CheckpointError(f"{path}: the teacher {difference}; train a teacher on this data")
    if card.train_counts != images.counts().tolist():
        theirs, ours = np.array(card.train_counts), images.counts()
        at = int(np.argmax(np.abs(np.log(theirs + 1) - np.log(ours + 1))))
        warning = (
            f"has learnt {theirs[at]} images of class {card.classes[at]!r}, this data has "
            f"{ours[at]}: its view of what is rare is another"
        )
    elif not card.train_files_sha256.startswith(FILES_HASH):
        warning = (
            "does not say which images it was trained on, or only their names, as an earlier "
            "version did; if it saw the held-out ones, selection is biased"
        )
    elif card.train_files_sha256 != splits.train_sha256:
        warning = (
            "was trained on other images than this student will be; "
            "if it saw the held-out ones, selection is biased"
        )
    else:
        return
    if speaks():
        print(f"warning: {path}: the teacher {warning}", file=sys.stderr)


def measure_teacher(
    teacher: Teacher, splits: Splits, seen: PreprocessSpec, device: torch.device
) -> Measured:
    """What a teacher can do on the held-out images, or where there are none on training images.

    Args:
        teacher: on `device`.
        splits: the student's data.
        seen: the student's preprocessing; the teacher resizes from it.
        device: where to run.

    Raises:
        CheckpointError: it answers with numbers that are not finite.
    """
    images = splits.val
    if images is None:
        picked = np.random.RandomState(0).permutation(len(splits.train))[:NUM_STAND_IN]
        images = splits.train.subset(np.sort(picked))
    counts = teacher.card.train_counts
    figures = []
    for spec, scores in ((teacher.card.preprocess, teacher.model), (seen, teacher.logits)):
        with torch.inference_mode():
            batches = [scores(batch) for batch in EvaluationImages(images, spec, device)]
        answers = torch.cat(batches).float().cpu()
        if not answers.isfinite().all():
            raise CheckpointError("the teacher answers with NaN or infinite numbers; train it anew")
        figures.append(report(images.labels, answers.numpy(), counts))
    certified = None
    if splits.val is not None and teacher.card.train_files_sha256 == splits.train_sha256:
        claimed = teacher.card.validation.get("teacher", {}).get("balanced", {})
        if claimed.get("num_images") == len(images):
            certified = claimed.get("value")
    held_out = splits.val is not None
    return Measured(figures[0], figures[1], held_out, certified, teacher.renormalise)


def _percent(figures: Report) -> str:
    return f"{100 * (figures.balanced.value or 0.0):.1f}"
