"""Spans of requests, as a collector on this machine receives them; none and no import when off."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from deitlt.errors import UsageError
from serving import tracing
from tests.service_support import CLASSIFY, in_process, picture

OFF = """
import os, sys
from serving.backend import Backend
from serving.service import LongTailClassifier
from serving.settings import Settings
Backend.start(Settings.from_environ(os.environ)).close()
assert "bentoml" in sys.modules
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.ex"))])
"""
CALLER = "00-0123456789abcdef0123456789abcdef-0011223344556677-01"


class Collector:
    """What was sent to an OTLP endpoint of this machine."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[ExportTraceServiceRequest] = []

    def spans(self) -> list[Span]:
        return [
            s
            for r in self.requests
            for x in r.resource_spans
            for y in x.scope_spans
            for s in y.spans
        ]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.requests.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Collector(f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def facts(span: Span) -> dict[str, Any]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_a_request_is_a_span(collector: Collector) -> None:
    with in_process(DEITLT_TRACING="true", OTEL_SERVICE_NAME="digits") as client:
        answer = client.post(CLASSIFY, content=picture(), headers={"traceparent": CALLER})
        client.get("/v1/models/none?version=1", headers={"X-Request-ID": "mine"})
        client.get("/no/such/path")
    good, wrong, lost = collector.spans()  # closing the service sends what waits
    assert good.name == f"POST {CLASSIFY}"
    assert good.kind == Span.SPAN_KIND_SERVER
    assert (good.trace_id.hex(), good.parent_span_id.hex()) == tuple(CALLER.split("-")[1:3])
    assert facts(good) == {
        "http.request.method": "POST",
        "http.route": CLASSIFY,
        "http.response.status_code": 200,
        "deitlt.request_id": answer.headers["x-request-id"],
    }
    shown_ms = float(answer.headers["x-total-time-ms"])
    assert shown_ms - 0.1 <= (good.end_time_unix_nano - good.start_time_unix_nano) / 1e6 < 60_000
    assert wrong.name == "GET /v1/models/{name}"
    assert facts(wrong)["error.type"] == "unknown_model"
    assert facts(wrong)["deitlt.request_id"] == "mine"
    assert (facts(lost)["http.route"], facts(lost)["http.response.status_code"]) == (
        "unmatched",
        404,
    )
    assert {s.status.code for s in (good, wrong, lost)} == {Status.STATUS_CODE_UNSET}
    (resource,) = [spans.resource for spans in collector.requests[0].resource_spans]
    named = {a.key: a.value.string_value for a in resource.attributes}
    assert named["service.name"] == "digits"


def test_a_failure_of_ours_is_an_error(collector: Collector) -> None:
    sender = tracing.Tracing()
    known = {"http.request.method": "GET", "http.route": "/", "http.response.status_code": 503}
    sender.record(httpx.Headers(), 0.25, known)
    sender.close()
    (span,) = collector.spans()
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert span.end_time_unix_nano - span.start_time_unix_nano == 250_000_000


def test_closing_does_not_wait_for_a_collector_that_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        gone = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", gone)
    monkeypatch.setattr(tracing, "CLOSE_S", 0.2)
    sender = tracing.Tracing()
    known = {"http.request.method": "GET", "http.route": "/", "http.response.status_code": 200}
    sender.record(httpx.Headers(), 0.25, known)
    closing = threading.Thread(target=sender.close, daemon=True)
    closing.start()
    closing.join(5)  # its own patience is ten seconds
    assert not closing.is_alive()


def test_off_is_no_span(collector: Collector) -> None:
    with in_process() as client:
        assert client.post(CLASSIFY, content=picture()).status_code == 200
    assert collector.requests == []


def test_off_is_no_import() -> None:
    command = [sys.executable, "-c", OFF]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "[]\n"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        UsageError, match=r"DEITLT_TRACING is true, but .+ pip install 'deitlt\[tracing\]'"
    ):
        tracing.Tracing()
