"""A real `bentoml serve`, ready and asked to end at the end."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.checkout_support import ROOT
from tests.service_support import LIMITS, PATIENCE_S

BENTOML = str(Path(sys.executable).with_name("bentoml"))
SERVICE = "serving.service:LongTailClassifier"


def serve_command(port: int, target: str = SERVICE) -> list[str]:
    return [BENTOML, "serve", target, "--port", str(port)]


def serve_environ(tmp_path: Path, **settings: str) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith("DEITLT_")}
    ours = {"BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "True"}
    return {**others, **ours, **LIMITS, **settings}


@contextmanager
def serving(
    tmp_path: Path, *, target: str = SERVICE, cwd: Path = ROOT, **settings: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A real server that is ready, and its port; asked to end at the end.

    Not killed: its workers have sessions of their own and would stay.
    """
    log = tmp_path / "serve.log"
    with ExitStack() as stack:
        for attempts_left in (2, 1, 0):
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
            process = subprocess.Popen(
                [*serve_command(port, target), "--host", "127.0.0.1"],
                cwd=cwd,
                env=serve_environ(tmp_path, **settings),
                stdout=stack.enter_context(log.open("wb")),
                stderr=subprocess.STDOUT,
            )
            stack.callback(end, process)
            try:
                wait_until_ready(process, port, log)
                break
            except AssertionError as error:
                # Another test's server was faster, at the port or at one that BentoML chose.
                if not attempts_left or "Address already in use" not in str(error):
                    raise
        yield process, port


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    process.wait(PATIENCE_S)


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    limit = time.monotonic() + PATIENCE_S
    while time.monotonic() < limit:
        assert process.poll() is None, log.read_text()
        try:
            ready = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=PATIENCE_S)
            assert ready.status_code == 200, log.read_text()
            return
        except httpx.TransportError:
            time.sleep(0.05)  # nothing tells that a port will be opened
    pytest.fail(f"not ready in {PATIENCE_S} s\n{log.read_text()}")
