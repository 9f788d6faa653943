"""What we rely on or work around in BentoML 1.4: a test each, that names who of us depends on it.

If one fails with a newer BentoML, the module it names has to be looked at before the bound in
pyproject.toml is raised.
"""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import bentoml
import httpx
import psutil  # type: ignore[import-untyped]
import pytest
from bentoml.exceptions import BentoMLException
from PIL.Image import Image
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.service_support import PATIENCE_S

CHECKOUT = Path(__file__).resolve().parents[1]
BENTOML = str(Path(sys.executable).with_name("bentoml"))
HOST = "127.0.0.2"  # what the probe asks for
MASKED = {"error": "An unexpected error has occurred, please check the server log."}


class Api:
    """The routes of the services below."""

    @bentoml.api(route="/api/length")  # type: ignore[untyped-decorator]
    async def length(self, text: str) -> int:
        return len(text)

    @bentoml.api(route="/api/fail")  # type: ignore[untyped-decorator]
    async def fail(self, status: int) -> str:
        raise BentoMLException("what I said", error_code=HTTPStatus(status))

    @bentoml.api(route="/api/image")  # type: ignore[untyped-decorator]
    async def image(self, image: Image) -> int:
        return image.width

    @bentoml.api(route="/api/file")  # type: ignore[untyped-decorator]
    async def file(self, file: Path) -> int:
        return file.stat().st_size

    @bentoml.api(route="/api/slow")  # type: ignore[untyped-decorator]
    async def slow(self) -> str:
        await asyncio.sleep(PATIENCE_S)
        return ""

    def __is_ready__(self) -> bool:
        return False


class Noting:
    """Middleware that says in an answer that it was there."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_noted(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-seen", b"yes")]
            await send(message)

        await self.app(scope, receive, send_noted)


def client_of(name: str, **settings: Any) -> Iterator[TestClient]:
    service: Any = bentoml.service(name=name, metrics={"enabled": False}, **settings)(Api)
    service.add_asgi_middleware(Noting)
    with TestClient(service.to_asgi(), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A service with a middleware."""
    yield from client_of("contract")


def test_health_routes_answer_a_line(client: TestClient) -> None:
    """serving/service.py leaves BentoML /livez and /readyz."""
    assert (client.get("/livez").status_code, client.get("/livez").text) == (200, "\n")


def test_is_ready_decides_readyz(client: TestClient) -> None:
    """serving/service.py: not ready before the warm-up and while draining."""
    assert client.get("/readyz").status_code == 503


def test_metrics_switched_off_count_no_probes(client: TestClient) -> None:
    """serving/service.py switches them off, serving/routes.py has /metrics."""
    assert client.get("/metrics").status_code == 404


def test_bentoml_has_no_other_routes_of_use() -> None:
    """serving/frontend.py leaves it the first four; the others are pages, which are ours."""
    service: Any = bentoml.service(name="contract_routes", metrics={"enabled": False})(object)
    paths = {route.path for route in service.to_asgi().routes}
    assert paths == {"/livez", "/readyz", "/healthz", "/schema.json"} | {
        "/static_content", "/docs.json", "/",
    }  # fmt: skip


@pytest.mark.parametrize("path", ["/", "/livez", "/api/length", "/schema.json"])
def test_added_middleware_stands_before_every_route(client: TestClient, path: str) -> None:
    """serving/frontend.py has such a middleware."""
    assert client.get(path).headers["x-seen"] == "yes"


def test_errors_of_a_client_have_a_list_as_body(client: TestClient) -> None:
    """serving/sdk.py answers /sdk/classify itself for that reason."""
    response = client.post("/api/fail", json={"status": 413})
    assert (response.status_code, response.json()) == (413, [{"error": "what I said"}])


def test_errors_of_a_server_are_masked(client: TestClient) -> None:
    """serving/sdk.py answers itself for that reason: 503 and 504 would not arrive."""
    response = client.post("/api/fail", json={"status": 503})
    assert (response.status_code, response.json()) == (503, MASKED)


def test_a_bad_image_file_is_500(client: TestClient) -> None:
    """serving/service.py takes base64 and no file for that reason."""
    response = client.post("/api/image", files={"image": ("a.png", b"junk")})
    assert (response.status_code, response.json()) == (500, MASKED)


def test_a_text_in_place_of_a_file_is_fetched(client: TestClient) -> None:
    """serving/sdk.py takes only JSON for that reason."""
    with socket.create_server((HOST, 0)) as listener, ThreadPoolExecutor() as pool:
        listener.settimeout(PATIENCE_S)

        def answer_one() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde")

        answered = pool.submit(answer_one)
        url = f"http://{HOST}:{listener.getsockname()[1]}/a.png"
        response = client.post("/api/file", files=[("file", (None, url.encode()))])
        answered.result(PATIENCE_S)
    assert response.json() == 5


def test_a_body_of_any_size_is_read(client: TestClient) -> None:
    """serving/sdk.py reads the body itself for that reason."""
    assert client.post("/api/length", json={"text": "a" * 30_000_000}).json() == 30_000_000


