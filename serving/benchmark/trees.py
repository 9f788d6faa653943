"""Servers as trees of processes: started, stopped in their tracks, counted, and ended whole.

A process belongs to a tree by a mark in its environment, which its children inherit: a worker that
was handed over to init, or has a session of its own, is still found.
"""

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from deitlt.errors import RuntimeUnavailable

MARK = "BENCHMARK_TREE_OF_DEITLT"
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
POLL_S = 0.02
# Where /proc/<pid>/stat has ticks, counted from behind the name: user, system, those of children.
OWN, WITH_CHILDREN = slice(11, 13), slice(11, 15)
PATIENCE_S = 90.0
# For children that end by themselves after the first process.
GRACE_S = 2.0


@dataclass
class Tree:
    """A running server.

    Attributes:
        process: the one that was started.
        mark: what stands in the environment of all.
        log: their output.
    """

    process: subprocess.Popen[bytes]
    mark: bytes
    log: Path
    _members: list[int] = field(default_factory=list)

    @classmethod
    def start(
        cls, command: Sequence[str], environ: Mapping[str, str], folder: Path, log: Path
    ) -> "Tree":
        """Start a command in a folder; everything that it writes goes to a log."""
        mark = uuid.uuid4().hex
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={**environ, MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return cls(process, f"{MARK}={mark}".encode(), log)

    def wait_until(self, ready: Callable[[], bool]) -> float:
        """Seconds from now until the server is ready.

        Raises:
            RuntimeUnavailable: it ended, or is not ready for too long; with its last line.
        """
        start = time.perf_counter()
        while not ready():
            if self.process.poll() is not None or time.perf_counter() - start > PATIENCE_S:
                lines = self.log.read_text(errors="replace").strip().splitlines() or ["no output"]
                raise RuntimeUnavailable(f"it did not start: {lines[-1][:200]}")
            time.sleep(POLL_S)
        seconds = time.perf_counter() - start
        self.find()
        return seconds

    def find(self) -> list[int]:
        """Its processes now."""
        self._members = [pid for pid in _processes() if self.mark in _environ(pid)]
        return self._members

    def cpu_s(self) -> float:
        """Processor time of the processes last found and of those of their children that ended."""
        return sum(map(_cpu_s, self._members))

    def memory_mib(self) -> tuple[float, float]:
        """Resident memory, and the part of it that is its own (shared pages by their share)."""
        members = self.find()
        return tuple(sum(_memory_mib(pid, kind) for pid in members) for kind in ("Rss", "Pss"))  # type: ignore[return-value]

    def pause(self) -> None:
        """Stop all its processes where they are."""
        for pid in self.find():
            _send(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        for pid in self.find():
            _send(pid, signal.SIGCONT)

    def stop(self) -> tuple[float | None, int]:
        """Ask the first process to end; then end what is left.

        Returns:
            Seconds until it ended, None if it did not; and how many of the others outlived it.
        """
        start, seconds = time.perf_counter(), None
        self.resume()
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE_S / 3)
            seconds = time.perf_counter() - start
        end = time.perf_counter() + GRACE_S
        while (left := self.find()) and time.perf_counter() < end:
            time.sleep(POLL_S)
        for pid in left:
            _send(pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)
        return seconds, len([pid for pid in left if pid != self.process.pid])


def busy_processes(seconds: float, share: float) -> list[str]:
    """Names of other processes that take more than a share of a core, with their share."""
    before = {pid: _cpu_s(pid, OWN) for pid in _processes()}
    time.sleep(seconds)
    found = []
    for pid, cpu_s in before.items():
        taken = (_cpu_s(pid, OWN) - cpu_s) / seconds
        if taken > share and pid != os.getpid():
            with suppress(OSError):
                name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
                found.append(f"{name} {taken:.0%}")
    return sorted(found)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it ended, or is another user's
        return []


def _cpu_s(pid: int, which: slice = WITH_CHILDREN) -> float:
    """Processor time, also of children that have ended; 0 of a process that is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return sum(map(int, fields[which])) * TICK_S


def _memory_mib(pid: int, kind: str) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    lines = [line.split() for line in text.splitlines() if line.startswith(f"{kind}:")]
    return int(lines[0][1]) / 1024 if lines else 0.0


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
