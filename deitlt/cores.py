"""How many cores there are for this process."""

import os
from contextlib import suppress
from math import ceil
from pathlib import Path

# Of the container: CPU time and the period it is of, both in microseconds; "max" without a limit.
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Cores this process may use: an affinity mask counts, and a container's CPU limit.

    More threads than that limit would wait for each other, each with an image in memory. Limits of
    cgroup v2 alone are seen; a part of a core counts as one.
    """
    can_ask = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if can_ask else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = map(int, CPU_LIMIT.read_text().split())
        cores = min(cores, ceil(quota / period))
    return cores
