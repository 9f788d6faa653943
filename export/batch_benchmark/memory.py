"""Whether memory stays flat, however many rows a run has: `deitlt predict` watched from outside."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from deitlt.batch.formats import ROWS
from deitlt.batch.output import partial_folder
from deitlt.errors import RuntimeUnavailable
from export.batch_benchmark.ways import descendants

MIB = 2**20
SAMPLES = 10
POLL_S = 0.2
# What the last half of a run may need beyond the first, as a share: allocators are not exact.
ALLOWED = 0.05


@dataclass(frozen=True)
class Memory:
    """Resident memory of a run's processes together, as it went on.

    Attributes:
        rows: images finished, as far as they are on the disk, at the end of each part of the run.
        mib: the most memory in that part.
        seconds: of the whole run.
    """

    rows: list[int]
    mib: list[float]
    seconds: float

    @property
    def flat(self) -> bool | None:
        """Whether the second half never needed noticeably more than the first; None if too short.

        A part without a sample was over at once.
        """
        half = len(self.mib) // 2
        if not half:
            return None
        return max(self.mib[half:]) <= (1 + ALLOWED) * max(self.mib[:half])


def watch(bundle: Path, paths: Sequence[Path], num_rows: int, folder: Path) -> Memory:
    """Classify pictures over and over with `deitlt predict`, `num_rows` in all, into a CSV file.

    Args:
        bundle: folder of the model.
        paths: of the pictures.
        num_rows: how many rows the list of inputs has.
        folder: a new one, for the list and the output.

    Raises:
        RuntimeUnavailable: the run failed, or its file has not a row for every input.
    """
    folder.mkdir()
    inputs, output, log = folder / "inputs.txt", folder / "rows.csv", folder / "log"
    with inputs.open("w", encoding="utf-8") as file:
        file.writelines(f"{path.resolve()}\n" for path in islice(cycle(paths), num_rows))
    command = [sys.executable, "-m", "deitlt.cli", "predict", "--filepaths", str(inputs)]
    command += ["--model", str(bundle), "--output", str(output)]
    samples: list[tuple[int, float]] = []
    rows = _growing(partial_folder(output) / ROWS)
    start = time.perf_counter()
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=said)
    try:
        while process.poll() is None:
            samples.append((next(rows), _resident_mib(process.pid)))
            time.sleep(POLL_S)
    finally:
        process.terminate()
        process.wait()
    seconds = time.perf_counter() - start
    num_done = 0 if process.returncode else sum(1 for _ in output.open("rb")) - 1
    if num_done != num_rows:
        raise RuntimeUnavailable(f"deitlt predict: {log.read_text().strip()[-300:]}")
    return summary(samples, num_rows, seconds)


def summary(samples: Sequence[tuple[int, float]], num_rows: int, seconds: float) -> Memory:
    """The most memory in each part of a run, from samples of rows done and MiB."""
    parts: list[list[float]] = [[] for _ in range(SAMPLES)]
    for done, mib in samples:
        parts[min(SAMPLES - 1, done * SAMPLES // num_rows)].append(mib)
    # A run of seconds has parts without a sample.
    ends = [(i + 1) * num_rows // SAMPLES for i in range(SAMPLES) if parts[i]]
    return Memory(ends, [max(part) for part in parts if part], seconds)


def _growing(file: Path) -> Iterator[int]:
    """Lines of a file below its header, again and again, reading only what has come since."""
    end, count = 0, -1
    while True:
        try:
            with file.open("rb") as opened:
                opened.seek(end)
                new = opened.read()
        except FileNotFoundError:  # not begun, or complete and moved to its place
            new = b""
        end, count = end + len(new), count + new.count(b"\n")
        yield max(0, count)


def _resident_mib(program: int) -> float:
    total = 0
    for pid in (program, *descendants(program)):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
    return total / MIB
