"""`python -m training.reproduce evidence`: the paper's CIFAR claims and ours, measured once each.

Trains, one after the other and each resumable, the teachers, students, baselines and cheaper
variants of `EXPERIMENTS`, evaluates each on the test split once, and writes one table with what it
ran on, anew after each. With `--minutes` it stops in time, with resume points, and the same command
goes on.
"""

import csv
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from deitlt.errors import UsageError
from deitlt.files import write_text
from deitlt.program import OneLineParser, typed
from training.reproduction import launch

PROGRAM = "training.reproduce"


@dataclass(frozen=True)
class Experiment:
    """One run.

    Attributes:
        recipe: of `train_teacher` or `train_student`.
        kind: which of the two.
        needs: the experiment whose weights it takes: a teacher's, or for cRT the features.
        options: changes to the recipe.
    """

    recipe: str
    kind: str = "student"
    needs: str = ""
    options: tuple[str, ...] = ()


TINY, SMALL = ("--size", "tiny"), ("--size", "small")
# What two CPU cores get through in some hours.
SHORT = ("--epochs", "50", "--drw-epoch", "40", "--decay-epochs", "40", "45")
NO_DRW = ("--drw-epoch", "50")
EXPERIMENTS: dict[str, Experiment] = {
    "teacher_ldam": Experiment("cifar", "teacher"),
    "teacher_ldam_no_sam": Experiment("cifar_no_sam", "teacher"),
    "teacher_paco": Experiment("cifar_paco", "teacher"),
    "teacher_paco_no_sam": Experiment("cifar_paco_no_sam", "teacher"),
    "teacher_glmc": Experiment("cifar_glmc", "teacher"),
    "tiny": Experiment("cifar_tiny", needs="teacher_paco"),
    "tiny_ldam": Experiment("cifar_tiny", needs="teacher_ldam"),
    "tiny_no_drw": Experiment("cifar_no_drw", needs="teacher_paco", options=TINY),
    "tiny_no_sam": Experiment("cifar_tiny", needs="teacher_paco_no_sam"),
    "tiny_no_drw_no_sam": Experiment("cifar_no_drw", needs="teacher_paco_no_sam", options=TINY),
    "tiny_weak_views": Experiment("cifar_weak_views", needs="teacher_paco", options=TINY),
    "tiny_unmixed": Experiment("cifar_unmixed", needs="teacher_paco", options=TINY),
    "tiny_vit": Experiment("vit", options=TINY),
    "tiny_vit_crt": Experiment("vit_crt", needs="tiny_vit", options=TINY),
    "tiny_native": Experiment("cifar_native", needs="teacher_paco", options=TINY),
    "tiny_64": Experiment("cifar_64", needs="teacher_paco", options=TINY),
    "tiny_short": Experiment("cifar_short", needs="teacher_paco", options=TINY),
    "tiny_muon": Experiment("cifar_muon", needs="teacher_paco", options=TINY),
    "tiny_late_balance": Experiment("cifar_late_balance", needs="teacher_paco", options=TINY),
    "tiny_glmc": Experiment("cifar_tiny", needs="teacher_glmc"),
    "small": Experiment("cifar_small", needs="teacher_paco"),
    "small_vit": Experiment("vit", options=SMALL),
    "base": Experiment("cifar", needs="teacher_paco"),
    "teacher_short": Experiment("cifar", "teacher", options=SHORT),
    "teacher_short_no_sam": Experiment("cifar_no_sam", "teacher", options=SHORT),
    "nano": Experiment("cifar_nano", needs="teacher_short"),
    "nano_no_sam": Experiment("cifar_nano", needs="teacher_short_no_sam"),
    "nano_long": Experiment(
        "cifar_nano", needs="teacher_short_no_sam", options=("--epochs", "100", "--drw-epoch", "80")
    ),
    "nano_no_drw": Experiment("cifar_nano", needs="teacher_short", options=NO_DRW),
    "nano_vit": Experiment("cifar_nano", options=("--no-distilled", *NO_DRW)),
}


