"""The benchmark's table, and what its figures were taken on and with."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from deitlt import __version__
from deitlt.engine import usable_cores
from training.benchmark.measure import GIB, Row

LEGEND = (
    "Figures are medians; spread: largest less smallest sample over the median; ratio: the figure\n"
    "over its baseline's. Parts of a step are timed by themselves; in the step they may overlap."
)
COLUMNS = ("", "figure", "unit", "spread", "ratio", "baseline", "target")


def hardware(device: torch.device) -> dict[str, Any]:
    """What the figures were taken on."""
    facts: dict[str, Any] = {"cpu": _cpu_name(), "cores": usable_cores()}
    if hasattr(os, "getloadavg"):
        facts["load_average"] = round(os.getloadavg()[0], 2)
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        facts |= {"gpu": gpu.name, "gpu_gib": round(gpu.total_memory / GIB, 1)}
    return facts


def versions() -> dict[str, str | None]:
    """What the figures were taken with."""
    names = ("numpy", "pillow", "timm", "torch", "torchvision")
    known: dict[str, str | None] = {"deitlt": __version__, "python": platform.python_version()}
    return known | {name: version(name) for name in names} | {"cuda": torch.version.cuda}


def describe(about: dict[str, Any]) -> str:
    """Command, hardware and versions for people."""
    machine = about["hardware"]
    gpu = f"{machine['gpu']}, {machine['gpu_gib']} GiB" if "gpu" in machine else "no GPU used"
    load = f", load average {machine['load_average']}" if "load_average" in machine else ""
    return "\n".join(
        [
            f"{about['time']}  {about['command']}",
            f"{gpu}; {machine['cpu']}, {machine['cores']} cores{load}",
            ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number),
        ]
    )


def format_rows(rows: list[Row]) -> str:
    """The table, and what a reader must know of its rows."""
    cells: list[tuple[str, ...]] = [COLUMNS]
    part = ""
    for row in rows:
        if row.part != part:
            part = row.part
            cells.append((part, *[""] * 6))
        target = "" if row.target is None else str(row.target)
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        spread = f"{row.spread:.0%}" if len(row.samples) > 1 else ""
        baseline = row.baseline or ""
        cells.append(
            (f"  {row.name}", f"{row.value:.4g}", row.unit, spread, ratio, baseline, target)
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    right = {1, 3, 4}
    lines = [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    notes = [f"  {row.part}, {row.name}: {row.note}" for row in rows if row.note]
    return "\n".join(["", *lines, "", LEGEND, *notes])


def _cpu_name() -> str:
    """The processor, as Linux names it, or as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
