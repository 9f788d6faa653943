"""Connections of the service: what goes to BentoML, what past it, and who is said to have asked."""

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