def run_evidence(argv: list[str], words: list[str]) -> None:
    """Run experiments and print their table.

    Args:
        argv: arguments of this part of the program.
        words: all arguments of the program, for the table.

    Raises:
        UsageError: an argument is wrong, or a run failed.
    """
    parser = OneLineParser(prog=f"python -m {PROGRAM} evidence", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 or -100, balanced")
    parser.add_argument("--output", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--only", nargs="+", default=list(EXPERIMENTS), metavar="NAME")
    parser.add_argument("--imbalance-factor", type=float, default=100.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=None, help="stop in time, resumable")
    parser.add_argument("--teacher-options", default="", help="for every teacher, in quotes")
    parser.add_argument("--student-options", default="", help="for every student, in quotes")
    arguments = parser.parse_args(argv)
    for options in (arguments.teacher_options, arguments.student_options):
        launch.split_options(options)
    unknown = [name for name in arguments.only if name not in EXPERIMENTS]
    if unknown:
        raise UsageError(f"no experiment {unknown[0]!r}; there are: {', '.join(EXPERIMENTS)}")
    names = _with_needs(arguments.only)
    commands = {name: command_line(name, arguments) for name in names}
    for command in commands.values():
        launch.check_command(command)
    deadline = launch.deadline_in(arguments.minutes)
    data = launch.look_at(arguments.data)
    with launch.alone_in(arguments.output):
        for name, command in commands.items():
            run = arguments.output / name
            done = launch.train_and_evaluate(command, run, data, deadline)
            # After every run: the next one may fail, or be killed.
            table = results_table(arguments.output, names, data.test_sha256)
            table = f"`{typed(PROGRAM, words)}`\n\n{table}"
            write_text(arguments.output / "results.md", table)
            if not done:
                print(f"time is up in {name}; the same command goes on")
                break
    print(table)


def _with_needs(names: list[str]) -> list[str]:
    """The experiments and what they rest on, in the order of `EXPERIMENTS`."""
    wanted, open_ = set[str](), list(names)
    while open_:
        name = open_.pop()
        wanted.add(name)
        if EXPERIMENTS[name].needs:
            open_.append(EXPERIMENTS[name].needs)
    return [name for name in EXPERIMENTS if name in wanted]


def command_line(name: str, arguments: Any) -> list[str]:
    """The training command of an experiment, from the program's name on."""
    experiment, folder = EXPERIMENTS[name], arguments.output
    words = [f"training.train_{experiment.kind}", experiment.recipe]
    words += ["--data", str(arguments.data), "--output", str(folder / name), "--resume"]
    words += ["--imbalance-factor", f"{arguments.imbalance_factor:g}", "--val-fraction", "0"]
    words += ["--seed", str(arguments.seed), *experiment.options]
    if experiment.needs:
        flag = "--init" if experiment.recipe == "vit_crt" else "--teacher"
        words += [flag, str(folder / experiment.needs)]
    return words + launch.split_options(getattr(arguments, f"{experiment.kind}_options"))


def results_table(folder: Path, names: list[str], test_sha256: str) -> str:
    """What the experiments have achieved on the test split, as Markdown.

    Of those that were stopped, how far and how fast they are.

    Args:
        folder: of all runs.
        names: of the experiments.
        test_sha256: of the test images; figures on others are left out.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    today = datetime.now(UTC).date()
    lines = [
        f"{today}, {device}, torch {torch.__version__}. Accuracy in %: overall (head; mid; tail).",
        "",
        "| run | epochs | average or teacher | CLS | DIST | cosine | images/s | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        history = _history(folder / name / "results.csv")
        if not history:
            continue
        cells = [name, *_accuracies(launch.figures_of(folder / name, test_sha256), len(history))]
        cosines = [row.get("cls_dist_cosine") or "" for row in (history[0], history[-1])]
        cells.append(" to ".join(f"{float(c):.2f}" for c in cosines) if all(cosines) else "")
        speeds = sorted(float(row["images_per_s"]) for row in history)
        cells.append(f"{speeds[len(speeds) // 2]:.0f}")
        cells.append(f"{sum(float(row['seconds']) for row in history) / 60:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _history(file: Path) -> list[dict[str, str]]:
    """The epochs of a run up to its last resume point; none before the first."""
    if not file.is_file():
        return []
    with file.open(encoding="utf-8") as rows:
        return list(csv.DictReader(rows))


def _accuracies(metrics: dict[str, Any] | None, epochs: int) -> list[str]:
    """Cells of epochs and accuracies; without these where a run was not evaluated yet."""
    if metrics is None:
        return [f"{epochs}, not finished", "", "", ""]
    heads = metrics["heads"]
    main_head = next((h for h in ("average", "teacher", "cls") if h in heads), "cls")
    experts = [_figures(heads[h]) if "dist" in heads else "" for h in ("cls", "dist")]
    return [str(metrics["epoch"]), _figures(heads[main_head]), *experts]


def _figures(head: dict[str, Any]) -> str:
    groups = [head["groups"][group]["value"] for group in ("head", "mid", "tail")]
    inner = "; ".join("-" if g is None else f"{100 * g:.1f}" for g in groups)
    return f"{100 * head['overall']['value']:.1f} ({inner})"
