"""OpenTelemetry spans, one a request, sent to a collector by OTLP over HTTP.

Where to, how many and under which name is said by OpenTelemetry's own variables:
`OTEL_EXPORTER_OTLP_ENDPOINT` (http://localhost:4318), `OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME`.
BentoML's own tracing layer stays off: it costs more than our routes even when nothing is sent, and
knows neither the route's template nor our request id.
"""

import threading
import time
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from deitlt import __version__
from deitlt.errors import UsageError

# Longest wait for a collector when the service ends, seconds.
CLOSE_S = 3.0


class Tracing:
    """Makes and sends spans; from many threads."""

    def __init__(self) -> None:
        """Start the thread that sends.

        Raises:
            UsageError: OpenTelemetry or its exporter is not installed.
        """
        try:
            exporter = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
            resources = import_module("opentelemetry.sdk.resources")
            sdk = import_module("opentelemetry.sdk.trace")
            sending = import_module("opentelemetry.sdk.trace.export")
            context = import_module("opentelemetry.trace.propagation.tracecontext")
            self._api = import_module("opentelemetry.trace")
        except ImportError as error:
            raise UsageError(
                f"DEITLT_TRACING is true, but {error.name} is not installed; "
                "pip install 'deitlt[tracing]'"
            ) from error
        own = resources.Resource({"service.name": "deitlt", "service.version": __version__})
        # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say wins over our own.
        resource = own.merge(resources.OTELResourceDetector().detect())
        self._provider: Any = sdk.TracerProvider(resource=resource)
        self._exporter: Any = exporter.OTLPSpanExporter()
        self._provider.add_span_processor(sending.BatchSpanProcessor(self._exporter))
        self._tracer: Any = self._provider.get_tracer("deitlt.serving", __version__)
        self._propagator: Any = context.TraceContextTextMapPropagator()

    def record(self, headers: Mapping[str, str], seconds: float, facts: Mapping[str, Any]) -> None:
        """Send the span of a request that ended just now.

        Args:
            headers: the request's; `traceparent` makes the span a part of the caller's trace.
            seconds: how long the request took.
            facts: attributes, named as OpenTelemetry names them; what is None is left out.
        """
        end_ns = time.time_ns()
        span = self._tracer.start_span(
            f"{facts['http.request.method']} {facts['http.route']}",
            context=self._propagator.extract(headers),
            kind=self._api.SpanKind.SERVER,
            attributes={name: value for name, value in facts.items() if value is not None},
            start_time=end_ns - round(1e9 * seconds),
        )
        if facts["http.response.status_code"] >= 500:
            span.set_status(self._api.StatusCode.ERROR)
        span.end(end_ns)

    def close(self) -> None:
        """Send what has not been sent, unless that takes longer than `CLOSE_S`."""
        # Left alone it would try again and again for as long as a collector does not answer.
        giving_up = threading.Timer(CLOSE_S, self._exporter.shutdown)
        giving_up.start()
        self._provider.shutdown()
        giving_up.cancel()
