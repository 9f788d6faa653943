"""The BentoML shell: process, health checks, shutdown. Images do not pass through BentoML.

DEITLT_MODEL=bundle/ bentoml serve serving.service:LongTailClassifier
"""

import asyncio
import logging
import os
import sys
import uuid
import warnings
from typing import Any

import bentoml
import uvicorn.config

from deitlt.errors import DeitLTError
from deitlt.prediction import Options
from serving.access_log import start_access_log
from serving.answers import result
from serving.backend import Backend
from serving.frontend import Frontend, FrontendFirst
from serving.sdk import PATH
from serving.settings import Settings, absolute_models, misspelt
from serving.startup import give_up, why_not
from serving.uploads import from_base64

frontend = Frontend()


@bentoml.service(
    name="long_tail_classifier",
    # Whoever wants it reachable from elsewhere says so with --host, as the container does.
    http={"host": "127.0.0.1"},
    # One process: its threads fill the cores, and connections shared between several processes
    # tend to land on one of them.
    workers=1,
    # BentoML labels its metrics with the raw path, so each path a scanner tries would be kept.
    metrics={"enabled": False},
    # Of probes there is nothing to log or trace; our routes have their own of both.
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
)
class LongTailClassifier:
    """Image classification with a DeiT-LT bundle over HTTP; GET / lists the routes."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Refuse to start with one clear line.

        BentoML runs this once, before any worker. A worker that fails instead is started again
        every second, for ever, with a traceback each time.

        Raises:
            SystemExit: a setting, the bundle or the device is wrong; status 2.
        """
        # Of a Bento, and with --working-dir, workers run in another folder than this process.
        os.environ["DEITLT_MODEL"] = absolute_models(os.environ)
        for line in misspelt(os.environ):
            print(f"deitlt: {line}", file=sys.stderr)
        reason = why_not()
        if reason is not None:
            print(f"deitlt: {reason}", file=sys.stderr)
            raise SystemExit(2)

    def __init__(self) -> None:
        # BentoML logs warnings alone of others; that a new version took over is to be seen too.
        logging.getLogger("deitlt.serving").setLevel(logging.INFO)
        # What Pillow warns of is decoded all the same or refused. Python logs each text once, and
        # keeps them all; some name a size, of which clients can think of any number.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        settings = Settings.from_environ(os.environ)
        self.log = start_access_log() if settings.access_log else None
        try:
            self.backend = Backend.start(settings)
        except DeitLTError as error:
            if bentoml.server_context.worker_index is None:  # an object in another's process
                raise
            give_up(error)
        frontend.attach(self.backend)
        self.ready = True

    @bentoml.api(route=PATH)  # type: ignore[untyped-decorator]
    async def classify(
        self, image: str, experts: bool = False, top_k: int = 5, blend: float = 0.5
    ) -> dict[str, Any]:
        """Classify one image for BentoML's own clients; the same answer as POST /v1/classify.

        Over HTTP `serving.sdk` answers; this tells BentoML's clients of it, and serves who calls
        the service as an object.

        The image comes as base64 text and not as a file: BentoML fetches a file from wherever a
        client's text says.

        Args:
            image: base64 of an image file.
            experts: add what CLS and DIST say on their own.
            top_k: how many classes to list.
            blend: weight of CLS against DIST in [0, 1].

        Raises:
            DeitLTError: as `Engine.submit` and its future do.
        """
        model = self.backend.models.default
        (future,) = self.backend.engine.submit_all(
            [from_base64(image, "image")],
            Options(top_k, experts, blend),
            classifier=model.classifier,
        )
        prediction = await asyncio.wrap_future(future)
        return result(prediction, model, uuid.uuid4().hex)

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def watch_for_the_end(self) -> None:
        """From SIGTERM on: not ready, and 503 for new requests until those in work are answered."""
        settings = self.backend.settings
        frontend.drain.watch(settings.drain_s, settings.timeout_s)

    async def __is_alive__(self) -> bool:
        return self.backend.alive()

    async def __is_ready__(self) -> bool:
        return (
            self.ready and not frontend.drain.begun and await asyncio.to_thread(self.backend.ready)
        )

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def close(self) -> None:
        """Finish what is in work and end the threads; the requests in flight have been answered."""
        self.ready = False
        self.backend.close()
        if self.log is not None:
            self.log.stop()


LongTailClassifier.add_asgi_middleware(FrontendFirst, frontend=frontend)  # type: ignore[attr-defined]
# BentoML's worker starts uvicorn after it has loaded this module, and has no option for it.
uvicorn.config.HTTP_PROTOCOLS["auto"] = "serving.bounded_http:BoundedHttp"
