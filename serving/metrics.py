"""What Prometheus sees. Every label has a bounded set of values: never a raw path or class name."""

from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    values,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deitlt.engine import Engine
from deitlt.prediction import Prediction, Timing
from serving.models import Model, Models

# BentoML asks for values that several processes share through files, which cost a sixth of the
# event loop's work. These are of one process.
values.ValueClass = values.MutexValue
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one service."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, open files, processor time, start
        self._requests = Counter(
            "deitlt_requests", "Answered requests.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "deitlt_request_seconds",
            "From a request's headers to the end of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self._refused = Counter(
            "deitlt_refused", "Requests and images refused, by error code.", ["code"],
            registry=registry,
        )  # fmt: skip
        # Only the last takes one model longer than another.
        stages: dict[str, list[str]] = {"queue_wait": [], "decode": [], "inference": ["model"]}
        self._stages = {
            stage: Histogram(
                f"deitlt_{stage}_seconds", f"Time of an image in {stage}.", labels,
                buckets=SECONDS, registry=registry,
            )
            for stage, labels in stages.items()
        }  # fmt: skip
        self._images = Histogram(
            "deitlt_images_per_request", "Images in a request.", buckets=SIZES, registry=registry
        )
        self._batch = Histogram(
            "deitlt_batch_size", "Images in a call of the model.", buckets=SIZES, registry=registry
        )
        labels = ["model", "version", "group"]
        self._predictions = Counter(
            "deitlt_predictions", "Answers, by how rare the class is.", labels, registry=registry
        )
        self._disagreements = Counter(
            "deitlt_expert_disagreements",
            "Answers on which CLS and DIST name different classes.",
            labels,
            registry=registry,
        )

    def follow(self, engine: Engine, models: Models) -> None:
        """Show how full the queue is and which models are served, as of whenever asked."""
        registry = self._registry
        waiting = Gauge("deitlt_queue_waiting", "Images that wait.", registry=registry)
        waiting.set_function(lambda: engine.num_waiting)
        room = Gauge("deitlt_queue_capacity", "Images taken at once.", registry=registry)
        room.set(engine.capacity)
        registry.register(_Served(models))

    def text(self) -> bytes:
        """All counters in Prometheus' text format."""
        return generate_latest(self._registry)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count an answer; `route` is the route's template."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_refusal(self, code: str) -> None:
        """Count an error by its code, one of `deitlt.errors` or `serving.answers`."""
        self._refused.labels(code).inc()

    def count_images(self, number: int) -> None:
        """Count a request that was taken, with this many images."""
        self._images.observe(number)

    def count_call(self, number: int) -> None:
        """Count a call of the model on this machine, with this many images."""
        self._batch.observe(number)

    def count_prediction(self, model: Model, prediction: Prediction, timing: Timing) -> None:
        """Count an image's answer."""
        self._stages["queue_wait"].observe(timing.wait_s)
        self._stages["decode"].observe(timing.decode_s)
        self._stages["inference"].labels(model.name).observe(timing.infer_s)
        labels = (model.name, model.version, prediction.group)
        self._predictions.labels(*labels).inc()
        if prediction.experts_agree is not None:  # 0 counts too: a share can be had of it
            self._disagreements.labels(*labels).inc(not prediction.experts_agree)


class _Served(Collector):
    """Which models are served, read when asked: a model may be replaced at any time."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            "deitlt_model_info", "Served models.", labels=["model", "version", "provider"]
        )
        for model in self._models.all():
            provider = model.classifier.runtime.provider
            family.add_metric([model.name, model.version, provider], 1)
        yield family
        text = "Bundle folders that were written again and hold what cannot be served."
        yield GaugeMetricFamily("deitlt_bundles_refused", text, self._models.num_refused)
