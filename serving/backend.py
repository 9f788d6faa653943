"""What the routes work with: settings, models, the engine they share, counters."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from starlette.requests import Request

from deitlt.bundle import open_bundle
from deitlt.classifier import Classifier, load
from deitlt.engine import Engine
from deitlt.triton_runtime import TritonRuntime
from serving.metrics import Metrics
from serving.models import Models
from serving.settings import Settings


@dataclass(frozen=True)
class Backend:
    """Everything behind the routes; `close` ends its threads."""

    settings: Settings
    models: Models
    engine: Engine
    metrics: Metrics

    @classmethod
    def start(cls, settings: Settings) -> "Backend":
        """Load and warm up the models and start the engine.

        Raises:
            BundleError: a bundle is missing, damaged or changed, or has no such variant.
            RuntimeUnavailable: the device cannot be had.
        """
        models = Models(settings.models, partial(load_model, settings))
        engine = Engine(
            models.default.classifier,
            num_workers=settings.num_workers,
            queue_size=settings.queue_size,
        )
        if settings.reload_s:
            models.watch(settings.reload_s)
        return cls(settings, models, engine, Metrics(engine, models))

    def ready(self) -> bool:
        """Whether requests can be answered now: where a Triton server runs the models, it too."""
        runtimes = (model.classifier.runtime for model in self.models.all())
        return all(not isinstance(r, TritonRuntime) or r.ready() for r in runtimes)

    def close(self) -> None:
        """Finish what is in work and end the threads."""
        self.models.close()
        self.engine.close()
        for model in self.models.all():
            if isinstance(model.classifier.runtime, TritonRuntime):
                model.classifier.runtime.close()


def load_model(settings: Settings, path: Path) -> Classifier:
    """A classifier of a bundle folder, running here or on the Triton server of the settings.

    Raises:
        DeitLTError: the bundle, the device or the server cannot be used.
    """
    if not settings.triton:
        return load(
            path,
            variant=settings.variant,
            device=settings.device,
            num_threads=1,
            max_pixels=settings.max_pixels,
        )
    bundle = open_bundle(path)
    runtime = TritonRuntime(
        settings.triton, bundle, timeout_s=settings.timeout_s, binary=settings.triton_binary
    )
    return Classifier(bundle, runtime, max_pixels=settings.max_pixels)


def backend_of(request: Request) -> Backend:
    """The backend that a route serves from."""
    backend: Backend = request.app.state.backend
    return backend
