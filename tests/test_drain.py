"""The end of a real server: asked to stop, its worker killed, its supervisor killed.

The supervisor looks after its workers every 10 s only, and a client that reads nothing is given up
after some seconds, so both waits begin with the module and are tested at its end.
"""

import re
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from tests.serve_support import serving
from tests.service_support import CLASSIFY, PATIENCE_S, error_of, picture

SDK = "/sdk/classify"
# Answers of 8 kB, for more than the 4 MB that Linux buffers for a socket.
NUM_UNREAD = 1500


class Site:
    """A running server."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process, self.port, self.url = process, port, f"http://127.0.0.1:{port}"

    def worker(self) -> psutil.Process:
        (worker,) = psutil.Process(self.process.pid).children(recursive=True)
        return worker

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def waits() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@dataclass
class Killed:
    """A server whose worker was killed, that worker's id, and what a client gets that asks then."""

    site: Site
    pid: int
    answer: Future[httpx.Response]


@pytest.fixture(scope="module", autouse=True)
def killed(waits: ExitStack, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    site = Site(*waits.enter_context(serving(tmp_path_factory.mktemp("killed"))))
    pool = waits.enter_context(ThreadPoolExecutor())
    worker = site.worker()
    worker.kill()
    worker.wait(PATIENCE_S)
    ask = partial(httpx.post, site.url + CLASSIFY, content=picture(), timeout=PATIENCE_S)
    return Killed(site, worker.pid, pool.submit(ask))


@pytest.fixture(scope="module", autouse=True)
def unread(waits: ExitStack, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A server that shall end while a client asks for megabytes and reads nothing."""
    site = Site(*waits.enter_context(serving(tmp_path_factory.mktemp("u"), DEITLT_TIMEOUT_S="0.2")))
    client = waits.enter_context(socket.socket())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", site.port))
    client.sendall(b"GET /page/classify.js HTTP/1.1\r\nHost: x\r\n\r\n" * NUM_UNREAD)
    seen = [-1.0, 0.0]
    while seen[-1] > seen[-2] or not seen[-1]:
        time.sleep(0.1)
        (count,) = re.findall(r'requests_total{route="/page/.*} (.+)', site.get("/metrics").text)
        seen.append(float(count))
    assert seen[-1] < NUM_UNREAD, "it answers into the void"
    site.process.terminate()
    return site


def read_until(connection: socket.socket, end: bytes) -> bytes:
    received = b""
    while end not in received:
        received += (data := connection.recv(65536))
        assert data, received
    return received


def wait_for(site: Site, status: int) -> None:
    """Until /readyz says so."""
    end = time.monotonic() + PATIENCE_S
    while site.get("/readyz").status_code != status:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_sigterm_finishes_the_old_and_refuses_the_new(tmp_path: Path) -> None:
    data = picture()
    head = (
        f"POST {CLASSIFY} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
        "Expect: 100-continue\r\n\r\n"
    )
    with ExitStack() as stack:
        site = Site(*stack.enter_context(serving(tmp_path)))
        kept = stack.enter_context(httpx.Client(base_url=site.url))
        assert kept.get("/v1/models").status_code == 200
        busy = stack.enter_context(site.connect())
        busy.sendall(head.encode())
        read_until(busy, b"100 Continue\r\n\r\n")  # our route is waiting for the body now
        site.process.terminate()
        wait_for(site, 503)
        for answer in (
            kept.get("/v1/models"),  # on a connection from before
            httpx.post(site.url + CLASSIFY, content=data),
            httpx.post(site.url + SDK, json={"image": ""}),
        ):
            assert "again" in error_of(answer, 503, "shutting_down")
            assert answer.headers["connection"] == "close"
            assert int(answer.headers["retry-after"]) >= 1
        for path in ("/livez", "/metrics", "/v2/health/live"):
            assert site.get(path).status_code == 200
        assert 'code="shutting_down"' in site.get("/metrics").text
        assert site.process.poll() is None
        busy.sendall(data)
        received = read_until(busy, b'"request_id"')
        assert received.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in received
        assert site.process.wait(PATIENCE_S) == 0
    assert "Completed cleanup hook: close" in (tmp_path / "serve.log").read_text()


def test_nobody_hangs_while_the_server_ends(tmp_path: Path) -> None:
    with serving(tmp_path, DEITLT_DRAIN_S="0.5") as (process, port):
        site = Site(process, port)
        begun = time.monotonic()
        process.terminate()
        end = begun + PATIENCE_S
        seen = [0]
        gone = []
        while process.poll() is None:
            assert time.monotonic() < end
            try:
                seen.append(site.get("/v1/models").status_code)
            except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError):
                seen.append(-1)  # refused or hung up on, which a client notices at once
                gone.append(time.monotonic())
        order = list(dict.fromkeys(status for status in seen if status not in (0, 200)))
        assert order == [503, -1]
        assert gone[0] - begun >= 0.5  # for so long it says that it is ending


def test_a_worker_does_not_outlive_its_supervisor(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, port):
        site = Site(process, port)
        worker = site.worker()
        process.kill()
        process.wait(PATIENCE_S)
        worker.wait(PATIENCE_S)
    with pytest.raises(httpx.ConnectError):
        site.get("/livez")
    log = (tmp_path / "serve.log").read_text()
    assert f"the supervisor, process {process.pid}, is gone; ending" in log
    assert "Completed cleanup hook: close" in log


def test_a_killed_worker_comes_back(killed: Killed) -> None:
    # The supervisor holds the port: who asks meanwhile waits for the new worker.
    assert killed.answer.result(PATIENCE_S).status_code == 200
    assert killed.site.process.poll() is None
    assert killed.site.worker().pid != killed.pid


def test_answers_that_nobody_reads_do_not_keep_the_server(unread: Site) -> None:
    assert unread.process.wait(PATIENCE_S) == 0
