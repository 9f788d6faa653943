"""The table, and what its figures were taken on and with."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from deitlt import __version__
from deitlt.engine import usable_cores
from export.benchmark.measure import MAX_STEAL

LEGEND = """\
p50, q1, p99: median, lower quartile and 99th percentile of a call, ms; images/s is at the median.
x plain: median over rounds of the plain export's time by the row's, in the same round.
cpu, x cpu: median and ratio of the processor's time of a call, ms over all threads; a crowd on the
  cores, which makes calls longer, leaves it nearly alone. It is the host's, not the GPU's.
of floor: the least time, GFLOP after pruning at the best rate of the matrix product in this run, by
  the row's median; int8 has a lower floor than float32's, which is the one shown.
load: from opening the file to the first answer; peak: resident memory of the
  host; both of a fresh process, imports not in the time and libraries in the memory.
The timm rows get normalised float32 images for nothing; ours take raw pixels and normalise them.
A call goes from the host's memory to the host's, with IO binding from the device's to the device's.
OpenVINO is given a fixed shape for each batch size, torch.compile a program."""
TIMES = ("", "images/s", "p50", "q1", "p99", "calls", "x plain", "cpu", "x cpu", "of floor")
COSTS = ("", "file MB", "load s", "peak MiB", "top-1 as torch", "overall", "tail")


def hardware(device: str) -> dict[str, Any]:
    """What the figures were taken on."""
    facts: dict[str, Any] = {"cpu": _cpu_name(), "cores": usable_cores()}
    if hasattr(os, "getloadavg"):
        facts["load_average"] = round(os.getloadavg()[0], 2)
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        facts |= {"gpu": gpu.name, "gpu_gib": round(gpu.total_memory / 2**30, 1)}
    return facts


def versions() -> dict[str, str]:
    """What the figures were taken with; only what is installed."""
    import onnxruntime

    known = {"deitlt": __version__, "python": platform.python_version()}
    for name in ("numpy", "torch", "timm", "onnx", "openvino"):
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            continue
    return known | {"onnxruntime": onnxruntime.__version__}


def describe(about: dict[str, Any]) -> str:
    """Command, hardware and versions for people."""
    machine = about["hardware"]
    gpu = f"{machine['gpu']}, {machine['gpu_gib']} GiB" if "gpu" in machine else "no GPU used"
    load = f", load average {machine['load_average']}" if "load_average" in machine else ""
    return "\n".join(
        [
            f"{about['time']}  {about['command']}",
            f"{gpu}; {machine['cpu']}, {machine['cores']} cores{load}",
            f"{about['threads']} threads for every row, {about['rounds']} rounds",
            ", ".join(f"{name} {number}" for name, number in about["versions"].items()),
        ]
    )


def format_student(result: dict[str, Any]) -> str:
    """The part of the table on one student, from `StudentResult.to_dict`."""
    lines = [
        "",
        result["student"],
        f"  {result['plain_gflop']:.4g} GFLOP an image as trained, {result['gflop']:.4g} after "
        "pruning the last block",
    ]
    for size, rate in result["yardstick"]["tflop_per_s"].items():
        lines += ["", *_times(result, size, rate)]
    lines += ["", *_costs(result)]
    lines += [f"  {row['label']}: {row['note']}" for row in result["rows"] if row["note"]]
    lines += [f"  skipped: {label}: {why}" for label, why in result["skipped"].items()]
    if result["bundle"]:
        load = result["bundle"]
        lines.append(
            f"  bundle: import {load['import_s']:.3f} s, load and first prediction "
            f"{load['load_s']:.3f} s, {'no ' if load['torch_free'] else ''}torch loaded"
        )
    for label, shares in result["operators"].items():
        lines += ["", f"  where the time of {label} goes"]
        lines += [f"    {share:6.1%}  {name}" for name, share in shares.items() if share >= 0.001]
    return "\n".join(lines)


def format_steal(steal: float | None) -> str:
    """How much of the processor others took during the run."""
    if steal is None:
        return "CPU steal: not known on this system"
    line = f"CPU steal during the run: {steal:.1%}"
    if steal > MAX_STEAL:
        line += f"  WARNING: over {MAX_STEAL:.0%}; times are not this machine's, run again"
    return line


def _times(result: dict[str, Any], size: str, rate: float) -> list[str]:
    cells: list[tuple[str, ...]] = [(f"  batch {size}", *TIMES[1:])]
    for row in result["rows"]:
        found = row["batches"][size]
        cells.append(
            (
                f"    {row['label']}",
                f"{found['images_per_s']:.4g}",
                *(f"{found[name]:.4g}" for name in ("p50_ms", "lower_quartile_ms", "p99_ms")),
                str(found["num_calls"]),
                _ratio(found["ratio"]),
                f"{found['cpu_ms']:.4g}",
                _ratio(found["cpu_ratio"]),
                f"{found['share_of_floor']:.1%}",
            )
        )
    floor_ms = int(size) * result["gflop"] / rate
    note = f"    floor {floor_ms:.4g} ms: {result['yardstick']['name']}, {rate:.4g} TFLOP/s"
    return [*_aligned(cells), note]


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _costs(result: dict[str, Any]) -> list[str]:
    cells: list[tuple[str, ...]] = [(f"  on {result['images']}", *COSTS[1:])]
    for row in result["rows"]:
        shares = (row[name] for name in ("same_top1", "overall", "tail"))
        cells.append(
            (
                f"    {row['label']}",
                f"{row['file_mb']:.4g}",
                f"{row['load_s']:.3f}",
                f"{row['peak_mib']:.0f}",
                *("-" if share is None else f"{share:.1%}" for share in shares),
            )
        )
    return _aligned(cells)


def _aligned(cells: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def _cpu_name() -> str:
    """The processor, as Linux names it, or as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
