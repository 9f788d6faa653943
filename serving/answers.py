"""What goes back: predictions and errors as JSON, every error in the one body.

`{"error": {"code", "message", "request_id"}}`, with a status that says whose fault it is. Under /v2
the body is `{"error": "<code>: <message>"}`: the Open Inference Protocol asks for a text, and
tritonclient's exception cannot be printed with an object.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from deitlt.errors import (
    DeadlineExceeded,
    EngineClosed,
    ImageError,
    ImageTooLarge,
    Overloaded,
    RuntimeUnavailable,
    UnknownModel,
    UnsupportedImage,
    UsageError,
)
from deitlt.prediction import Prediction
from serving.models import Model

logger = logging.getLogger("deitlt.serving")

STATUS: dict[type[Exception], int] = {
    UsageError: 400,
    ClientDisconnect: 400,  # nobody is left to read it
    UnknownModel: 404,
    ImageTooLarge: 413,
    UnsupportedImage: 415,
    ImageError: 422,
    Overloaded: 429,
    Exception: 500,
    EngineClosed: 503,
    RuntimeUnavailable: 503,  # a remote runtime is not reached
    DeadlineExceeded: 504,
}
RETRY_AFTER_S = 1
# Of all images, heads and logits of an answer: each takes hundreds of bytes until it is sent. It is
# what 20 images have of 8142 classes with everything that can be asked for.
MAX_SCORES = 1_000_000


def result(outcome: Prediction | BaseException, model: Model, request_id: str) -> dict[str, Any]:
    """One image's answer or error as JSON types.

    Raises:
        BaseException: `outcome` itself, if it concerns the request and not this image alone.
    """
    if isinstance(outcome, Prediction):
        fields = outcome.to_dict()
        if outcome.rollouts is not None:
            fields["rollouts"] = {name: _short(rows) for name, rows in outcome.rollouts.items()}
        about = {"name": model.name, "version": model.version}
        return {**fields, "model": about, "request_id": request_id}
    if isinstance(outcome, ImageError):
        return error_body(outcome.code, str(outcome), request_id)
    raise outcome


def refuse_vast(num_scores: int) -> None:
    """Hold an answer to `MAX_SCORES`, before there is any work on it.

    Raises:
        UsageError: it would list more.
    """
    if num_scores > MAX_SCORES:
        raise UsageError(
            f"the answer would list {num_scores} scores, more than {MAX_SCORES}; send fewer images "
            "at once, or ask for fewer classes or without logits"
        )


async def results_body(
    outcomes: Sequence[Prediction | BaseException], model: Model, request_id: str
) -> bytes:
    """The answer of one image, or `{"results": [...]}` of several, as JSON.

    Of many classes an answer takes long to write; between two images other requests have a turn.

    Raises:
        BaseException: as `result` does.
    """
    bodies: list[bytes] = []
    for outcome in outcomes:
        if bodies:
            await asyncio.sleep(0)
        bodies.append(bytes(JSONResponse(result(outcome, model, request_id)).body))
    return bodies[0] if len(bodies) == 1 else b'{"results":[' + b",".join(bodies) + b"]}"


def _short(rows: list[list[float]]) -> list[list[float]]:
    """Shares with as many digits as mean something: in full a map has three times the bytes."""
    return [[round(share, 6) for share in row] for row in rows]


def error_body(code: str, message: str, request_id: str) -> dict[str, Any]:
    """The one error body."""
    return {"error": {"code": code, "message": message, "request_id": request_id}}


def error_response(
    status: int, code: str, message: str, request: Request, headers: Any = None
) -> Response:
    """The one error body as an answer; its code is noted for the metrics and the log."""
    request.state.error_code = code
    body: dict[str, Any] = error_body(code, message, request.state.request_id)
    if f"{request.scope['path']}/".startswith("/v2/"):
        body = {"error": f"{code}: {message}"}
    return JSONResponse(body, status_code=status, headers=headers)


def status_of(error: Exception) -> int:
    """The HTTP status of an exception: that of its nearest kind in `STATUS`."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


async def on_error(request: Request, error: Exception) -> Response:
    """Answer an exception with its status in `STATUS`."""
    status = status_of(error)
    if status == 500:  # Starlette raises it again, so its traceback is logged too
        logger.error("request %s failed", request.state.request_id)
        text = "something went wrong here, not in the request; the log has this request_id"
        return error_response(500, "internal_error", text, request)
    code = getattr(error, "code", "client_disconnected")
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else None
    return error_response(status, code, str(error), request, headers)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer what Starlette's router refuses: 404 and 405."""
    assert isinstance(error, HTTPException)
    path, method = request.scope["path"][:200], request.method
    if error.status_code == 404:
        text = f"there is nothing at {path}; GET / lists the routes"
        return error_response(404, "not_found", text, request)
    text = f"{path} does not take {method}"
    return error_response(405, "method_not_allowed", text, request, error.headers)


HANDLERS: dict[Any, Any] = {**dict.fromkeys(STATUS, on_error), HTTPException: on_http_error}
