"""What a report leaves out, and why: files that could not be read, analyses that lack something."""

from collections.abc import Sequence
from pathlib import Path

from training.analysis import tables
from training.analysis.curves import cosine_distance_curve, validation_curve
from training.analysis.sections import Section
from training.analysis.study import Study

# Files that the page lists; the CSV has all.
MAX_LISTED = 20


def unreadable(studies: Sequence[Study], asked: dict[Path, str]) -> Section | None:
    """The files that were left out; None without any.

    Args:
        studies: of the report.
        asked: what was left out when the teacher was asked, and why.
    """
    faults = dict(asked)
    for study in studies:
        faults |= study.unreadable
    if not faults:
        return None
    rows = tables.unreadable_rows(faults)
    return Section(
        "unreadable",
        "Images that could not be read",
        f"The first {MAX_LISTED}; unreadable.csv has all." if len(faults) > MAX_LISTED else "",
        f"{len(faults)} files were left out of every figure.",
        {"unreadable": tables.csv_text(rows)},
        None,
        table=[[str(cell) for cell in row] for row in rows[: MAX_LISTED + 1]],
    )


def left_out(studies: Sequence[Study], *, teacher: bool) -> Section | None:
    """The analyses that are not in the report; None where nothing is missing.

    Args:
        studies: of the report.
        teacher: whether the teacher was asked.
    """
    missing = [(study.name, *reason) for study in studies for reason in _reasons(study)]
    if not teacher:
        missing.append(
            ("teacher", "how sure the teacher is", "name the run folder of the teacher, --teacher")
        )
    if not missing:
        return None
    found = "; ".join(f"{name}: {what} ({why})" for name, what, why in missing)
    return Section("left_out", "What is not in this report", "", f"{found}.", {}, None)


def _reasons(study: Study) -> list[tuple[str, str]]:
    """What is not shown of a student, and why."""
    if not study.curves:
        return [
            (
                "cosine distance over training and learning curves",
                "it has no results.csv with an epoch in it",
            )
        ]
    reasons = []
    if len(study.experts) < 2:
        reasons.append(("DIST and the distance of both experts", "it has one expert"))
    elif cosine_distance_curve(study.curves) is None:
        reasons.append(("cosine distance over training", "its results.csv has no such column"))
    if validation_curve(study.curves) is None:
        reasons.append(("accuracy over training", "it held out no images"))
    return reasons
