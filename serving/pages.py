"""The pages for people: a form to try the model at /, the API's documentation at /docs.

Plain files, read once; they load nothing from another host, and the headers forbid it too.
"""

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Endpoint = Callable[[Request], Awaitable[Response]]

FOLDER = Path(__file__).parent / "page"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"  # blob: previews of a person's own pictures
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",  # asks each time, and is told 304 until a file changes
}


def routes(index: Endpoint) -> list[Route]:
    """Routes of the pages: /, /docs and /page/<file>.

    Args:
        index: answers / for programs, that is for whoever does not prefer HTML.
    """
    paths = [path for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES]
    files = {path.name: path.read_bytes() for path in paths}

    async def get_root(request: Request) -> Response:
        if prefers_html(request.headers.get("accept", "")):
            response = _answer(request, "index.html", files["index.html"])
        else:
            response = await index(request)
        response.headers["Vary"] = "Accept"
        return response

    async def get_docs(request: Request) -> Response:
        return _answer(request, "docs.html", files["docs.html"])

    async def get_file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files:
            raise HTTPException(404)
        return _answer(request, name, files[name])

    return [Route("/", get_root), Route("/docs", get_docs), Route("/page/{name}", get_file)]


def prefers_html(accept: str) -> bool:
    """Whether an `Accept` header ranks HTML above JSON, as those of browsers do."""
    return _rank(accept, "text/html") > _rank(accept, "application/json")


def _rank(accept: str, media_type: str) -> float:
    """The quality in [0, 1] that the most specific matching range gives a media type."""
    family = media_type.partition("/")[0]
    ranges = {}
    for item in accept.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            ranges[name] = float(quality)
        except ValueError:
            ranges[name] = 0.0
    names = (media_type, f"{family}/*", "*/*")
    return next((ranges[name] for name in names if name in ranges), 0.0)


def _answer(request: Request, name: str, content: bytes) -> Response:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": etag}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=MEDIA_TYPES[Path(name).suffix])