def test_a_timeout_is_504_with_another_body() -> None:
    """serving/bounded_http.py takes our routes past it for that reason, and for its timers."""
    for client in client_of("contract_timeout", traffic={"timeout": 0.1}):
        response = client.post("/api/slow", json={})
        assert response.status_code == 504
        assert response.json() == {"error": "Not able to process the request in 0.1 seconds"}


@dataclass
class Probed:
    """What was seen of `bentoml serve tests.bentoml_probe:Probe`, from start to end."""

    listens_elsewhere: bool
    metrics: str
    num_workers: int
    supervisor: int
    slow: httpx.Response
    hung: bool
    status: int
    notes: list[str]


def start_probe(home: Path, port: int, **environ: str) -> "subprocess.Popen[bytes]":
    own = {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    return subprocess.Popen(
        [BENTOML, "serve", "tests.bentoml_probe:Probe", "--port", str(port)],
        cwd=CHECKOUT,
        env={**os.environ, **own, "PROBE_NOTES": str(home / "notes"), **environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for(condition: Any) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Probed:
    home = tmp_path_factory.mktemp("probe")
    notes = home / "notes"
    notes.touch()
    with socket.create_server((HOST, 0)) as unused:
        port = unused.getsockname()[1]
    url = f"http://{HOST}:{port}"
    process = start_probe(home, port)
    try:
        wait_for(lambda: "startup" in notes.read_text())
        wait_for(lambda: psutil.Process(process.pid).children())
        with socket.socket() as elsewhere:
            listens_elsewhere = elsewhere.connect_ex(("127.0.0.1", port)) == 0
        httpx.get(f"{url}/scan/1", timeout=PATIENCE_S)
        metrics = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text
        num_workers = len(psutil.Process(process.pid).children(recursive=True))
        with ThreadPoolExecutor() as pool:
            slow = pool.submit(httpx.post, f"{url}/slow", json={}, timeout=PATIENCE_S)
            wait_for(lambda: "asked" in notes.read_text())
            process.terminate()
            time.sleep(0.4)  # uvicorn looks for signals ten times a second
            hung = is_hung(port) and "answered" not in notes.read_text()
            answer = slow.result(PATIENCE_S)
        status = process.wait(PATIENCE_S)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
    lines = notes.read_text().splitlines()
    return Probed(listens_elsewhere, metrics, num_workers, process.pid, answer, hung, status, lines)


def is_hung(port: int) -> bool:
    """Whether a new connection is taken and not answered."""
    with socket.create_connection((HOST, port), 0.2) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            connection.recv(1)
        except TimeoutError:
            return True
    return False


def test_the_service_says_which_host_it_listens_on(probed: Probed) -> None:
    """serving/service.py: 127.0.0.1 unless --host says otherwise."""
    assert not probed.listens_elsewhere  # and on its own host it was asked all this


def test_metrics_are_labelled_with_the_raw_path(probed: Probed) -> None:
    """serving/service.py switches them off for that reason."""
    assert 'endpoint="/scan/1"' in probed.metrics


def test_one_worker_is_one_process(probed: Probed) -> None:
    """serving/service.py; serving/drain.py takes its parent for the supervisor."""
    assert probed.num_workers == 1
    assert any(f"parent={probed.supervisor}" in note for note in probed.notes)


def test_hooks_run_in_order_and_shutdown_after_what_is_in_flight(probed: Probed) -> None:
    """serving/service.py: the check before any worker, `close` after the last answer."""
    assert [note.split()[0] for note in probed.notes] == [
        *("deployment", "init", "startup", "asked", "answered", "shutdown")
    ]
    assert (probed.slow.status_code, probed.slow.text) == (200, "done")
    assert probed.status == 0


def test_a_worker_has_a_number(probed: Probed) -> None:
    """serving/service.py ends a worker that cannot start, and no process that is none."""
    assert "init worker=1" in probed.notes
    assert bentoml.server_context.worker_index is None


def test_startup_runs_where_uvicorn_took_sigterm(probed: Probed) -> None:
    """serving/drain.py takes the signal over from there."""
    (startup,) = (note for note in probed.notes if note.startswith("startup"))
    assert "main=True sigterm=uvicorn.server" in startup


def test_new_connections_hang_while_a_stock_worker_ends(probed: Probed) -> None:
    """serving/drain.py keeps answering for that reason."""
    assert probed.hung


def test_on_deployment_can_refuse_the_start(tmp_path: Path) -> None:
    """serving/service.py `check`: one line and status 2."""
    process = start_probe(tmp_path, 0, PROBE_REFUSES="1")
    assert process.wait(PATIENCE_S) == 3
    assert (tmp_path / "notes").read_text() == "deployment\n"


def test_restarts_of_killed_workers_stop_in_bentomls_own_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """README: a killed worker comes back; our Dockerfile does not set that variable."""
    from bentoml.serving import create_watcher, running_inside_container

    for value, respawns in (("1", False), (None, True)):
        if value is None:
            monkeypatch.delenv("BENTOML_CONTAINERIZED")
        else:
            monkeypatch.setenv("BENTOML_CONTAINERIZED", value)
        running_inside_container.cache_clear()
        assert create_watcher("a", []).respawn == respawns
