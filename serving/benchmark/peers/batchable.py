"""BentoML's own batching, as its documentation shows it: at its best setting and at its default.

The best is a worker process a core with one thread each, without access log and tracing; more
processes are the documented way to use more cores. The default is one process, whose session then
gets all cores.
"""

from typing import Any

import bentoml
from PIL import Image

from deitlt.cores import usable_cores
from deitlt.prediction import Prediction
from serving.benchmark.peers.bundle import open_classifier

TIMEOUT_S = 60
MAX_BATCH = 8


@bentoml.service(
    workers=usable_cores(),
    traffic={"timeout": TIMEOUT_S},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
)
class Best:
    """A process a core."""

    def __init__(self) -> None:
        self.classifier = open_classifier(1)

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=1000 * TIMEOUT_S)  # type: ignore[untyped-decorator]
    def classify(self, images: list[Image.Image]) -> list[dict[str, Any]]:
        """A prediction an image."""
        results = self.classifier.predict_each(images)
        return [r.to_dict() if isinstance(r, Prediction) else {"error": str(r)} for r in results]


@bentoml.service(traffic={"timeout": TIMEOUT_S})
class Default:
    """What comes of `@bentoml.service` and `batchable=True` alone."""

    def __init__(self) -> None:
        self.classifier = open_classifier(usable_cores())

    @bentoml.api(batchable=True)  # type: ignore[untyped-decorator]
    def classify(self, images: list[Image.Image]) -> list[dict[str, Any]]:
        """A prediction an image."""
        results = self.classifier.predict_each(images)
        return [r.to_dict() if isinstance(r, Prediction) else {"error": str(r)} for r in results]
