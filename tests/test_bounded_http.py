"""Connections of the service: what goes to BentoML, what past it, and who is said to have asked."""

import select
import socket
import time
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.bounded_http import BoundedHttp
from serving.frontend import FrontendFirst
from tests.browser_support import serve_app

FORWARDED = {"X-Forwarded-For": "192.0.2.7"}


class Outer:
    """A layer that BentoML has around all others."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app({**scope, "outer": True}, receive, send)


async def bentoml(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"bentoml {'outer' in request.scope}")


async def frontend(scope: Scope, receive: Receive, send: Send) -> None:
    text = f"frontend {'outer' in scope} {scope['client'][0]}"
    await PlainTextResponse(text)(scope, receive, send)


def ask(path: str, *layers: Middleware, proxy_headers: bool = True) -> str:
    app = Starlette(
        routes=[Route("/{path:path}", bentoml)], middleware=[Middleware(Outer), *layers]
    )
    with serve_app(app, http=BoundedHttp, proxy_headers=proxy_headers) as url:
        return httpx.get(url + path, headers=FORWARDED).text


FIRST = Middleware(FrontendFirst, frontend=frontend)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/schema.json"])
def test_bentoml_keeps_its_own_paths(path: str) -> None:
    assert ask(path, FIRST) == "bentoml True"


@pytest.mark.parametrize("path", ["/", "/v1/classify", "/sdk/classify", "/docs.json", "/livez/"])
def test_all_others_go_past_its_layers(path: str) -> None:
    assert ask(path, FIRST) == "frontend False 192.0.2.7"


def test_proxies_are_not_believed_where_uvicorn_does_not() -> None:
    assert ask("/", FIRST, proxy_headers=False) == "frontend False 127.0.0.1"


def test_other_apps_are_left_alone() -> None:
    assert ask("/") == "bentoml True"


class Hasty(BoundedHttp):
    max_head_s = 0.3
    max_unread_s = 0.3


async def drip(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{len(await request.body())} bytes")


@pytest.mark.parametrize("begun", [b"POST /", b"POST / HTTP/1.1\r\nHost: a\r\nX-A: "])
@pytest.mark.parametrize("is_second", [False, True])
def test_a_head_that_never_ends_is_408(begun: bytes, is_second: bool) -> None:
    app = Starlette(routes=[Route("/", drip, methods=["POST"])])
    with serve_app(app, http=Hasty) as url, connect(url) as client:
        if is_second:
            client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody")
            first = b""
            while not first.endswith(b"4 bytes"):  # it may come in pieces
                piece = client.recv(4096)
                assert piece
                first += piece
            assert first.startswith(b"HTTP/1.1 200 ")
        start = time.monotonic()
        client.sendall(begun)
        while not select.select([client], [], [], 0.05)[0]:
            assert time.monotonic() - start < 10
            client.sendall(b"b")  # a little now and then does not make it longer
        answer = client.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"within 0.3 s" in answer
        assert client.recv(4096) == b""


def test_the_heads_of_a_connection_are_bounded_one_by_one() -> None:
    app = Starlette(routes=[Route("/", bentoml)])
    with (
        serve_app(app, http=BoundedHttp) as url,
        httpx.Client(headers={"X-A": "b" * 9000}) as client,
    ):
        assert [client.get(url).status_code for _ in range(9)] == [200] * 9


def test_a_connection_on_which_nothing_comes_is_closed_without_a_word() -> None:
    app = Starlette(routes=[Route("/", drip, methods=["POST"])])
    with serve_app(app, http=Hasty) as url, connect(url) as client:
        client.settimeout(10)
        assert client.recv(4096) == b""


def test_a_slow_body_and_a_quiet_connection_have_their_own_times() -> None:
    app = Starlette(routes=[Route("/", drip, methods=["POST"])])
    with serve_app(app, http=Hasty) as url, connect(url) as client:
        for _ in range(2):
            client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n")
            time.sleep(0.5)
            client.sendall(b"body")
            answer = b""
            while b"4 bytes" not in answer:
                answer += (piece := client.recv(4096))
                assert piece, answer
            time.sleep(0.5)


@pytest.mark.parametrize("reads", [True, False])
def test_an_answer_that_nobody_takes_is_given_up(reads: bool) -> None:
    size = 16 << 20  # more than sockets hold by themselves

    async def long(request: Request) -> PlainTextResponse:
        return PlainTextResponse("a" * size)

    app = Starlette(routes=[Route("/", long)])
    with serve_app(app, http=Hasty) as url, connect(url) as client:
        client.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        taken = 0
        with suppress(ConnectionResetError):
            if not reads:
                time.sleep(1.5)
            while piece := client.recv(1 << 20):
                taken += len(piece)
                time.sleep(0.05)  # slowly, but all of it
        assert (taken > size) == reads


def test_gateways_close_a_quiet_connection_before_we_do() -> None:
    request = b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
    app = Starlette(routes=[Route("/", drip, methods=["POST"])])
    # uvicorn's own 5 s are less than the 60 s of nginx and of cloud balancers.
    with serve_app(app, http=BoundedHttp, timeout_keep_alive=1) as url, connect(url) as client:
        client.sendall(request)
        assert read_until(client, b"0 bytes")
        assert not select.select([client], [], [], 1.5)[0], "it was closed"
        client.sendall(request)
        assert read_until(client, b"0 bytes")
    assert BoundedHttp.keep_alive_s > 60


def read_until(client: socket.socket, text: bytes) -> bool:
    """Whether this comes; head and body of an answer may come one by one."""
    read = b""
    while text not in read and (piece := client.recv(4096)):
        read += piece
    return text in read


def connect(url: str) -> socket.socket:
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    return socket.create_connection((address.hostname, address.port))
