"""`python -m training.reproduce TABLE --output FOLDER`: the paper's tables, run again.

TABLE is 1, 2, 3, 4, 5, 6, S.3 or S.4. Trains what its rows rest on, as far as there is data for it,
one seed after the other, and prints our figures beside the published ones with the difference and
the standard error over seeds. Finished runs are kept, unfinished ones go on: give the same command
again. Tables share runs, so keep to one folder.

`--scale full` runs the recipes as they are and is for GPUs, `short` a tenth of it on CIFAR, and
`tiny` handwritten digits on a CPU in minutes: it shows that all rows run, and its differences to
the published figures mean nothing.

`python -m training.reproduce evidence` runs our own list of CIFAR experiments; without TABLE it is
meant. Its options: `python -m training.reproduce evidence --help`.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from deitlt.errors import DataError, UsageError
from deitlt.files import new_folder, write_text
from deitlt.labelled import read_labelled
from deitlt.program import OneLineParser, sigterm_raises, typed
from training.command_line import run_program
from training.digits import write_digits
from training.reproduction import launch
from training.reproduction.compare import comparison, comparison_csv
from training.reproduction.evidence import PROGRAM, run_evidence
from training.reproduction.launch import Data
from training.reproduction.plans import run_folder, training_words, with_needs
from training.reproduction.published import CIFAR10, DATASETS, TABLES, Dataset, Row

EVIDENCE = "evidence"
SEEDS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run a table or the evidence; returns 0, or 2 with one line on what was wrong."""
    return run_program(
        PROGRAM, argv, _main, interrupted="interrupted; the same command goes on where it stopped"
    )


def _main(argv: list[str]) -> None:
    with sigterm_raises():
        if argv and argv[0] == EVIDENCE:
            run_evidence(argv[1:], argv)
        elif argv and argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
            run_evidence(argv, argv)
        else:
            reproduce(_arguments(argv), argv)


def _arguments(argv: list[str]) -> Any:
    parser = OneLineParser(
        prog=f"python -m {PROGRAM}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", choices=[*TABLES, EVIDENCE], metavar="TABLE")
    parser.add_argument("--output", type=Path, required=True, help="folder of all runs")
    parser.add_argument(
        "--data", type=Path, nargs="+", default=[], metavar="DATA",
        help="data sets, told apart by their number of classes; at scale tiny none is needed",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many; 3 by default")
    parser.add_argument("--scale", choices=("tiny", "short", "full"), default="full")
    parser.add_argument("--minutes", type=float, default=None, help="stop in time, resumable")
    parser.add_argument("--teacher-options", default="", help="for every teacher, in quotes")
    parser.add_argument("--student-options", default="", help="for every student, in quotes")
    arguments = parser.parse_args(argv)
    if arguments.seeds < 1:
        raise UsageError(f"--seeds must be at least 1, not {arguments.seeds}")
    return arguments


def reproduce(arguments: Any, words: list[str]) -> None:
    """Run what a table rests on, seed by seed, and print the comparison.

    Args:
        arguments: of the command line.
        words: the same as they were typed, for the table.

    Raises:
        DeitLTError: an argument or data set is wrong, or a run failed.
    """
    rows = TABLES[arguments.table]
    options = {
        "teacher": launch.split_options(arguments.teacher_options),
        "student": launch.split_options(arguments.student_options),
    }
    root = arguments.output / arguments.scale
    data = _data_sets(arguments.data)
    on_digits = arguments.scale == "tiny" and CIFAR10.name not in data
    if on_digits:
        data[CIFAR10.name] = arguments.output / "digits"
    seeds = range(arguments.seeds)
    deadline = launch.deadline_in(arguments.minutes)
    runs = []
    for seed, dataset, factor, plan in _jobs(rows, data, seeds):
        source = data[dataset.name]
        command = training_words(plan, arguments.scale, root, source, dataset, factor, seed)
        command += options[command[0].removeprefix("training.train_")]
        if seed == 0:  # another seed changes nothing that could be wrong
            launch.check_command(command)
        runs.append((command, run_folder(root, dataset, factor, seed, plan), dataset.name))
    with launch.alone_in(root):
        if on_digits:
            _write_digits(data[CIFAR10.name])
        known = {name: launch.look_at(source) for name, source in data.items()}
        for command, run, name in runs:
            if not launch.train_and_evaluate(command, run, known[name], deadline):
                print(f"time is up in {run}; the same command goes on")
                break
        text = _table(arguments, words, known, seeds, root)
    print(text)


def _table(
    arguments: Any, words: list[str], data: dict[str, Data], seeds: Sequence[int], root: Path
) -> str:
    """The comparison as Markdown; it is written, as CSV too, into the folder of the runs."""
    rows = TABLES[arguments.table]
    tests = {name: known.test_sha256 for name, known in data.items()}
    missing = {d.name: d.needs for d in DATASETS if d.name not in data}
    text = "\n\n".join(
        [
            f"`{typed(PROGRAM, words)}`",
            _conditions(arguments.scale, data),
            comparison(rows, root, seeds, tests, missing),
        ]
    )
    write_text(root / f"table-{arguments.table}.md", text)
    write_text(root / f"table-{arguments.table}.csv", comparison_csv(rows, root, seeds, tests))
    return text


def _jobs(
    rows: list[Row], data: dict[str, Path], seeds: Sequence[int]
) -> list[tuple[int, Dataset, int | None, str]]:
    """All runs for which there is data, seed by seed, needs first."""
    places = dict.fromkeys((row.dataset, row.factor) for row in rows)
    return [
        (seed, dataset, factor, plan)
        for seed in seeds
        for dataset, factor in places
        if dataset.name in data
        for plan in with_needs(
            [row.plan for row in rows if (row.dataset, row.factor) == (dataset, factor)]
        )
    ]


def _data_sets(sources: list[Path]) -> dict[str, Path]:
    """Data folders by the data set they are, told apart by their number of classes."""
    found: dict[str, Path] = {}
    for source in sources:
        splits = read_labelled(source)
        num_classes = len(next(iter(splits.values())).classes)
        dataset = next((d for d in DATASETS if d.num_classes == num_classes), None)
        if dataset is None:
            known = ", ".join(f"{d.num_classes} ({d.name})" for d in DATASETS)
            raise DataError(f"{source}: has {num_classes} classes; the paper's sets have {known}")
        if "test" not in splits:
            raise DataError(f"{source}: has no test images to compare on")
        if dataset.name in found:
            raise UsageError(f"--data names two sets of {num_classes} classes; name one")
        found[dataset.name] = source
    return found


def _write_digits(folder: Path) -> None:
    """The digits, whole or not at all."""
    if not folder.is_dir() or not any(folder.iterdir()):
        with new_folder(folder, overwrite=False) as whole:
            write_digits(whole)


def _conditions(scale: str, data: dict[str, Data]) -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    about = f"{datetime.now(UTC).date()}, {device}, torch {torch.__version__}, scale {scale}; "
    about += ", ".join(f"{name}: {known.path}" for name, known in data.items()) or "no data"
    lines = [about + ". Accuracy in %, last epoch, test split; ± is the standard error over seeds."]
    if scale == "tiny":
        lines.append(
            "Tiny networks (one and the same for S and B), imbalance factors 20 and 10 in place of "
            "100 and 50, and digits in place of CIFAR-10 unless it is named: the differences to "
            "the published figures mean nothing."
        )
    elif scale == "short":
        lines.append("Shorter training than the published figures rest on.")
    return " ".join(lines)


if __name__ == "__main__":
    sys.exit(main())
