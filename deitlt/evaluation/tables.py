"""The tables of an evaluation: classes, confusions, single answers, and lines for people.

Legend: `C` classes.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deitlt.csv_lines import csv_line
from deitlt.evaluation.answers import Answers
from deitlt.evaluation.confusion import Confusion, count_pairs
from deitlt.evaluation.figures import Figures
from deitlt.longtail import head_mid_tail, many_medium_few
from deitlt.metrics import Accuracy, Interval, count_answers, f1_scores, format_table

# Rows of the table of confused pairs; confusion.csv has them all.
MAX_PAIRS = 1000
PAIRS_SAID = 5


@dataclass(frozen=True)
class Names:
    """What the classes are called, and how rare each was in training.

    Attributes:
        classes: name of each, `C` of them.
        train_counts: training images of each.
        rank_groups: head, mid or tail.
        count_groups: many, medium or few.
    """

    classes: list[str]
    train_counts: list[int]
    rank_groups: list[str]
    count_groups: list[str]

    @classmethod
    def of(cls, classes: list[str], train_counts: list[int]) -> "Names":
        """Names with the groups that the training counts define."""
        return cls(
            classes,
            train_counts,
            *(
                [name for _, name in sorted((c, name) for name, cs in groups.items() for c in cs)]
                for groups in (head_mid_tail(train_counts), many_medium_few(train_counts))
            ),
        )


def write_tables(
    folder: Path, answers: Answers, figures: Figures, names: Names, *, predictions: bool
) -> None:
    """Write every CSV of an evaluation into a folder.

    Args:
        folder: where to.
        answers: what the bundle said.
        figures: what that is worth.
        names: of the classes.
        predictions: also write predictions.csv, a row an image.
    """
    _write_csv(folder / "per_class.csv", _class_rows(answers, figures, names))
    _write_csv(folder / "confusion.csv", _confusion_rows(answers, names))
    average = count_pairs(answers.labels, answers.heads["average"].predicted, len(names.classes))
    _write_csv(folder / "most_confused.csv", _pair_rows(average, figures, names))
    if answers.failures:
        _write_csv(folder / "unreadable.csv", _failure_rows(answers, names))
    if predictions:
        _write_csv(folder / "predictions.csv", _prediction_rows(answers, names))


def summary(answers: Answers, figures: Figures, names: Names, images: str) -> str:
    """What to print: accuracy by head and group, calibration, agreement, what is not claimed.

    Args:
        answers: what the bundle said.
        figures: what that is worth.
        names: of the classes.
        images: what the images are called, such as "test images".
    """
    lines = [format_table(figures.reports), "", *_second_table(figures)]
    if agreement := figures.agreement.get("all"):
        right = " and ".join(
            f"{_percent(shares['average'])} % of {'those' if both else 'the others'}"
            for both, shares in ((True, agreement.if_agree), (False, agreement.if_disagree))
        )
        lines += ["", f"experts agree on {_percent(agreement.share)} % of images; right: {right}"]
    confusion = count_pairs(answers.labels, answers.heads["average"].predicted, len(names.classes))
    if pairs := _most_confused(confusion, names):
        lines.append(f"most confused: {pairs}")
    lines += _not_claimed(figures, images)
    if answers.failures:
        codes = Counter(failure.code for failure in answers.failures)
        listed = ", ".join(f"{code}: {number}" for code, number in sorted(codes.items()))
        lines.append(f"{len(answers.failures)} images could not be read ({listed})")
    return "\n".join(lines)


def _second_table(figures: Figures) -> Iterator[str]:
    columns = ("overall", "balanced", "macro-F1", "ECE")
    yield f"{'95 % in ()':<10}" + "".join(f"{name:>20}" for name in columns)
    for name, head in figures.heads.items():
        report = head.report
        cells = (
            _with_interval(report.overall.value, report.overall.interval),
            _with_interval(report.balanced.value, report.balanced.interval),
            _with_interval(report.macro_f1, head.intervals.macro_f1),
            _with_interval(*head.intervals.ece["all"]),
        )
        yield f"{name:<10}" + "".join(f"{cell:>20}" for cell in cells)


def _not_claimed(figures: Figures, images: str) -> Iterator[str]:
    for name, claims in figures.claims.items():
        if name != "all" and claims.num_too_few:
            absent = f" ({claims.num_absent} have none)" if claims.num_absent else ""
            yield (
                f"{claims.num_too_few} of {claims.num_classes} {name} classes have fewer than "
                f"{figures.min_images} {images}{absent}: nothing is claimed of them"
            )


def _most_confused(confusion: Confusion, names: Names) -> str:
    errors, totals = confusion.errors(), confusion.totals
    first = zip(errors.true, errors.predicted, errors.num_images, strict=True)
    return ", ".join(
        f"{names.classes[true]} as {names.classes[answer]} ({number} of {totals[true]})"
        for (true, answer, number), _ in zip(first, range(PAIRS_SAID), strict=False)
    )


def _class_rows(answers: Answers, figures: Figures, names: Names) -> Iterator[list[Any]]:
    heads = figures.heads
    yield [
        *("index", "label", "train_images", "group", "count_group", "images"),
        *(column for name in heads for column in (name, f"{name}_low", f"{name}_high")),
        *("precision", "f1", "calibration_error", "claimable"),
    ]
    average = answers.heads["average"].predicted
    hits, totals, named = count_answers(answers.labels, average, len(names.classes))
    f1 = f1_scores(hits, totals, named)
    for index, label in enumerate(names.classes):
        present = totals[index] > 0
        yield [
            index,
            label,
            names.train_counts[index],
            names.rank_groups[index],
            names.count_groups[index],
            totals[index],
            *(cell for head in heads.values() for cell in _cells(head.report.per_class[index])),
            f"{hits[index] / named[index]:.4f}" if named[index] else "",
            f"{f1[index]:.4f}" if present else "",
            f"{figures.average.class_errors[index]:.6f}",
            "yes" if totals[index] >= figures.min_images else "no",
        ]


def _confusion_rows(answers: Answers, names: Names) -> Iterator[list[Any]]:
    """The pairs that occur for any head; the matrix itself would be mostly zeros."""
    num_classes = len(names.classes)
    counts: dict[tuple[int, int], dict[str, int]] = {}
    for name, head in answers.heads.items():
        pairs = count_pairs(answers.labels, head.predicted, num_classes)
        for true, predicted, number in zip(
            pairs.true.tolist(), pairs.predicted.tolist(), pairs.num_images.tolist(), strict=True
        ):
            counts.setdefault((true, predicted), {})[name] = number
    yield ["true_index", "true_label", "index", "label", *answers.heads]
    for (true, predicted), of_head in sorted(counts.items()):
        numbers = (of_head.get(name, 0) for name in answers.heads)
        yield [true, names.classes[true], predicted, names.classes[predicted], *numbers]


def _pair_rows(confusion: Confusion, figures: Figures, names: Names) -> Iterator[list[Any]]:
    yield [
        *("true_label", "label", "images", "share_of_true", "true_images", "claimable"),
        *("true_group", "group", "true_train_images", "train_images"),
    ]
    errors, totals = confusion.errors(), confusion.totals
    cells = zip(errors.true, errors.predicted, errors.num_images, strict=True)
    for (true, answer, number), _ in zip(cells, range(MAX_PAIRS), strict=False):
        yield [
            names.classes[true],
            names.classes[answer],
            number,
            f"{number / totals[true]:.4f}",
            totals[true],
            "yes" if totals[true] >= figures.min_images else "no",
            names.rank_groups[true],
            names.rank_groups[answer],
            names.train_counts[true],
            names.train_counts[answer],
        ]


def _failure_rows(answers: Answers, names: Names) -> Iterator[list[Any]]:
    yield ["filename", "true_label", "error", "message"]
    for failure in answers.failures:
        label = names.classes[answers.true[failure.position]]
        yield [answers.names[failure.position], label, failure.code, failure.message]


def _prediction_rows(answers: Answers, names: Names) -> Iterator[list[Any]]:
    """A row an image, unreadable ones too, in the order of the data."""
    experts = [name for name in answers.heads if name != "average"]
    yield [
        *("filename", "true_label", "label", "prob", "correct"),
        *(column for name in experts for column in (f"{name}_label", f"{name}_prob")),
        *(["agree"] if len(experts) == 2 else []),
        *("true_group", "error"),
    ]
    row_of = np.full(len(answers.names), -1)
    row_of[answers.positions] = np.arange(len(answers.positions))
    code_of = {failure.position: failure.code for failure in answers.failures}
    for position, (filename, true) in enumerate(zip(answers.names, answers.true, strict=True)):
        row, group = int(row_of[position]), names.rank_groups[true]
        begin = [filename, names.classes[true]]
        if row < 0:
            blank = [""] * (3 + 2 * len(experts) + (len(experts) == 2))
            yield [*begin, *blank, group, code_of[position]]
            continue
        said = [head.predicted[row] for head in answers.heads.values()]
        sure = [f"{head.confidence[row]:.6f}" for head in answers.heads.values()]
        pairs = [(names.classes[c], p) for c, p in zip(said, sure, strict=True)]
        yield [
            *(*begin, *pairs[0], _word(said[0] == true)),
            *(cell for pair in pairs[1:] for cell in pair),
            *([_word(said[1] == said[2])] if len(experts) == 2 else []),
            *(group, ""),
        ]


def _write_csv(file: Path, rows: Iterable[Sequence[Any]]) -> None:
    # File names need not be UTF-8; what is not comes back as the same bytes.
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as text:
        text.writelines(map(csv_line, rows))


def _cells(accuracy: Accuracy) -> tuple[str, str, str]:
    if accuracy.value is None or accuracy.interval is None:
        return "", "", ""
    low, high = accuracy.interval
    return f"{accuracy.value:.4f}", f"{low:.4f}", f"{high:.4f}"


def _with_interval(value: float | None, interval: Interval | None) -> str:
    assert value is not None
    assert interval is not None
    return f"{100 * value:.1f} ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})"


def _percent(accuracy: Accuracy) -> str:
    return "-" if accuracy.value is None else f"{100 * accuracy.value:.1f}"


def _word(yes: object) -> str:
    return "true" if yes else "false"
