"""`python -m training.doctor --data DATA`: what is in labelled data and what is wrong with it.

It reads every image as training will, before any GPU time is spent, and names all faults at once.
Exit status: 0 without errors, 3 with errors, 2 for wrong use.
"""

import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from deitlt.cores import usable_cores
from deitlt.errors import UsageError
from deitlt.files import write_json
from deitlt.labelled import LabelledImages, inspect_labelled
from deitlt.labelled_rows import Fault
from deitlt.longtail import Groups, all_groups, imbalance_factor
from training.command_line import parse, run_program
from training.config import Recipe
from training.doctor_checks import (
    Findings,
    Look,
    Splits,
    check_coverage,
    check_files_left_out,
    check_names,
    check_pictures,
    look_at,
    run_splits,
)

PROGRAM = "training.doctor"
FOUND_ERRORS = 3
# Lines printed of one kind of finding; all are in the JSON.
PRINTED = 10


@dataclass(frozen=True, kw_only=True)
class DoctorCommand:
    """What the doctor is told."""

    data: Path
    """Folder of class folders, CSV, or folder with list files: what training will be given."""
    imbalance_factor: float | None = None
    """The long-tailed subset that training will draw."""
    val_fraction: float = Recipe.val_fraction
    """The share of each class that training will hold out where the data has no val split."""
    json: Path | None = None
    """File for the whole report."""
    workers: Annotated[int | None, tyro.conf.arg(aliases=["-j"])] = None
    """Threads that decode images; all cores by default."""


def main(argv: Sequence[str] | None = None) -> int:
    """Examine data; returns 0, 3 if there are errors in it, or 2 with one line for wrong use."""
    return run_program(PROGRAM, argv, _main, interrupted="interrupted; nothing was written")


def _main(argv: list[str]) -> int:
    command: DoctorCommand = parse(PROGRAM, DoctorCommand, argv)
    if command.workers is not None and command.workers < 1:
        raise UsageError(f"--workers must be at least 1, not {command.workers}")
    if command.json is not None and not command.json.parent.is_dir():
        raise UsageError(f"--json {command.json}: there is no folder {command.json.parent}")
    report = examine(command)
    print(describe(report))
    if command.json is not None:
        write_json(command.json, report)
    return FOUND_ERRORS if report["errors"] else 0


def examine(command: DoctorCommand) -> dict[str, Any]:
    """The whole report as plain JSON types.

    Raises:
        DataError: there is nothing at `--data`.
    """
    inspection = inspect_labelled(command.data)
    found = inspection.splits
    findings = Findings(list(inspection.faults), [])
    looks = _look_at_all(found, command.workers or usable_cores(), findings)
    run = run_splits(found, command.imbalance_factor, command.val_fraction, findings)
    check_names(found, findings)
    check_pictures(found, run, looks, findings)
    check_coverage(found, run, findings)
    check_files_left_out(command.data, inspection, findings)
    groups = all_groups(run["train"].counts()) if "train" in run else {}
    return {
        "data": str(command.data),
        "layout": inspection.layout,
        "notes": inspection.notes,
        "classes": next((images.classes for images in found.values()), []),
        "groups": {name: len(members) for name, members in groups.items()},
        "found": {name: _split_report(images, groups) for name, images in found.items()},
        "run": {name: _split_report(images, groups) for name, images in run.items()},
        "images": _image_report(list(looks.values())),
        "errors": [fault._asdict() for fault in findings.errors],
        "warnings": [fault._asdict() for fault in findings.warnings],
    }


