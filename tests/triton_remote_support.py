"""What tests of the remote runtime share: a server that stops and starts again, and its models."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from deitlt.bundle import Bundle
from export.to_triton import export_triton
from tests import triton_support as support
from tests.triton_support import PYTHON, Environment, Protocol, Server

# How long the model `slow` lets a request wait for company that never comes.
DELAY_S = 2
MAX_BATCH = 4


@dataclass
class Site:
    """Where a server runs, stops and runs again at the same address."""

    environment: Environment
    models: Path
    folder: Path
    ports: list[int] = field(default_factory=lambda: support.free_ports(3))
    _starts: int = 0

    def url(self, protocol: Protocol) -> str:
        return f"{protocol}://127.0.0.1:{self.ports[0 if protocol == 'http' else 1]}"

    @contextmanager
    def serve(self) -> Iterator[Server]:
        self._starts += 1
        # Triton starts its Python models through a shell: no space in the name.
        folder = self.folder / f"start{self._starts}"
        try:
            with support.serve(self.environment, self.models, folder, *self.ports) as server:
                yield server
        finally:
            _end_stubs(folder)


def _end_stubs(folder: Path) -> None:
    """End what a server leaves behind that was stopped with requests in work.

    Its Python processes then may hang, and they ignore SIGTERM.
    """
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # a process may end meanwhile
            if f"{folder}/backends/".encode() in file.read_bytes():
                os.kill(int(file.parent.name), signal.SIGKILL)


def make_site(folder: Path, bundle: Bundle, environment: Environment) -> Site:
    """A server's place with two models, not started."""
    models = folder / "models"
    export_triton(bundle, models, replace(PYTHON, max_batch_size=MAX_BATCH))
    # Requests wait for others, and only one may: so a queue is full and a deadline passes at will.
    slow = replace(PYTHON, instances=1, max_queue_delay_us=DELAY_S * 10**6, max_queue_size=1)
    export_triton(bundle, models, slow, name="slow")
    return Site(environment, models, folder)
