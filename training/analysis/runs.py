"""The runs a report is about: run folders, weight files, and bundles that carry their weights."""

from collections.abc import Sequence
from pathlib import Path

from deitlt.bundle import MANIFEST, WEIGHTS, open_bundle
from deitlt.errors import CheckpointError, UsageError
from deitlt.student import load_transformer
from deitlt.weights import Card, weight_file
from training.analysis.attention import Transformer
from training.analysis.curves import read_curves


def load_run(run: Path) -> tuple[Transformer, Card]:
    """A student on the CPU, from its run folder, weight file or bundle.

    Raises:
        BundleError: a file of the bundle is not what it was when it was written.
        CheckpointError: there is no student.
    """
    if not run.exists():
        raise CheckpointError(f"{run}: there is no such run folder")
    if (run / MANIFEST).is_file():
        open_bundle(run)
        if not (run / WEIGHTS).is_file():
            raise CheckpointError(
                f"{run}: is a bundle without weights, and its fused graph has no attention to look "
                "at; export it with --weights, or name the run folder it was exported from"
            )
    return load_transformer(run)


def is_student(run: Path) -> bool:
    """Whether a run folder, weight file or bundle holds a student."""
    return weight_file(run, "student").is_file()


def folder_of(run: Path) -> Path:
    """The run folder that a path, perhaps of its weight file, stands for."""
    return run if run.is_dir() else run.parent


def check_runs(runs: Sequence[Path]) -> None:
    """Refuse runs that cannot be looked at, before any time is spent.

    Raises:
        DeitLTError: one of its kinds.
    """
    if not runs:
        raise UsageError("name the run folder of a student")
    load_run(runs[0])
    for run in runs[1:]:
        if is_student(run) or (run / MANIFEST).is_file():
            load_run(run)
        elif not read_curves(run):
            raise CheckpointError(
                f"{run}: has neither a student nor a results.csv with an epoch in it"
            )
    places = [_place(run) for run in runs]
    for run, place in zip(runs, places, strict=True):
        if places.count(place) > 1:
            raise UsageError(f"{run}: is named twice")


def name_runs(runs: Sequence[Path]) -> dict[Path, str]:
    """What to call each of the runs: as much of the end of its path as tells it from the others."""
    parts = [_place(run).parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(place[-length:]).replace("//", "/") for place in parts]
        if len(set(names)) == len(names):
            break
    return dict(zip(runs, names, strict=True))


def _place(run: Path) -> Path:
    """The one path of all that mean the same run."""
    place = run.resolve()
    return place.parent if place.is_file() and place.name == WEIGHTS else place
