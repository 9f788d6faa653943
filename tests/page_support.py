"""What the tests of the pages ask: the real service over HTTP, with answers to put in their way."""

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from deitlt.bundle import MANIFEST, MODEL, write_bundle
from serving.backend import Backend
from serving.frontend import Frontend
from serving.settings import Settings
from tests.service_support import CLASSIFY, EXPLAIN, LIMITS


class World:
    """The service over real HTTP, what was asked of it, and answers to give instead of its own.

    Attributes:
        queries: the options of each request to classify or explain.
        instead: answers to the next of them, for what the service says only under load.
    """

    def __init__(self, **settings: str) -> None:
        self.backend = Backend.start(Settings.from_environ({**LIMITS, **settings}))
        self.bundle = self.backend.models.default.classifier.bundle
        self.queries: list[dict[str, str]] = []
        self.instead: list[Response] = []
        self.url = ""
        self._frontend = Frontend()
        self._frontend.attach(self.backend)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in (CLASSIFY, EXPLAIN):
            request = Request(scope, receive)
            self.queries.append(dict(request.query_params))
            if self.instead:
                await request.body()
                return await self.instead.pop(0)(scope, receive, send)
        await self._frontend(scope, receive, send)


def busy(status: int, code: str, headers: dict[str, str] | None = None) -> Response:
    body = {"error": {"code": code, "message": "there is no room", "request_id": "id-7"}}
    return JSONResponse(body, status, headers=headers)


def write_average(source: Path, target: Path) -> Path:
    """A bundle with one more form, `average`, which gives the mean of both experts alone."""
    manifest = json.loads((source / MANIFEST).read_text(encoding="utf-8"))

    def fill(folder: Path) -> dict[str, Any]:
        for file in manifest["files"]:
            shutil.copy(source / file, folder)
        graph = onnx.load(folder / MODEL)
        kept = [output for output in graph.graph.output if output.name == "logits"]
        del graph.graph.output[:]
        graph.graph.output.extend(kept)
        onnx.save(graph, folder / "model.average.onnx")
        forms = manifest["artefacts"]
        average = {**forms["float32"], "file": "model.average.onnx", "outputs": ["logits"]}
        made = ("files", "sha256", "schema_version")
        others = {key: value for key, value in manifest.items() if key not in made}
        return {**others, "artefacts": {**forms, "average": average}}

    return write_bundle(target, fill).path
