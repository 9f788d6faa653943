"""The ASGI app in front of BentoML's: our routes with what surrounds every request.

Every answer carries `X-Request-ID`, `X-Total-Time-Ms` and security headers. Every request is
counted and, if asked for, logged and traced. With an API key set, whatever tells of the models
asks for it.
"""

import hmac
import json
import re
import time
import uuid
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deitlt import __version__
from deitlt.errors import EngineClosed
from serving import kserve, pages, routes, sdk
from serving.access_log import access
from serving.answers import HANDLERS, RETRY_AFTER_S, error_response
from serving.backend import Backend, backend_of
from serving.drain import Drain
from serving.openapi import PATHS

# Of answers that do not say otherwise.
_DEFAULTS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
# What a browser must be able to load before a person can type a key; it tells nothing of the model.
_OPEN = re.compile(r"/|/docs|/openapi\.json|/page/.*|/v2/health/.*")
# What a worker that is ending still answers.
_TO_THE_END = frozenset({"/metrics", "/v2/health/live"})
# What BentoML answers: whether this process lives and is ready, and what its clients can call.
_BENTOML = frozenset({"/healthz", "/livez", "/readyz", "/schema.json"})


class FrontendFirst:
    """ASGI middleware that leaves BentoML its own paths and takes all others past it.

    BentoML's layers would start a task and a timer for each request, look at its URL twice and
    make bodies of their own of errors; together they cost the event loop a sixth of its work. It
    adds this one after most of them; `serving.bounded_http` puts it before.
    """

    def __init__(self, app: ASGIApp, frontend: ASGIApp) -> None:
        self._app, self._frontend = app, frontend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        ours = scope["type"] == "http" and scope["path"] not in _BENTOML
        await (self._frontend if ours else self._app)(scope, receive, send)


class Frontend:
    """The routes with request ids, timing, headers, counting and the key around them."""

    def __init__(self) -> None:
        own: list[Route] = [
            *routes.routes(),
            *kserve.routes(),
            *sdk.routes(),
            *pages.routes(get_index),
        ]
        self._app = Starlette(routes=own, exception_handlers=HANDLERS)
        self._app.router.redirect_slashes = False
        self.drain = Drain()
        self._templates: dict[Any, str] = {route.endpoint: route.path for route in own}
        self._outer: ASGIApp = self._admit
        self._backend: Backend | None = None
        self._key = b""

    def attach(self, backend: Backend) -> None:
        """Give the routes what they serve from, before the first request."""
        self._app.state.backend = self._backend = backend
        settings = backend.settings
        self._key = settings.api_key.encode()
        if settings.cors_origins:
            self._outer = CORSMiddleware(
                self._admit,  # pages of other origins may read refusals too
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["*"],
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start = time.perf_counter()
        request_id = _request_id_of(Headers(scope=scope))
        state = {**scope.get("state", {}), "request_id": request_id, "error_code": None}
        scope = {**scope, "state": state}
        status = 500  # unless an answer begins

        async def send_stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                passed = f"{1000 * (time.perf_counter() - start):.1f}"
                stamps = [
                    (b"x-request-id", request_id.encode()),
                    (b"x-total-time-ms", passed.encode()),
                ]
                given = {name for name, _ in message["headers"]}
                stamps += [stamp for stamp in _DEFAULTS if stamp[0] not in given]
                if self.drain.begun:
                    stamps.append((b"connection", b"close"))
                message = {**message, "headers": [*message["headers"], *stamps]}
            await send(message)

        try:
            await self._outer(scope, receive, send_stamped)
        finally:
            self._note(scope, status, time.perf_counter() - start)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what has the key, as long as this worker is not ending."""
        if not self._may_pass(scope, Headers(scope=scope)):
            await _refuse(Request(scope))(scope, receive, send)
        elif self.drain.begun and scope["path"] not in _TO_THE_END:
            await _refuse_while_ending(Request(scope))(scope, receive, send)
        else:
            with self.drain.working():
                await self._app(scope, receive, send)

    def _may_pass(self, scope: Scope, headers: Headers) -> bool:
        """Whether a request has the API key, or needs none."""
        if not self._key or _OPEN.fullmatch(scope["path"]):
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key") or (token if scheme.lower() == "bearer" else "")
        return hmac.compare_digest(given.encode(), self._key)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        backend = self._backend
        if backend is None:
            return
        route = self._templates.get(scope.get("endpoint"), "unmatched")
        backend.metrics.count_request(route, status, seconds)
        code = scope["state"]["error_code"]
        if code:
            backend.metrics.count_refusal(code)
        if backend.tracing is not None:
            facts = {
                "http.request.method": scope["method"],
                "http.route": route,
                "http.response.status_code": status,
                "deitlt.request_id": scope["state"]["request_id"],
                "error.type": code,
            }
            backend.tracing.record(Headers(scope=scope), seconds, facts)
        if backend.settings.access_log:
            client = scope.get("client")
            line: dict[str, Any] = {
                "time": time.time(),
                "request_id": scope["state"]["request_id"],
                "client": client[0] if client else None,
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": status,
                "ms": round(1000 * seconds, 1),
                "error": code,
            }
            access.info("%s", json.dumps(line))


async def get_index(request: Request) -> Response:
    """What this is and which routes there are, for programs."""
    backend = backend_of(request)
    index = {"service": "deitlt", "version": __version__, "routes": _summary()}
    if not backend.settings.api_key:  # this is open to all
        model = backend.models.default
        index["model"] = {"name": model.name, "version": model.version}
    return JSONResponse(index)


def _summary() -> dict[str, str]:
    return {
        f"{method.upper()} {path}": operation["summary"]
        for path, methods in PATHS.items()
        for method, operation in methods.items()
    }


def _refuse(request: Request) -> Response:
    text = "send the API key as X-API-Key, or as Authorization: Bearer"
    headers = {"WWW-Authenticate": "Bearer"}
    return error_response(401, "unauthorized", text, request, headers)


def _refuse_while_ending(request: Request) -> Response:
    text = "this server is shutting down; send the request again, on a new connection"
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return error_response(503, EngineClosed.code, text, request, headers)


def _request_id_of(headers: Headers) -> str:
    """The client's own id, if it is fit to stand in a header and a log line; else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
