"""`python -m export.benchmark [CHECKPOINT ...]`: how fast each exported form runs on this machine.

One table from one run: rows take turns, so that what slows the machine down slows all of them, and
every ratio is to the plain ONNX export of the same model. Without a checkpoint the students have
random weights, which takes the same time.
"""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from deitlt.cores import usable_cores
from deitlt.errors import RuntimeUnavailable, UsageError
from deitlt.files import write_json
from deitlt.measuring import Steal, describe, format_steal, hardware, versions
from deitlt.program import OneLineParser, run_program, typed
from deitlt.student import SIZES, Size, StudentConfig
from export.benchmark.measure import pick_yardstick
from export.benchmark.report import LEGEND, format_student
from export.benchmark.results import StudentResult
from export.benchmark.rows import BASELINE, ROWS
from export.benchmark.student_run import Plan, measure_student
from export.benchmark.students import Student, trained, untrained
from export.benchmark.targets import targets

PROGRAM = "export.benchmark"
MATRIX_SIDE = {"cpu": 1536, "cuda": 8192}
# What takes longer than the rest of a quick run.
SLOW = "compile"
# Of onnxruntime one of two is installed.
PACKAGES = ("numpy", "torch", "timm", "onnx", "openvino", "onnxruntime", "onnxruntime-gpu")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure.

    Returns:
        0, whether or not targets are met; 2 with one line on what was wrong.
    """
    arguments = _parser().parse_args(argv)
    command_line = typed(PROGRAM, argv)

    def body() -> None:
        benchmark(arguments, command_line)

    return run_program(PROGRAM, body, output=arguments.json)


def benchmark(arguments: argparse.Namespace, command_line: str) -> dict[str, Any]:
    """Measure, print the table and write the JSON file, if one is asked for.

    Raises:
        DeitLTError: one of its kinds; the text is for the user.
    """
    _check(arguments)
    plan = _plan(arguments)
    torch.set_num_threads(plan.threads)
    about: dict[str, Any] = {
        "command": command_line,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": plan.device,
        "threads": plan.threads,
        "rounds": plan.rounds,
        "hardware": hardware(
            torch.cuda.get_device_properties(0) if plan.device == "cuda" else None
        ),
        "versions": versions(PACKAGES),
    }
    threads = f"{plan.threads} threads for every row, {plan.rounds} rounds"
    print(describe(about, threads), flush=True)
    side = 256 if arguments.quick else MATRIX_SIDE[plan.device]
    yardstick = pick_yardstick(plan.device, side, plan.threads)
    steal, results = Steal(), list[StudentResult]()
    for student in _students(arguments):
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure_student(student, plan, yardstick, Path(folder)))
        print(format_student(results[-1].to_dict()), flush=True)
    found, stolen = targets(results, plan.device), steal.share()
    lines = [LEGEND, "", format_steal(stolen), "", "targets", *(f"  {line}" for line in found)]
    print("\n" + "\n".join(lines))
    report = about | {
        "steal": stolen,
        "students": [result.to_dict() for result in results],
        "targets": [vars(target) for target in found],
    }
    if arguments.json is not None:
        write_json(arguments.json, report)
    return report


def _parser() -> OneLineParser:
    parser = OneLineParser(prog=f"python -m {PROGRAM}", description=__doc__)
    parser.add_argument(
        "checkpoints", nargs="*", type=Path, metavar="CHECKPOINT",
        help="run folders or student.safetensors; without any, random weights",
    )  # fmt: skip
    parser.add_argument(
        "--size", nargs="+", choices=tuple(SIZES), default=None,
        help="students with random weights (tiny small on a CPU, tiny small base on a GPU)",
    )  # fmt: skip
    parser.add_argument("--img-size", type=int, default=None, help="their input, px (224)")
    parser.add_argument("--patch-size", type=int, default=None, help="their patches, px (16)")
    parser.add_argument("--num-classes", type=int, default=None, help="their classes (1000)")
    parser.add_argument(
        "--batch-sizes", nargs="+", type=int, default=None, metavar="B", help="images a call"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--threads", type=int, default=None, help="inside a call, for every row (all cores)"
    )
    parser.add_argument("--rounds", type=int, default=None, help="turns of each row (10)")
    parser.add_argument(
        "--rows", nargs="+", choices=tuple(ROWS), default=None, metavar="ROW",
        help=f"only these, and {BASELINE}: {', '.join(ROWS)}",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, default=None, help="labelled images to answer (folder or CSV)"
    )
    parser.add_argument(
        "--max-images", type=int, default=512, help="of --data, spread over the classes (512)"
    )
    parser.add_argument("--json", type=Path, default=None, help="file for all figures")
    parser.add_argument(
        "--profile", action="store_true", help="also say where the time goes, by operator"
    )
    parser.add_argument(
        "--quick", action="store_true",
        help=f"a nano student and few rounds, without {SLOW}: shows that the program works",
    )  # fmt: skip
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be done before anything is measured; raises a `DeitLTError`."""
    for name in ("img_size", "patch_size", "threads", "rounds", "max_images"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    if arguments.num_classes is not None and arguments.num_classes < 2:
        raise UsageError(f"--num-classes is {arguments.num_classes}; it must be at least 2")
    sizes = arguments.batch_sizes or ()
    if any(size < 1 for size in sizes) or len(set(sizes)) < len(sizes):
        raise UsageError(f"--batch-sizes {shlex.join(map(str, sizes))}: each once, at least 1")
    shape = ("size", "img_size", "patch_size", "num_classes")
    if arguments.checkpoints and any(getattr(arguments, name) for name in shape):
        raise UsageError("a checkpoint has its own shape; leave out --size and the like")
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise UsageError(f"--json {arguments.json}: there is no such folder to write it in")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeUnavailable("PyTorch sees no CUDA device here; use --device cpu")


def _plan(arguments: argparse.Namespace) -> Plan:
    quick, wanted = arguments.quick, arguments.rows
    rows = [key for key in ROWS if wanted is None or key in (*wanted, BASELINE)]
    left_out = {}
    if quick and wanted is None:
        rows.remove(SLOW)
        left_out[SLOW] = f"--quick leaves it out; ask for it with --rows {SLOW}"
    elif wanted is not None:
        left_out = {key: "not in --rows" for key in ROWS if key not in rows}
    return Plan(
        rows=rows,
        batch_sizes=tuple(arguments.batch_sizes or ((1, 8) if quick else (1, 8, 32))),
        device=arguments.device,
        threads=arguments.threads or usable_cores(),
        rounds=arguments.rounds or (3 if quick else 10),
        turn_s=0.02 if quick else 0.5,
        loads=1 if quick else 3,
        profile=arguments.profile,
        left_out=left_out,
    )


def _students(arguments: argparse.Namespace) -> list[Student]:
    data, limit = arguments.data, arguments.max_images
    if arguments.checkpoints:
        return [trained(path, data, limit) for path in arguments.checkpoints]
    quick = arguments.quick
    img_size, patch_size, num_classes = (32, 4, 10) if quick else (224, 16, 1000)
    sizes: tuple[Size, ...] = ("nano",) if quick else ("tiny", "small")
    if arguments.device == "cuda" and not quick:
        sizes = (*sizes, "base")
    configs = [
        StudentConfig(
            size=size,
            img_size=arguments.img_size or img_size,
            patch_size=arguments.patch_size or patch_size,
            num_classes=arguments.num_classes or num_classes,
        )
        for size in arguments.size or sizes
    ]
    return [untrained(config, data, limit) for config in configs]


if __name__ == "__main__":
    sys.exit(main())
