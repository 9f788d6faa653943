"""Ours beside the published figure: difference, and standard error over seeds."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.engine.checkpoint import RESULTS
from training.reproduction.launch import figures_of
from training.reproduction.plans import run_folder
from training.reproduction.published import Row

GROUPS = ("head", "mid", "tail")
# What a run's answer is called, best known first.
ANSWERS = ("average", "teacher", "cls")


@dataclass(frozen=True)
class Ours:
    """What was measured for a row.

    Attributes:
        overall: %, a seed each.
        groups: head, mid and tail of the same seeds, %; empty where the row has none.
    """

    overall: list[float]
    groups: list[tuple[float, ...]]

    @property
    def mean(self) -> float:
        """Mean over seeds, %; there must be one."""
        return float(np.mean(self.overall))

    @property
    def standard_error(self) -> float | None:
        """Of the mean, points: standard deviation over the root of the seeds; None of one seed."""
        if len(self.overall) < 2:
            return None
        return float(np.std(self.overall, ddof=1) / len(self.overall) ** 0.5)

    def mean_groups(self) -> tuple[float, ...]:
        """Means of head, mid and tail over seeds, %; empty where there are none."""
        return tuple(float(value) for value in np.mean(self.groups, axis=0)) if self.groups else ()


def measured(row: Row, root: Path, seeds: Sequence[int], tests: dict[str, str]) -> Ours:
    """What the finished runs of a row have on the test split.

    Args:
        row: of a table.
        root: folder of all runs.
        seeds: which of them.
        tests: identity of the test images by name of their data set; figures on others are left
            out. Of a data set that is not among them, what its runs were finished with counts.
    """
    overall, groups = [], []
    for seed in seeds:
        run = run_folder(root, row.dataset, row.factor, seed, row.plan)
        metrics = figures_of(run, tests.get(row.dataset.name))
        if metrics is None:
            continue
        if row.head == "teacher_agreement":
            overall.append(100 * _last(run / RESULTS, "teacher_agreement"))
            continue
        heads = metrics["heads"]
        named = ANSWERS if row.head == "answer" else (row.head,)
        figures = heads[next(name for name in named if name in heads)]
        overall.append(100 * figures["overall"]["value"])
        shares = [figures["groups"][group]["value"] for group in GROUPS]
        groups.append(tuple(100 * share for share in shares))
    return Ours(overall, groups)


def comparison(
    rows: Sequence[Row],
    root: Path,
    seeds: Sequence[int],
    tests: dict[str, str],
    missing: dict[str, str],
) -> str:
    """A Markdown table, a line a row.

    Args:
        rows: of a table.
        root: folder of all runs.
        seeds: which of them.
        tests: see `measured`.
        missing: what rows need, by name of their data set, where it was not given.
    """
    lines = [
        "| data | method | ours | seeds | published | difference | ours (head; mid; tail) "
        "| published (head; mid; tail) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours = measured(row, root, seeds, tests)
        cells = [data_name(row), row.method]
        if ours.overall:
            cells += [_with_error(ours.mean, ours.standard_error), str(len(ours.overall))]
        else:
            cells += ["no data" if row.dataset.name in missing else "not yet run", "0"]
        cells.append(_with_error(row.overall, row.standard_error))
        cells.append(f"{ours.mean - row.overall:+.1f}" if ours.overall else "")
        cells += [_joined(ours.mean_groups()), _joined(row.groups or ())]
        lines.append(f"| {' | '.join(cells)} |")
    needed = {row.dataset.name for row in rows}
    notes = [f"{name} needs {what}" for name, what in missing.items() if name in needed]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def comparison_csv(
    rows: Sequence[Row], root: Path, seeds: Sequence[int], tests: dict[str, str]
) -> str:
    """The same figures for programs; empty cells where there are none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["data", "method", "head", "seeds", "ours", "standard_error", "published"]
    names += ["published_standard_error", "difference"]
    writer.writerow([*names, *(f"ours_{g}" for g in GROUPS), *(f"published_{g}" for g in GROUPS)])
    for row in rows:
        ours = measured(row, root, seeds, tests)
        known = bool(ours.overall)
        mean = ours.mean if known else None
        cells = [mean, ours.standard_error, row.overall, row.standard_error]
        cells.append(ours.mean - row.overall if known else None)
        cells += [*(ours.mean_groups() or (None,) * 3), *(row.groups or (None,) * 3)]
        figures = ["" if cell is None else f"{cell:.2f}" for cell in cells]
        writer.writerow([data_name(row), row.method, row.head, len(ours.overall), *figures])
    return text.getvalue()


def data_name(row: Row) -> str:
    """The data set of a row with its imbalance factor."""
    return row.dataset.name if row.factor is None else f"{row.dataset.name} {row.factor}"


def _last(results: Path, column: str) -> float:
    with results.open(newline="", encoding="utf-8") as rows:
        return float(list(csv.DictReader(rows))[-1][column])


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.1f}" if error is None else f"{value:.1f} ± {error:.2f}"


def _joined(groups: Sequence[float]) -> str:
    return "; ".join(f"{value:.1f}" for value in groups)
