"""What stands before BentoML's own routes under /sdk, which our frontend does not surround.

BentoML reads a body of any size, answers a file where a text is wanted with 500, and knows no key.
"""

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from deitlt.errors import EngineClosed
from serving.answers import RETRY_AFTER_S, error_response
from serving.frontend import SHUTTING_DOWN, Frontend, request_id_of

PREFIX = "/sdk/"
# Base64 is a third longer; the rest is for the other fields.
SPARE_BYTES = 65_536


class SdkGuard:
    """ASGI middleware: a JSON body of known, bounded length and the API key, or an error."""

    def __init__(self, app: ASGIApp, frontend: Frontend) -> None:
        self._app, self._frontend = app, frontend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        request_id = request_id_of(headers)
        wrong = self._what_is_wrong(scope, headers)
        if wrong is None:
            with self._frontend.drain.working():
                return await self._app(scope, receive, send)
        scope = {**scope, "state": {"request_id": request_id, "error_code": None}}
        stamps = {"X-Request-ID": request_id}
        if self._frontend.drain.begun:
            stamps |= {"Connection": "close", "Retry-After": str(RETRY_AFTER_S)}
        response = error_response(*wrong, Request(scope), stamps)
        await response(scope, receive, send)

    def _what_is_wrong(self, scope: Scope, headers: Headers) -> tuple[int, str, str] | None:
        """Status, code and text of the refusal."""
        if not self._frontend.may_pass(scope, headers):
            return 401, "unauthorized", "send the API key as X-API-Key"
        if self._frontend.drain.begun:
            return 503, EngineClosed.code, SHUTTING_DOWN
        if scope["method"] != "POST":
            return None
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return 415, "unsupported_image", "send application/json with the image as base64"
        length = headers.get("content-length", "")
        if not length.isdecimal():
            return 411, "bad_request", "send Content-Length"
        if int(length[:20]) > self._frontend.max_bytes * 4 // 3 + SPARE_BYTES:
            return 413, "too_large", f"more than {self._frontend.max_bytes} bytes of image"
        return None
