"""The HTTP routes, as an ASGI app to mount at "/".

Every answer carries `X-Request-ID` and `X-Total-Time-Ms`; every error has the one body
`{"error": {"code", "message", "request_id"}}`. The event loop only moves bytes: decoding and the
model run on the engine's threads.
"""

import asyncio
import logging
import re
import time
import uuid
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from deitlt import __version__
from deitlt.classifier import Options, Prediction
from deitlt.engine import Engine
from deitlt.errors import (
    DeadlineExceeded,
    EngineClosed,
    ImageError,
    ImageTooLarge,
    Overloaded,
    UnsupportedImage,
    UsageError,
)
from serving.settings import Settings
from serving.uploads import read_images

logger = logging.getLogger("deitlt.serving")

STATUS: dict[type[Exception], int] = {
    UsageError: 400,
    ClientDisconnect: 400,  # nobody is left to read it
    ImageTooLarge: 413,
    UnsupportedImage: 415,
    ImageError: 422,
    Overloaded: 429,
    Exception: 500,
    EngineClosed: 503,
    DeadlineExceeded: 504,
}
RETRY_AFTER_S = 1

INDEX = {
    "GET /": "this list",
    "GET /v1/model": "the model: name, version, classes, training counts, groups, preprocessing",
    "POST /v1/classify": "an image as the body, or several as files of a form; "
    "?experts=true&top_k=5&blend=0.5",
    "GET /livez": "200 while the process lives",
    "GET /readyz": "200 when the model is warm, 503 otherwise",
}

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class Frontend:
    """The routes with request ids, timing and error bodies around them.

    An ASGI app of its own class, not a Starlette: BentoML hands a mounted Starlette only the paths
    it has routes for, and would answer the others itself, with its own error bodies and pages.
    """

    def __init__(self) -> None:
        self._app = Starlette(
            routes=[
                Route("/", get_index),
                Route("/v1/model", get_model),
                Route("/v1/classify", classify, methods=["POST"]),
            ],
            exception_handlers={**dict.fromkeys(STATUS, on_error), HTTPException: on_http_error},
        )
        self._app.router.redirect_slashes = False

    def attach(self, engine: Engine, settings: Settings) -> None:
        """Give the routes the engine they serve, before the first request."""
        self._app.state.engine = engine
        self._app.state.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start = time.perf_counter()
        request_id = _request_id(Headers(scope=scope))
        scope = {**scope, "state": {**scope.get("state", {}), "request_id": request_id}}

        async def send_stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["X-Total-Time-Ms"] = f"{1000 * (time.perf_counter() - start):.1f}"
            await send(message)

        await self._app(scope, receive, send_stamped)


async def get_index(request: Request) -> Response:
    """What this is and which routes there are."""
    return JSONResponse(
        {
            "service": "deitlt",
            "version": __version__,
            "model": _model(request.app.state.engine),
            "routes": INDEX,
        }
    )


async def get_model(request: Request) -> Response:
    """What is served, and where it runs."""
    engine: Engine = request.app.state.engine
    bundle = engine.classifier.bundle
    return JSONResponse(
        {
            **_model(engine),
            "classes": bundle.classes,
            "train_counts": bundle.train_counts,
            "groups": bundle.groups(),
            "preprocess": bundle.preprocess.to_dict(),
            "provider": engine.classifier.runtime.provider,
        }
    )


async def classify(request: Request) -> Response:
    """Classify one image or several.

    One image gives one result, or its error as the status. Several give 200 and
    `{"results": [...]}`, a result or an error each, in order. `STATUS` has the other statuses.
    """
    engine: Engine = request.app.state.engine
    settings: Settings = request.app.state.settings
    options = read_options(request.query_params)
    try:
        # Giving up cancels the futures, so images that still wait are never begun.
        async with asyncio.timeout(settings.timeout_s):
            images = await read_images(
                request,
                max_bytes=settings.max_bytes,
                max_images=min(settings.max_images, engine.capacity),
            )
            futures = engine.submit_all(images, options)
            outcomes = await asyncio.gather(
                *map(asyncio.wrap_future, futures), return_exceptions=True
            )
    except TimeoutError as error:
        raise DeadlineExceeded(f"there was no answer within {settings.timeout_s:g} s") from error
    results = [_result(outcome, request) for outcome in outcomes]
    if len(results) > 1:
        return JSONResponse({"results": results})
    if isinstance(outcomes[0], ImageError):
        raise outcomes[0]
    return JSONResponse(results[0])


def read_options(query: QueryParams) -> Options:
    """The options in a query string.

    Raises:
        UsageError: an option is unknown or has a wrong value.
    """
    fields: dict[str, Any] = {}
    for name, text in query.items():
        if name == "experts":
            if text not in ("true", "false"):
                raise UsageError(f"experts is {text[:40]!r}; it must be true or false")
            fields[name] = text == "true"
        elif name in ("top_k", "blend"):
            kind, noun = (int, "a whole number") if name == "top_k" else (float, "a number")
            try:
                fields[name] = kind(text)
            except ValueError:
                raise UsageError(f"{name} is {text[:40]!r}; it must be {noun}") from None
        else:
            raise UsageError(f"there is no option {name[:40]!r}; there are experts, top_k, blend")
    return Options(**fields)


async def on_error(request: Request, error: Exception) -> Response:
    """Answer an exception with its status in `STATUS`."""
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    if status == 500:  # Starlette raises it again, so its traceback is logged too
        logger.error("request %s failed", request.state.request_id)
        text = "something went wrong here, not in the request; the log has this request_id"
        return _error_response(status, "internal_error", text, request)
    code = getattr(error, "code", "client_disconnected")
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else None
    return _error_response(status, code, str(error), request, headers)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer what Starlette's router refuses: 404 and 405."""
    assert isinstance(error, HTTPException)
    path, method = request.url.path[:200], request.method
    if error.status_code == 404:
        code, text = "not_found", f"there is nothing at {path}; GET / lists the routes"
    else:
        code, text = "method_not_allowed", f"{path} does not take {method}"
    return _error_response(error.status_code, code, text, request, error.headers)


def _result(outcome: Prediction | BaseException, request: Request) -> dict[str, Any]:
    request_id = request.state.request_id
    if isinstance(outcome, Prediction):
        model = _model(request.app.state.engine)
        return {**outcome.to_dict(), "model": model, "request_id": request_id}
    if isinstance(outcome, ImageError):
        return _error_body(outcome.code, str(outcome), request_id)
    raise outcome


def _model(engine: Engine) -> dict[str, str]:
    bundle = engine.classifier.bundle
    return {"name": bundle.name, "version": bundle.version}


def _error_body(code: str, message: str, request_id: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "request_id": request_id}}


def _error_response(
    status: int, code: str, message: str, request: Request, headers: Any = None
) -> Response:
    return JSONResponse(
        _error_body(code, message, request.state.request_id), status_code=status, headers=headers
    )


def _request_id(headers: Headers) -> str:
    """The client's own id, if it is fit to stand in a header and a log line; else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
