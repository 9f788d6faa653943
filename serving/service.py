"""The BentoML shell: process, health checks, shutdown. Images do not pass through BentoML.

DEITLT_MODEL=bundle/ bentoml serve serving.service:LongTailClassifier
"""

import os
import sys

import bentoml

from serving.routes import Frontend
from serving.settings import MAX_TIMEOUT_S, Settings
from serving.startup import start_engine, why_not

frontend = Frontend()


@bentoml.service(
    name="long_tail_classifier",
    # One process: its threads fill the cores, and connections shared between several processes
    # tend to land on one of them.
    workers=1,
    # A net below our own deadline, which answers 504 with our error body.
    traffic={"timeout": MAX_TIMEOUT_S + 10},
    # BentoML labels its metrics with the raw path, so each path a scanner tries would be kept.
    metrics={"enabled": False},
    # The access log and the tracing layer cost more per request than all of our routes.
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
)
@bentoml.asgi_app(frontend, path="/")
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
        reason = why_not()
        if reason is not None:
            print(f"deitlt: {reason}", file=sys.stderr)
            raise SystemExit(2)

    def __init__(self) -> None:
        settings = Settings.from_environ(os.environ)
        self.engine = start_engine(settings)
        frontend.attach(self.engine, settings)
        self.ready = True

    async def __is_ready__(self) -> bool:
        return self.ready

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def close(self) -> None:
        """Finish what is in work and end the threads; the requests in flight have been answered."""
        self.ready = False
        self.engine.close()
