"""That `excluded_urls` switches BentoML's tracing layer off, in a process of its own.

BentoML keeps these settings once a process, as the first service in it has them.
"""

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
SCRIPT = """
import asyncio
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from serving.service import LongTailClassifier

layers = LongTailClassifier.to_asgi().user_middleware
(settings,) = (layer.kwargs for layer in layers if layer.cls is OpenTelemetryMiddleware)
seen = []

async def app(scope, receive, send):
    seen.append(send)

async def send(message):
    pass

scope = {"type": "http", "scheme": "http", "method": "GET", "path": "/x", "root_path": ""}
scope |= {"query_string": b"", "headers": [], "server": ("127.0.0.1", 1)}
traced = OpenTelemetryMiddleware(app, **settings)
asyncio.run(traced(scope, None, send))
print("passed on" if seen == [send] else "wrapped")
"""


def test_excluded_urls_switch_tracing_off() -> None:
    """serving/service.py: no tracing layer, and so request ids of our own."""
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        env=environ, cwd=CHECKOUT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "passed on"
