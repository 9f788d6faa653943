"""`python -m serving.benchmark --model BUNDLE`: the service beside bare calls and other servers.

Every ratio is to bare calls of the same classifier in the same run, before and after each window.
Without a trained bundle: `python -m export.benchmark.untrained small BUNDLE` writes one.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deitlt.bundle import default_bundle, open_bundle
from deitlt.cores import usable_cores
from deitlt.errors import RuntimeUnavailable, UsageError
from deitlt.files import write_json
from deitlt.gpu import count_gpus
from deitlt.measuring import (
    MAX_STEAL,
    Steal,
    describe,
    first_gpu,
    format_steal,
    hardware,
    versions,
)
from deitlt.program import OneLineParser, Terminated, run_program, sigterm_raises, typed
from deitlt.runtimes import default_variant
from serving.benchmark.peers.triton_server import look_into
from serving.benchmark.photos import made_up_photos, read_photos
from serving.benchmark.report import (
    LEGEND,
    claims,
    format_closed,
    format_conduct,
    format_goals,
    format_loads,
    format_soak,
    settings,
)
from serving.benchmark.run import Findings, Plan, measure
from serving.benchmark.servers import SERVERS, Setup
from serving.benchmark.trees import busy_processes

PROGRAM = "serving.benchmark"
PACKAGES = (
    *("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "bentoml", "starlette", "uvicorn"),
    *("uvloop", "httptools", "fastapi", "litserve"),
)
OVERLOAD = 4.0
MAX_IMAGES = 32
# Requests under way that keep every server busy: on a GPU one batch runs while the next gathers.
BUSY = {"cpu": 8, "cuda": 64}
# Of a core, before anything is started.
BUSY_SHARE = 0.02
CROWDED = """\
WARNING: other programs were at work before the start. A server of several processes or threads
then gets another share of the cores than bare calls: wall ratios say nothing, run again."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; returns 0, whether or not goals are met, or 2 with one line on what was wrong.

    Interrupted or terminated it stops the servers, prints what it has and returns 130 or 143.
    """
    arguments = _parser().parse_args(argv)
    command_line = typed(PROGRAM, argv)

    def body() -> None:
        benchmark(arguments, command_line)

    with sigterm_raises():
        return run_program(PROGRAM, body, output=arguments.json, interrupted="interrupted")


def benchmark(arguments: argparse.Namespace, command_line: str) -> dict[str, Any]:
    """Measure, print the tables and write the JSON file, if one is asked for.

    Raises:
        DeitLTError: one of its kinds; the text is for the user.
        KeyboardInterrupt: like `Terminated`, after printing and writing what was found before.
    """
    _check(arguments)
    plan = _plan(arguments)
    bundle = open_bundle(arguments.model)
    images = read_photos(arguments.data, MAX_IMAGES) if arguments.data else made_up_photos()
    variant = arguments.variant or default_variant(bundle, arguments.device)
    artefact = bundle.artefact(variant)
    about: dict[str, Any] = {
        "command": command_line,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(first_gpu() if arguments.device == "cuda" else None),
        "versions": versions(PACKAGES),
        "bundle": {
            "name": bundle.name,
            "version": bundle.version,
            "variant": variant,
            "sha256": bundle.manifest["files"][artefact.path.name]["sha256"],
            "img_size": bundle.preprocess.img_size,
        },
        "device": arguments.device,
        "images": {"number": len(images), "bytes": [len(image) for image in images]},
        "triton_versions": look_into(arguments.triton)["versions"] if arguments.triton else {},
        "busy_before": busy_processes(1.0, BUSY_SHARE),
    }
    print(describe(about, *_circumstances(about, plan)), flush=True)
    steal, found = Steal(), Findings()
    cut_short: BaseException | None = None
    with tempfile.TemporaryDirectory(prefix="deitlt-benchmark-") as folder:
        setup = Setup(bundle.path, variant, arguments.device, arguments.triton, Path(folder))
        try:
            measure(plan, setup, images, found)
        except (KeyboardInterrupt, Terminated) as error:
            if not found.series:
                raise
            cut_short = error
    stolen = steal.share()
    print(_text(found, arguments.goal, plan.max_steal))
    print(f"\n{format_steal(stolen)}")
    if about["busy_before"]:
        print(CROWDED)
    if cut_short is not None:
        print("\nINTERRUPTED: what the command asks for beyond this was not measured")
    complete = {"complete": cut_short is None}
    report = about | complete | {"plan": vars(plan), "steal": stolen, **_fields(found)}
    if arguments.json is not None:
        write_json(arguments.json, report)
    if cut_short is not None:
        raise cut_short
    return report


def _circumstances(about: dict[str, Any], plan: Plan) -> list[str]:
    bundle, images = about["bundle"], about["images"]
    triton = [f"{name} {number}" for name, number in about["triton_versions"].items()]
    busy = ", ".join(about["busy_before"]) or "nothing"
    on_cpu = about["device"] == "cpu"
    threads = f"{usable_cores()} threads of the runtime in every server; " if on_cpu else ""
    return [
        f"{bundle['name']} {bundle['version']}, {bundle['variant']} on {about['device']}, "
        f"{bundle['img_size']} px, graph {bundle['sha256'][:12]}; "
        f"{images['number']} images of {min(images['bytes'])} to {max(images['bytes'])} bytes",
        f"{threads}{plan.rounds} rounds of {plan.seconds:g} s; rounds over "
        f"{plan.max_steal:.0%} steal are dropped; busy before the start: {busy}",
        *([f"Triton's environment: {', '.join(triton)}"] if triton else []),
    ]


def _text(found: Findings, goal: float, max_steal: float) -> str:
    labels, rows = found.labels(), found.series
    parts = [format_closed(number, series, labels) for number, series in rows.items()]
    said = [line for number, series in rows.items() for line in claims(number, series, labels)]
    if found.loads:
        parts.append(format_loads(found.loads, labels, max_steal))
    if found.soak is not None:
        parts.append(format_soak(found.soak))
    servers = list(found.servers.values())
    parts += [format_conduct(servers), settings(found.bare, servers)]
    parts += [f"  skipped: {label}: {why}" for label, why in found.skipped.items()]
    goals = format_goals(rows, found.loads, found.servers.get("ours"), goal, max_steal)
    parts += ["", "goals", *goals, "", "ours by others; no claim where intervals overlap", *said]
    return "\n".join([*parts, "", LEGEND])


def _fields(found: Findings) -> dict[str, Any]:
    return {
        "bare": found.bare,
        "servers": {key: running.to_dict() for key, running in found.servers.items()},
        "skipped": found.skipped,
        "closed": {
            number: {key: series.to_dict() for key, series in rows.items()}
            for number, rows in found.series.items()
        },
        "open": {
            key: {share: [load.to_dict() for load in loads] for share, loads in shares.items()}
            for key, shares in found.loads.items()
        },
        "soak": found.soak.to_dict() if found.soak else None,
    }


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog=f"python -m {PROGRAM}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, default=None, help="bundle folder to serve")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu",
        help="where bare calls, the service and the others run the model (cpu)",
    )  # fmt: skip
    parser.add_argument(
        "--variant", default=None,
        help="form of its model (on a GPU fp16 where the bundle has it, else float32)",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, default=None, help="folder of images to send (made-up photographs)"
    )
    parser.add_argument(
        "--servers", nargs="+", choices=tuple(SERVERS), default=list(SERVERS), metavar="SERVER",
        help=f"only these of {', '.join(SERVERS)}",
    )  # fmt: skip
    parser.add_argument(
        "--triton", type=Path, default=None, metavar="ENVIRONMENT",
        help="virtual environment with nvidia-pytriton, deitlt and numpy<2",
    )  # fmt: skip
    parser.add_argument(
        "--concurrency", nargs="+", type=int, default=None, metavar="N",
        help="requests under way in closed loops (1 2 8 32); 0 for no closed loop",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=None, help="windows of each server (5)")
    parser.add_argument("--seconds", type=float, default=None, help="of a window (6)")
    parser.add_argument(
        "--max-steal", type=float, default=MAX_STEAL,
        help=f"drop rounds in which more of the processor went to others ({MAX_STEAL})",
    )  # fmt: skip
    parser.add_argument(
        "--loads", nargs="*", type=float, default=None, metavar="SHARE",
        help="open loops, by capacity (0.7 1.5)",
    )  # fmt: skip
    parser.add_argument("--load-rounds", type=int, default=None, help="windows of each (2)")
    parser.add_argument(
        "--overload", action="store_true", help=f"also {OVERLOAD:g} times what a server can do"
    )
    parser.add_argument(
        "--soak", type=float, default=0.0, metavar="MINUTES", help="our server at 70 %% for so long"
    )
    parser.add_argument("--starts", type=int, default=None, help="cold starts of each server (3)")
    parser.add_argument(
        "--goal", type=float, default=0.97, help="wall ratio to bare that ours should reach (0.97)"
    )
    parser.add_argument("--json", type=Path, default=None, help="file for all figures")
    parser.add_argument(
        "--quick", action="store_true",
        help="everything in short windows, by default of the packaged bundle",
    )  # fmt: skip
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be done before anything is started; raises a `DeitLTError`."""
    if not sys.platform.startswith("linux"):
        raise RuntimeUnavailable("it reads processor time from /proc; run it on Linux")
    if arguments.model is None:
        if not arguments.quick:
            raise UsageError("name a bundle with --model, or try it with --quick")
        arguments.model = default_bundle()
    if arguments.device == "cuda" and count_gpus() == 0:
        raise RuntimeUnavailable("--device cuda: the driver offers no GPU; use --device cpu")
    for name in ("rounds", "seconds", "load_rounds", "starts"):
        if (value := getattr(arguments, name)) is not None and not value > 0:
            raise UsageError(f"--{name.replace('_', '-')} is {value:g}; it must be positive")
    if any(number < 0 for number in arguments.concurrency or ()):
        raise UsageError("--concurrency must not be negative")
    if not all(0 < share <= 10 for share in arguments.loads or ()):
        raise UsageError("--loads must be over 0 and at most 10 times capacity")
    if not 0 <= arguments.soak <= 24 * 60:
        raise UsageError(f"--soak is {arguments.soak:g}; it must be 0 to 1440 minutes")
    if not 0 <= arguments.max_steal <= 1:
        raise UsageError(f"--max-steal is {arguments.max_steal:g}; it must be from 0 to 1")
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise UsageError(f"--json {arguments.json}: there is no such folder to write it in")


def _plan(arguments: argparse.Namespace) -> Plan:
    quick = arguments.quick
    seconds = arguments.seconds or (0.5 if quick else 6.0)
    wanted = arguments.concurrency or ([1, 8] if quick else [1, 2, 8, 32])
    loads = arguments.loads if arguments.loads is not None else [0.7, 1.5]
    return Plan(
        servers=list(dict.fromkeys(arguments.servers)),
        concurrency=tuple(number for number in wanted if number),
        rounds=arguments.rounds or (2 if quick else 5),
        seconds=seconds,
        warm_up_s=min(1.0, seconds / 3),
        max_steal=arguments.max_steal,
        shares=(*loads, OVERLOAD) if arguments.overload else tuple(loads),
        load_rounds=arguments.load_rounds or (1 if quick else 2),
        starts=arguments.starts or (1 if quick else 3),
        idle_s=1.0 if quick else 10.0,
        soak_minutes=arguments.soak,
        busy=BUSY[arguments.device],
    )


if __name__ == "__main__":
    sys.exit(main())
