"""The figures of an evaluation, and of which classes too few images were seen to claim anything.

Legend: `N` images, `C` classes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deitlt.evaluation.answers import Answers, HeadAnswers
from deitlt.evaluation.calibration import equal_mass_error
from deitlt.evaluation.resampling import NUM_RESAMPLES, Intervals, intervals
from deitlt.longtail import IntArray, all_groups
from deitlt.metrics import NUM_BINS, Accuracy, Report, report_answers, share_of

# What the figures mean, for who finds them without this code.
CONVENTIONS = {
    "intervals": "95 %; overall, shares and recalls: Wilson; balanced and groups: Wilson at the "
    "effective number of images; macro_f1 and ece: bootstrap over images within each class, "
    f"{NUM_RESAMPLES} resamples; that of ece begins at 0 where calibrated answers of the same "
    "confidence would show as much",
    "balanced": "mean recall over the classes that have images here; the others are listed",
    "macro_f1": "mean F1 over the same classes",
    "groups": "mean recall of the classes of a group that have images here; head, mid and tail are "
    "ranks of training count, many, medium and few are over 100, 20 to 100 and under 20 training "
    "images: the two are not comparable",
    "ece": f"of the top-1 probability, {NUM_BINS} bins of equal width",
    "ece_equal_mass": f"the same over {NUM_BINS} bins of equally many images",
    "classwise_ece": "mean over all classes of the calibration error of their probability",
    "agreement": "CLS and DIST name the same class; shares of images, by group of the true class",
}


@dataclass(frozen=True)
class HeadFigures:
    """What one head achieves.

    Attributes:
        report: accuracy overall, balanced, by group and by class.
        intervals: of macro-F1 and of the calibration errors, all images and by group.
        ece_equal_mass: calibration error over bins of equally many images.
        class_errors: calibration error of each class's probability, `(C,)`.
    """

    report: Report
    intervals: Intervals
    ece_equal_mass: float
    class_errors: NDArray[np.float64]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, under the names `Report.to_dict` uses; classes are left to the CSV."""
        fields = self.report.to_dict()
        del fields["per_class"]
        return {
            **fields,
            "macro_f1_interval": self.intervals.macro_f1,
            "ece_interval": self.intervals.ece["all"][1],
            "ece_groups": {
                name: {"value": value, "interval": interval}
                for name, (value, interval) in self.intervals.ece.items()
                if name != "all"
            },
            "ece_equal_mass": self.ece_equal_mass,
            "classwise_ece": float(self.class_errors.mean()),
        }


@dataclass(frozen=True)
class Agreement:
    """How often both experts name the same class, and who is right when they do and do not.

    Attributes:
        share: images on which they agree.
        if_agree: share of right answers of each head on those images.
        if_disagree: the same on the others.
    """

    share: Accuracy
    if_agree: dict[str, Accuracy]
    if_disagree: dict[str, Accuracy]


@dataclass(frozen=True)
class Claims:
    """How many classes of a group have too few images to claim anything of them one by one.

    Attributes:
        num_classes: classes of the group.
        num_too_few: those with fewer images than the least number, absent ones too.
        num_absent: those without any.
    """

    num_classes: int
    num_too_few: int
    num_absent: int


@dataclass(frozen=True)
class Figures:
    """All figures of an evaluation.

    Attributes:
        heads: by name, `average` first.
        agreement: of all images (`all`) and of those of each group; empty without experts.
        claims: of all classes (`all`) and of each group.
        num_images: that could be read, of each class, `(C,)`.
        min_images: least number of images of a class to claim anything of it.
    """

    heads: dict[str, HeadFigures]
    agreement: dict[str, Agreement]
    claims: dict[str, Claims]
    num_images: IntArray
    min_images: int

    @property
    def reports(self) -> dict[str, Report]:
        """The report of each head."""
        return {name: head.report for name, head in self.heads.items()}

    @property
    def average(self) -> HeadFigures:
        """Figures of the answer itself."""
        return self.heads["average"]

    def to_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """Plain JSON types; `classes` are the names of the classes."""
        absent = [classes[i] for i in np.flatnonzero(self.num_images == 0).tolist()]
        return {
            "heads": {name: head.to_dict() for name, head in self.heads.items()},
            "agreement": {name: asdict(agreement) for name, agreement in self.agreement.items()},
            "min_images": self.min_images,
            "claims": {name: asdict(claims) for name, claims in self.claims.items()},
            "classes_without_images": absent,
            "conventions": CONVENTIONS,
        }


def judge(answers: Answers, train_counts: Sequence[int], min_images: int) -> Figures:
    """All figures of what a bundle answered.

    Args:
        answers: to labelled images.
        train_counts: training images of each class, `(C,)`; they define the groups.
        min_images: least number of images of a class to claim anything of it.
    """
    labels, groups = answers.labels, all_groups(train_counts)
    num_images = np.bincount(labels, minlength=len(train_counts)).astype(np.int64)
    scopes = {"all": list(range(len(train_counts))), **groups}
    return Figures(
        heads={
            name: _head_figures(labels, head, train_counts, groups)
            for name, head in answers.heads.items()
        },
        agreement={
            name: _agreement(labels, answers.heads, np.isin(labels, classes))
            for name, classes in scopes.items()
            if {"cls", "dist"} <= answers.heads.keys()
        },
        claims={name: _claims(num_images[classes], min_images) for name, classes in scopes.items()},
        num_images=num_images,
        min_images=min_images,
    )


def _head_figures(
    labels: IntArray,
    head: HeadAnswers,
    train_counts: Sequence[int],
    groups: dict[str, list[int]],
) -> HeadFigures:
    return HeadFigures(
        report_answers(labels, head.predicted, head.confidence, train_counts),
        intervals(labels, head, groups),
        equal_mass_error(head.confidence, head.predicted == labels),
        head.class_bins.errors(),
    )


def _agreement(
    labels: IntArray, heads: dict[str, HeadAnswers], inside: NDArray[np.bool_]
) -> Agreement:
    agree = heads["cls"].predicted == heads["dist"].predicted
    return Agreement(
        share_of(int((agree & inside).sum()), int(inside.sum())),
        *(
            {
                name: share_of(int((head.predicted == labels)[part].sum()), int(part.sum()))
                for name, head in heads.items()
            }
            for part in (agree & inside, ~agree & inside)
        ),
    )


def _claims(num_images: IntArray, min_images: int) -> Claims:
    return Claims(
        len(num_images), int((num_images < min_images).sum()), int((num_images == 0).sum())
    )
