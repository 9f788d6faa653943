"""Connections of the service: what goes to BentoML, what past it, and who is said to have asked."""

from functools import partial

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from serving.bounded_http import BoundedHttp
from tests.browser_support import serve_app

FORWARDED = {"X-Forwarded-For": "192.0.2.7"}


async def bentoml(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("bentoml")(scope, receive, send)


async def frontend(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(f"frontend, for {scope['client'][0]}")(scope, receive, send)


def ask(path: str, *, proxy_headers: bool = True) -> str:
    http = partial(BoundedHttp, frontend)
    with serve_app(bentoml, http=http, proxy_headers=proxy_headers) as url:
        return httpx.get(url + path, headers=FORWARDED).text


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/schema.json"])
def test_bentoml_keeps_its_own_paths(path: str) -> None:
    assert ask(path) == "bentoml"


@pytest.mark.parametrize("path", ["/", "/v1/classify", "/sdk/classify", "/docs.json", "/livez/"])
def test_all_others_go_past_it(path: str) -> None:
    assert ask(path) == "frontend, for 192.0.2.7"


def test_proxies_are_not_believed_where_uvicorn_does_not() -> None:
    assert ask("/", proxy_headers=False) == "frontend, for 127.0.0.1"