def describe(report: dict[str, Any]) -> str:
    """The report for people: what there is, then what is wrong, at most `PRINTED` lines a kind."""
    classes = report["classes"]
    named = ", ".join(classes[:PRINTED]) + (", ..." if len(classes) > PRINTED else "")
    lines = [f"{report['data']}: {report['layout']}, {len(classes)} classes: {named}"]
    lines += [f"  {note}" for note in report["notes"]]
    lines += _split_table("in the data", report["found"], report["groups"])
    if report["run"] != report["found"]:
        lines += _split_table("in a run", report["run"], report["groups"])
    images = report["images"]
    for side in ("width", "height"):
        if side in images:
            least, middle, most = (images[side][key] for key in ("min", "median", "max"))
            lines.append(f"{side}: {least} to {most} px, median {middle:g}")
    modes = (f"{number} {mode}" for mode, number in images["modes"].items())
    lines.append(f"modes: {', '.join(modes) or 'none'}")
    for severity in ("errors", "warnings"):
        lines += _finding_lines(severity, report[severity])
    numbers = ((word, len(report[f"{word}s"])) for word in ("error", "warning"))
    lines.append(", ".join(f"{n} {word}{'' if n == 1 else 's'}" for word, n in numbers))
    return "\n".join(lines)


def _look_at_all(found: Splits, num_workers: int, findings: Findings) -> dict[Path, Look]:
    """What each sound file holds; a file in several rows is read once."""
    paths = list(dict.fromkeys(path for images in found.values() for path in images.paths))
    looks = {}
    with warnings.catch_warnings():
        # What Pillow warns of is decoded all the same, or becomes a finding that names the file.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        bar = tqdm(look_at(paths, num_workers), "reading images", len(paths), disable=None)
        for path, look in zip(paths, bar, strict=True):
            if isinstance(look, Fault):
                findings.errors.append(look)
            else:
                looks[path] = look
    return looks


def _split_report(images: LabelledImages, groups: Groups) -> dict[str, Any]:
    counts = images.counts()
    present = counts[counts > 0]
    return {
        "images": len(images),
        "classes": len(present),
        "imbalance_factor": imbalance_factor(present) if len(present) else None,
        "counts": counts.tolist(),
        "groups": {name: int(counts[members].sum()) for name, members in groups.items()},
    }


def _image_report(looks: list[Look]) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for axis, side in enumerate(("width", "height") if looks else ()):
        values = [look.size[axis] for look in looks]
        report[side] = {"min": min(values), "median": median(values), "max": max(values)}
    return report | {"modes": dict(Counter(look.mode for look in looks).most_common())}


def _split_table(title: str, splits: dict[str, Any], groups: dict[str, int]) -> list[str]:
    """Images by split and group, then the counts of each class."""
    header = "".join(f"{name:>9}" for name in groups)
    lines = [f"{title:<14}{'images':>9}{'classes':>9}{header}"]
    if groups:
        sizes = "".join(f"{number:>9}" for number in groups.values())
        lines.append(f"  {'classes':<12}{'':>18}{sizes}")
    for name, split in splits.items():
        cells = "".join(f"{number:>9}" for number in split["groups"].values())
        lines.append(f"  {name:<12}{split['images']:>9}{split['classes']:>9}{cells}")
    for name, split in splits.items():
        factor = split["imbalance_factor"]
        text = "" if factor is None else f", imbalance factor {factor:.3g}"
        lines.append(f"  {name} by class{text}: {_brief(split['counts'])}")
    return lines


def _finding_lines(severity: str, findings: list[dict[str, str]]) -> list[str]:
    lines = []
    for kind, number in Counter(finding["kind"] for finding in findings).items():
        texts = [finding["text"] for finding in findings if finding["kind"] == kind]
        lines += [f"{severity.removesuffix('s')}: {text}" for text in texts[:PRINTED]]
        if number > PRINTED:
            lines.append(f"  and {number - PRINTED} more {kind}; --json FILE lists all")
    return lines


def _brief(counts: list[int]) -> str:
    numbers = [str(count) for count in counts]
    return " ".join(numbers if len(numbers) <= 20 else [*numbers[:10], "...", *numbers[-5:]])


if __name__ == "__main__":
    sys.exit(main())
