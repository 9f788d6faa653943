"""BentoML's service-to-service call: an outer service hands images to an inner, batching one.

By default its connections are closed under requests that still use them (about 3 % fail), so the
inner service keeps them for good. Images are encoded again on the way, so answers differ a little.
"""

from typing import Any

import bentoml
from PIL import Image

from deitlt.cores import usable_cores
from deitlt.prediction import Prediction
from serving.benchmark.peers.batchable import MAX_BATCH, TIMEOUT_S
from serving.benchmark.peers.bundle import open_classifier


@bentoml.service(
    workers=usable_cores(),
    traffic={"timeout": TIMEOUT_S},
    runner_connection={"max_requests": 10**9, "max_age": 1e9},
)
class Inner:
    """Runs the model, a process a core."""

    def __init__(self) -> None:
        self.classifier = open_classifier(1)

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=1000 * TIMEOUT_S)  # type: ignore[untyped-decorator]
    def classify(self, images: list[Image.Image]) -> list[dict[str, Any]]:
        """A prediction an image."""
        results = self.classifier.predict_each(images)
        return [r.to_dict() if isinstance(r, Prediction) else {"error": str(r)} for r in results]


@bentoml.service(traffic={"timeout": TIMEOUT_S})
class Outer:
    """Takes the requests."""

    inner = bentoml.depends(Inner)

    @bentoml.api  # type: ignore[untyped-decorator]
    async def classify(self, image: Image.Image) -> dict[str, Any]:
        """The prediction for one image."""
        (prediction,) = await self.inner.to_async.classify([image])
        return dict(prediction)
