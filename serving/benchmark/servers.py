"""The servers that are measured, each with its setting, its command and how it is asked."""

import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from deitlt.cores import usable_cores
from deitlt.errors import RuntimeUnavailable
from deitlt.runtimes import Device
from serving.benchmark.peers.triton_server import (
    look_into,
    server_command,
    server_environ,
    write_repository,
)
from serving.benchmark.wire import (
    Encode,
    Read,
    form,
    kserve,
    raw,
    read_logits,
    read_prediction,
)

CHECKOUT = Path(__file__).resolve().parents[2]
PEERS = "serving.benchmark.peers"


@dataclass(frozen=True)
class Setup:
    """What all servers are given.

    Attributes:
        bundle: folder of the bundle.
        variant: form of its model.
        device: where it runs, `cpu` or `cuda`.
        triton: virtual environment with Triton's server; None without one.
        folder: for logs and repositories.
    """

    bundle: Path
    variant: str
    device: Device
    triton: Path | None
    folder: Path


class Launch(NamedTuple):
    """How a server is started."""

    command: list[str]
    environ: Mapping[str, str]


@dataclass(frozen=True)
class Server:
    """One row.

    Attributes:
        key: its name on the command line.
        label: for people.
        setting: what it is told, for people.
        needs: modules that it imports.
        launch: how it starts on a port.
        path: where images go.
        encode: an image as it takes it.
        read: its answer.
        ready: answers 200 when it can work.
        exact: whether it sees the very bytes; else its answers may differ a little.
        gpu: whether it can run on a GPU as it is.
    """

    key: str
    label: str
    setting: str
    needs: tuple[str, ...]
    launch: Callable[[Setup, int], Launch]
    path: str
    encode: Encode
    read: Read = read_prediction
    ready: str = "/readyz"
    exact: bool = True
    gpu: bool = True

    def missing(self, setup: Setup) -> str | None:
        """Why it cannot be measured here; None if it can."""
        if setup.device == "cuda" and not self.gpu:
            return "as it is set up here it runs on the CPU alone"
        if self.key == "triton" and setup.triton is None:
            return "name its environment with --triton"
        for name in self.needs:
            if find_spec(name) is None:
                return f"{name} is not installed; pip install 'deitlt[benchmark]'"
        return None


def _environ(setup: Setup) -> dict[str, str]:
    """This process's, with the bundle and nothing else of ours."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("DEITLT_")}
    return {
        **kept,
        "DEITLT_MODEL": str(setup.bundle.resolve()),
        "DEITLT_VARIANT": setup.variant,
        "DEITLT_DEVICE": setup.device,
        "PYTHONPATH": str(CHECKOUT),
        "OMP_NUM_THREADS": "1",
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(setup.folder / "bentoml"),
    }


def _bentoml(service: str) -> Callable[[Setup, int], Launch]:
    def launch(setup: Setup, port: int) -> Launch:
        command = [sys.executable, "-m", "bentoml", "serve", service]
        return Launch([*command, "--host", "127.0.0.1", "--port", str(port)], _environ(setup))

    return launch


def _fastapi(setup: Setup, port: int) -> Launch:
    command = [sys.executable, "-m", "uvicorn", "--factory", f"{PEERS}.fastapi_threads:make_app"]
    flags = ["--port", str(port), "--no-access-log", "--log-level", "warning"]
    return Launch([*command, *flags], _environ(setup))


def _litserve(setup: Setup, port: int) -> Launch:
    command = [sys.executable, "-m", f"{PEERS}.litserve_workers", str(port)]
    return Launch(command, _environ(setup))


def _triton(setup: Setup, port: int) -> Launch:
    if setup.triton is None:
        raise RuntimeUnavailable("name its environment with --triton")
    facts = look_into(setup.triton)
    models, links = setup.folder / "triton-models", setup.folder / "triton-links"
    if not models.exists():
        write_repository(setup.bundle, setup.variant, usable_cores(), models)
    command = server_command(facts, models, links, port)
    return Launch(command, server_environ(setup.triton, facts))


_OURS = _bentoml("serving.service:LongTailClassifier")
_BATCHABLE = "BentoML batchable"
SERVERS = {
    server.key: server
    for server in (
        Server("ours", "ours, raw body", "as it comes", ("bentoml",), _OURS, "/v1/classify", raw),
        Server(
            "ours-form", "ours, form", "as it comes", ("bentoml",), _OURS, "/v1/classify",
            form("image"),
        ),
        Server(
            "fastapi", "FastAPI, threads", "uvloop, httptools, a thread a core, raw body, no log",
            ("fastapi", "uvicorn"), _fastapi, "/classify", raw, ready="/ready",
        ),
        Server(
            "batchable", f"{_BATCHABLE}, best", "a process a core, batches to 8, no log or tracing",
            ("bentoml",), _bentoml(f"{PEERS}.batchable:Best"), "/classify", form("images"),
        ),
        Server(
            "batchable-default", f"{_BATCHABLE}, default", "one process, session on all cores",
            ("bentoml",), _bentoml(f"{PEERS}.batchable:Default"), "/classify", form("images"),
        ),
        Server(
            "depends", "BentoML depends",
            "inner service batchable, a process a core, kept connections; images are encoded again",
            ("bentoml",), _bentoml(f"{PEERS}.depends:Outer"), "/classify", form("image"),
            exact=False,
        ),
        Server(
            "litserve", "LitServe", "a worker process a core, form",
            ("litserve",), _litserve, "/predict", form("image"), ready="/health",
        ),
        Server(
            "triton", "Triton, Python backend",
            "an instance a core, binary extension, answers logits without classes",
            (), _triton, "/v2/models/benchmark/infer", kserve, read_logits,
            ready="/v2/health/ready",
            # Its environment has NumPy 1 and what ONNX Runtime goes with that, for the CPU.
            gpu=False,
        ),
    )
}  # fmt: skip


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
