"""What every benchmark says of its run: hardware, versions, how disturbed the processor was."""

import ctypes
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from deitlt import __version__
from deitlt.cores import usable_cores
from deitlt.gpu import cuda_driver

# The most of a processor's time that may go to other machines before times mean little.
MAX_STEAL = 0.03
# user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in these.
STEAL = 7


class Steal:
    """How much of the processors' time a hypervisor gave to others, since this was made."""

    def __init__(self) -> None:
        self._start = _processor_times()

    def share(self) -> float | None:
        """In [0, 1]; None where the system does not say."""
        end = _processor_times()
        if self._start is None or end is None:
            return None
        passed = [after - before for before, after in zip(self._start, end, strict=True)]
        return passed[STEAL] / sum(passed) if sum(passed) else 0.0


def format_steal(steal: float | None) -> str:
    """How much of the processor others took during the run."""
    if steal is None:
        return "CPU steal: not known on this system"
    line = f"CPU steal during the run: {steal:.1%}"
    if steal > MAX_STEAL:
        line += f"  WARNING: over {MAX_STEAL:.0%}; times are not this machine's, run again"
    return line


def hardware(gpu: Any = None) -> dict[str, Any]:
    """What figures were taken on.

    Args:
        gpu: what `torch.cuda.get_device_properties` or `first_gpu` says of the GPU, if one was
            used.
    """
    facts: dict[str, Any] = {"cpu": _cpu_name(), "cores": usable_cores()}
    if hasattr(os, "getloadavg"):
        facts["load_average"] = round(os.getloadavg()[0], 2)
    if gpu is not None:
        facts |= {"gpu": gpu.name, "gpu_gib": round(gpu.total_memory / 2**30, 1)}
    return facts


class Gpu(NamedTuple):
    """A GPU as `hardware` takes it; memory in bytes."""

    name: str
    total_memory: int


def first_gpu() -> Gpu | None:
    """The GPU that is used where no other is asked for, by the driver, so without torch.

    None where the driver says nothing of one.
    """
    cuda = cuda_driver()
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    if (
        cuda is None
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetName(name, len(name), device)
        or cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    ):
        return None
    return Gpu(name.value.decode(errors="replace"), memory.value)


def versions(names: Sequence[str]) -> dict[str, str]:
    """This package's version, Python's, and those of the named distributions that are installed."""
    known = {"deitlt": __version__, "python": platform.python_version()}
    for name in names:
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            continue
    return known


def describe(about: dict[str, Any], *lines: str) -> str:
    """Command, hardware and versions for people.

    Args:
        about: `time`, `command`, `hardware` and `versions`, which may hold None.
        lines: what else was the same for every row.
    """
    machine = about["hardware"]
    gpu = f"{machine['gpu']}, {machine['gpu_gib']} GiB" if "gpu" in machine else "no GPU used"
    load = f", load average {machine['load_average']}" if "load_average" in machine else ""
    return "\n".join(
        [
            f"{about['time']}  {about['command']}",
            f"{gpu}; {machine['cpu']}, {machine['cores']} cores{load}",
            *lines,
            ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number),
        ]
    )


def aligned(cells: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Rows of a table as lines; columns are flush right but for those in `left`."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def _processor_times() -> list[int] | None:
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    except OSError:
        return None
    return [int(field) for field in line.split()[1 : STEAL + 2]]


def _cpu_name() -> str:
    """The processor, as Linux names it, or as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
