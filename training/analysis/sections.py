"""The sections of a report: what each shows, how it is read, and what is to be seen here."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

from deitlt.metrics import Accuracy, per_class_csv
from training.analysis import plots, tables
from training.analysis.confusion import most_confused
from training.analysis.curves import Curve, cosine_distance_curve, validation_curve
from training.analysis.gallery import Gallery
from training.analysis.pictures import Plot
from training.analysis.study import Study
from training.analysis.teacher_entropy import Sureness

MAX_PAIRS = 10
# Tail images a dimension from which on a feature rank hardly grows with more of them.
ENOUGH_TAIL = 3
SHOWN_GROUPS = ("overall", *tables.GROUPS)


@dataclass(frozen=True)
class Section:
    """One thing that was looked at.

    Attributes:
        name: of its files.
        title: heading.
        what: how to read it, and what the paper says.
        found: what is to be seen here.
        files: CSV texts by name, without suffix.
        plot: drawn as NAME.png; None has none.
        height_in: of the plot.
        table: shown on the page, the header first.
    """

    name: str
    title: str
    what: str
    found: str
    files: dict[str, str]
    plot: Plot | None
    height_in: float = 3.2
    table: Sequence[Sequence[str]] = ()


def accuracy(studies: Sequence[Study]) -> Section:
    """Accuracy of each head, overall and by group."""
    first = studies[0]
    header = ["", *SHOWN_GROUPS]
    rows = [
        [_head_name(study, head, studies), *(_percent(accuracy) for accuracy in figures)]
        for study in studies
        for head, report in study.reports.items()
        for figures in [[report.overall, *(report.groups[g] for g in tables.GROUPS)]]
    ]
    held = {head: report.groups["tail"].value for head, report in first.reports.items()}
    found = ""
    if "dist" in held and held["cls"] is not None and held["dist"] is not None:
        gap = 100 * (held["dist"] - held["cls"])
        side = "above" if gap >= 0 else "below"
        found = f"In the tail DIST is {abs(gap):.1f} points {side} CLS"
        found += f" ({first.name})." if len(studies) > 1 else "."
    return Section(
        "accuracy",
        "Accuracy of each head",
        "Tables S.3 and S.4. head, mid and tail are the paper's groups by rank of training count; "
        "many has more than 100 training images, medium 20 to 100, few under 20. In the paper CLS "
        "is strong in the head and DIST in the tail, and the average above both. Brackets are "
        f"95 % intervals.{_plotted(studies)}",
        found,
        {"accuracy": tables.csv_text(tables.accuracy_rows(studies))},
        plots.accuracy(first, [g for g in SHOWN_GROUPS if _has_images(first, g)]),
        4.2,
        [header, *rows],
    )


def rollout_gallery(study: Study, gallery: Gallery) -> Section:
    """Rollouts of single pictures, side by side."""
    maps, titles = plots.with_mean(gallery.maps, study.experts)
    named = [
        (str(path), title, grid)
        for path, grids in zip(gallery.paths, maps, strict=True)
        for title, grid in zip(titles, grids, strict=True)
    ]
    return Section(
        "rollout",
        "Where each expert looks",
        "Attention rollout, figures 5 and S.2. Bright patches have given more to an expert's "
        "token. Each map has its own scale from its lowest to its highest patch, so faint "
        "differences look strong; the averages below share one scale.",
        _contrast(gallery.maps, study.experts),
        {"rollout": tables.csv_text(tables.rollout_rows(named))},
        plots.gallery(gallery.pictures, gallery.labels, gallery.answers, gallery.maps),
        1.42 * len(gallery.paths),
    )


def mean_rollout(study: Study) -> Section:
    """Rollout averaged over the tail images."""
    look = study.look
    mean = look.rollouts[look.tail].mean(axis=0)
    maps, titles = plots.with_mean(mean[None], study.experts)
    named = [("mean", title, grid) for title, grid in zip(titles, maps[0], strict=True)]
    return Section(
        "rollout_mean",
        "Where the experts look on average",
        f"Rollout averaged over {int(look.tail.sum())} {study.split} images of tail classes, on "
        "one scale.",
        _contrast(mean[None], study.experts),
        {"rollout_mean": tables.csv_text(tables.rollout_rows(named))},
        plots.mean_rollout(mean, study.experts),
        2.8,
    )


def attention_distance(studies: Sequence[Study]) -> Section:
    """Mean attention distance per head and block."""
    found = "; ".join(
        f"{study.name}: {_early(study)} (all tokens alike: {study.look.uniform:.1f} px)"
        for study in studies
    )
    return Section(
        "attention_distance",
        "How far the patches look",
        "Mean attention distance on tail images, figures 4b and S.3: a dot is a head, the line "
        "their mean. The paper's claim is of blocks 1 and 2: distillation from a CNN on "
        "out-of-distribution images makes heads there look near by.",
        f"{found}.",
        {"attention_distance": tables.csv_text(tables.distance_rows(studies))},
        plots.attention_distance(studies),
    )


def feature_rank(studies: Sequence[Study]) -> Section:
    """Feature rank of each expert behind each block."""
    found = "; ".join(
        f"{study.name} ({tables.study_width(study)} wide), last block: "
        + ", ".join(
            f"{expert.upper()} {ranks[-1]}"
            for expert, ranks in zip(study.experts, study.look.ranks, strict=True)
        )
        for study in studies
    )
    look = studies[0].look
    return Section(
        "feature_rank",
        "How many directions the tokens need",
        "Feature rank, figures 4c and S.4: main directions of all images' tokens that rebuild "
        "those of the tail images but for 1 % of their squared length. A rank is at most the "
        f"width and the number of images, here {len(look.images)} ({int(look.tail.sum())} of the "
        "tail). The paper's claim: a teacher trained with SAM gives a lower rank of DIST; compare "
        "two students to see.",
        f"{found}.{_too_few(studies)}",
        {"feature_rank": tables.csv_text(tables.rank_rows(studies))},
        plots.feature_rank(studies),
    )


def divergence(studies: Sequence[Study]) -> Section | None:
    """Cosine distance of CLS and DIST over training; None where no run has both and curves."""
    found = {s.name: cosine_distance_curve(s.curves) for s in studies}
    curves = {name: curve for name, curve in found.items() if curve is not None}
    if not curves:
        return None
    at_rest = {
        study.name: f" ({study.look.divergence:.2f} on {study.split} images)"
        for study in studies
        if study.look.divergence is not None
    }
    seen = [
        f"{name}: {curve.values[0]:.2f} in epoch {curve.epochs[0]}, lowest {min(curve.values):.2f} "
        f"in epoch {curve.epochs[int(np.argmin(curve.values))]}, {curve.values[-1]:.2f} in epoch "
        f"{curve.epochs[-1]}{at_rest.get(name, '')}"
        for name, curve in curves.items()
    ]
    return Section(
        "cosine_distance",
        "How CLS and DIST part",
        "Cosine distance of both tokens after the final norm, on training batches, figure 4a: 0 "
        "where they say the same. In the paper it grows over training.",
        "; ".join(seen) + ".",
        {"cosine_distance": tables.csv_text(tables.cosine_rows(studies))},
        plots.curves_of_runs(curves, "cosine distance of CLS and DIST"),
        2.8,
    )


def convergence(curves: dict[str, dict[str, Curve]]) -> Section | None:
    """Learning curves of all runs; None where none has a results.csv."""
    if not curves:
        return None
    return Section(
        "convergence",
        "How fast the runs learn",
        "Balanced accuracy on held-out images and training loss by epoch, figure S.5. Losses of "
        "different recipes do not compare.",
        _progress(curves),
        {"convergence": tables.csv_text(tables.convergence_rows(curves))},
        plots.convergence(curves),
        4.2,
    )


def teacher_entropy(answers: Sequence[Sureness], which: str, num_classes: int) -> Section:
    """How sure the teacher is.

    Args:
        answers: for each view.
        which: what the images are.
        num_classes: `C`.
    """
    table = [["view", "mean entropy, nats", "labelled rightly, %"]]
    table += [[a.view, f"{a.entropies.mean():.3f}", f"{100 * a.right:.1f}"] for a in answers]
    return Section(
        "teacher_entropy",
        "How sure the teacher is",
        f"Entropy of the teacher's answer on {len(answers[0].entropies)} {which}, figure 3; the "
        f"highest possible is {log(num_classes):.2f} nats. In the paper strong views and mixing "
        "make the teacher unsure: they are out of its distribution. Of a mixed image the class of "
        "the larger part counts as right.",
        "Mean entropy: "
        + ", ".join(f"{a.entropies.mean():.3f} nats on {a.view} images" for a in answers)
        + ".",
        {"teacher_entropy": tables.csv_text(tables.entropy_rows(answers))},
        plots.teacher_entropy(answers),
        3.0,
        table,
    )


def confusion(study: Study) -> Section:
    """The confusion matrix of the answer and its worst pairs."""
    pairs = most_confused(study.confusion, MAX_PAIRS)
    rows = tables.pair_rows(pairs, study.card.classes)
    shown = [["true", "answered", "images", "of its class"]]
    shown += [[a, b, str(n), f"{100 * share:.1f} %"] for a, b, n, share in rows[1:]]
    return Section(
        "confusion",
        "What is taken for what",
        "Rows are the true classes, those with most training images first; of a long-tailed "
        "classifier's mistakes most lie left of the diagonal: rare classes are taken for frequent "
        "ones.",
        _leaning(study),
        {
            "confusion": tables.csv_text(tables.confusion_rows(study)),
            "confused_pairs": tables.csv_text(rows),
        },
        plots.confusion(study),
        4.4,
        shown if pairs else (),
    )


def counts_accuracy(study: Study) -> Section:
    """Class counts against accuracy."""
    text = per_class_csv(study.card.classes, study.card.train_counts, study.reports)
    return Section(
        "counts_accuracy",
        "Training images and accuracy of a class",
        "One dot a class; lines are 95 % intervals where there are few classes.",
        "",
        {"counts_accuracy": text},
        plots.counts_accuracy(study),
        1.5 * len(study.reports) + 0.5,
    )


def _head_name(study: Study, head: str, studies: Sequence[Study]) -> str:
    name = head if head == "average" else head.upper()
    return f"{study.name}: {name}" if len(studies) > 1 else name


def _plotted(studies: Sequence[Study]) -> str:
    return f" The plot is of {studies[0].name}." if len(studies) > 1 else ""


def _percent(accuracy: Accuracy) -> str:
    if accuracy.value is None or accuracy.interval is None:
        return "-"
    low, high = accuracy.interval
    return f"{100 * accuracy.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _has_images(study: Study, group: str) -> bool:
    report = next(iter(study.reports.values()))
    return group == "overall" or report.groups[group].num_images > 0


def _too_few(studies: Sequence[Study]) -> str:
    """A warning where ranks grow with the number of images."""
    num_tail = min(int(study.look.tail.sum()) for study in studies)
    wanted = ENOUGH_TAIL * max(tables.study_width(study) for study in studies)
    if num_tail >= wanted:
        return ""
    return (
        f" With {num_tail} tail images, under {ENOUGH_TAIL} times the width, ranks depend on their "
        "number: compare runs on the same images only."
    )


def _progress(curves: dict[str, dict[str, Curve]]) -> str:
    """Where the held-out accuracy of each run was best and where it ended."""
    said = []
    for name, own in curves.items():
        if (curve := validation_curve(own)) is not None:
            best = int(np.argmax(curve.values))
            said.append(
                f"{name}: best {100 * curve.values[best]:.1f} % in epoch {curve.epochs[best]}, "
                f"{100 * curve.values[-1]:.1f} % in epoch {curve.epochs[-1]}"
            )
    return f"Held out: {'; '.join(said)}." if said else ""


def _early(study: Study) -> str:
    means = study.look.distances.mean(axis=1)
    early = [f"block {block} {mean:.1f} px" for block, mean in enumerate(means[:2], 1)]
    shortest = study.look.distances[:2].min()
    return f"{', '.join(early)}, the shortest-sighted head {shortest:.1f} px"


def _contrast(maps: NDArray[np.float32], experts: Sequence[str]) -> str:
    """How uneven the maps `(N, P, G, G)` are, in words."""
    flat = maps.reshape(*maps.shape[:2], -1)
    ratios = (flat.max(axis=-1) / np.maximum(flat.min(axis=-1), 1e-12)).mean(axis=0)
    names = [f"{name.upper()} {ratio:.1f}" for name, ratio in zip(experts, ratios, strict=True)]
    return f"Brightest over darkest patch: {', '.join(names)} times."


def _leaning(study: Study) -> str:
    """Which way the mistakes go."""
    counts = np.array(study.card.train_counts)
    to_frequent = int(study.confusion[counts[:, None] < counts[None, :]].sum())
    to_rare = int(study.confusion[counts[:, None] > counts[None, :]].sum())
    if not to_frequent + to_rare:
        return "No mistakes between classes of different counts."
    return (
        f"{to_frequent} images were taken for a class with more training images, "
        f"{to_rare} for one with fewer."
    )
