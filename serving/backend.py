"""What the routes work with: settings, models, the engine they share, counters."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Semaphore

from starlette.requests import Request

from deitlt.batching import BatchingRuntime, core_batch_size
from deitlt.bundle import EXPLAIN, Bundle, open_bundle
from deitlt.classifier import Classifier
from deitlt.cores import usable_cores
from deitlt.engine import Engine
from deitlt.errors import UsageError
from deitlt.runtimes import Runtime, default_variant, open_runtime
from deitlt.triton_runtime import TritonRuntime
from serving.bodies import Bodies
from serving.metrics import Metrics
from serving.models import Models
from serving.settings import Settings
from serving.tracing import Tracing

GPU_MAX_BATCH = 32


@dataclass(frozen=True)
class Backend:
    """Everything behind the routes; `close` ends its threads."""

    settings: Settings
    models: Models
    engine: Engine
    metrics: Metrics
    tracing: Tracing | None
    bodies: Bodies

    @classmethod
    def start(cls, settings: Settings) -> "Backend":
        """Load and warm up the models and start the engine.

        Raises:
            BundleError: a bundle is missing, damaged or changed, or has no such variant.
            RuntimeUnavailable: the device cannot be had.
            UsageError: tracing is asked for and OpenTelemetry is not installed, or explanations are
                and no bundle has them.
        """
        tracing = Tracing() if settings.tracing else None
        metrics = Metrics()
        decoding = Semaphore(settings.num_workers or usable_cores())
        models = Models(
            settings.models,
            partial(load_model, settings, metrics, decoding),
            partial(load_explainer, settings, metrics, decoding),
        )
        if settings.explain and not any(model.explainer for model in models.all()):
            raise UsageError(
                "DEITLT_EXPLAIN is true and no served bundle has the variant explain; export one "
                "with --variants explain, or leave the setting out"
            )
        served = [model.classifier for model in models.all()]
        engine = Engine(
            None,  # the models' own, which may be replaced
            num_workers=settings.num_workers or max(default_workers(settings, c) for c in served),
            queue_size=settings.queue_size,
            max_batch=partial(images_of_a_worker, settings),
        )
        metrics.follow(engine, models)
        if settings.reload_s:
            models.watch(settings.reload_s)
        return cls(settings, models, engine, metrics, tracing, Bodies(settings.max_held_bytes))

    def alive(self) -> bool:
        """Whether this process can answer again without a restart: no device is lost to it."""
        forms = (form for model in self.models.all() for form in model.forms())
        return not any(isinstance(f.runtime, BatchingRuntime) and f.runtime.lost for f in forms)

    def ready(self) -> bool:
        """Whether requests can be answered now: where a Triton server runs the models, it too."""
        runtimes = (model.classifier.runtime for model in self.models.all())
        return self.alive() and all(not isinstance(r, TritonRuntime) or r.ready() for r in runtimes)

    def close(self) -> None:
        """Finish what is in work and end the threads."""
        self.models.close()
        self.engine.close()
        if self.tracing is not None:
            self.tracing.close()
        for model in self.models.all():
            if isinstance(model.classifier.runtime, TritonRuntime):
                model.classifier.runtime.close()


def load_model(settings: Settings, metrics: Metrics, decoding: Semaphore, path: Path) -> Classifier:
    """A classifier of a bundle folder, running here or on the Triton server of the settings.

    Raises:
        DeitLTError: the bundle, the device or the server cannot be used.
    """
    bundle = open_bundle(path)
    if settings.fast_decode:
        bundle = bundle.with_fast_decode()
    if settings.triton:
        remote = TritonRuntime(
            settings.triton, bundle, timeout_s=settings.timeout_s, binary=settings.triton_binary
        )
        return Classifier(bundle, remote, max_pixels=settings.max_pixels, decoding=decoding)
    variant = settings.variant or default_variant(bundle, settings.device)
    return _load_here(settings, metrics, decoding, bundle, variant)


def load_explainer(
    settings: Settings, metrics: Metrics, decoding: Semaphore, bundle: Bundle
) -> Classifier | None:
    """A classifier that also says where both experts looked; None if not wanted or not there.

    Raises:
        DeitLTError: the bundle or the device cannot be used.
    """
    if not settings.explain or EXPLAIN not in bundle.variants:
        return None
    return _load_here(settings, metrics, decoding, bundle, EXPLAIN)


def _load_here(
    settings: Settings, metrics: Metrics, decoding: Semaphore, bundle: Bundle, variant: str
) -> Classifier:
    runtime = open_runtime(bundle, variant, device=settings.device, num_threads=1)
    batching = BatchingRuntime(
        runtime,
        max_batch=max_batch(settings, runtime, bundle) if on_gpu(runtime) else 1,
        pad=on_gpu(runtime),
        observe=metrics.count_call,
    )
    batching.warm_up(bundle.preprocess.img_size)
    return Classifier(
        bundle, batching, max_pixels=settings.max_pixels, variant=variant, decoding=decoding
    )


def max_batch(settings: Settings, runtime: Runtime, bundle: Bundle) -> int:
    """Most images in one call of the model."""
    if settings.max_batch:
        return settings.max_batch
    return GPU_MAX_BATCH if on_gpu(runtime) else core_batch_size(runtime, bundle)


def default_workers(settings: Settings, classifier: Classifier) -> int:
    """The cores; for a GPU so many more that one batch can run and one gather."""
    runtime = classifier.runtime
    largest = max_batch(settings, runtime, classifier.bundle) if on_gpu(runtime) else 1
    return usable_cores() + (2 * largest if largest > 1 else 0)


def images_of_a_worker(settings: Settings, classifier: Classifier) -> int:
    """Images that a worker takes at once: on a GPU one, as the workers share runs there."""
    runtime = classifier.runtime
    return 1 if on_gpu(runtime) else max_batch(settings, runtime, classifier.bundle)


def on_gpu(runtime: Runtime) -> bool:
    """Whether a runtime works on a GPU of this machine."""
    return "cuda" in runtime.provider.lower()


def backend_of(request: Request) -> Backend:
    """The backend that a route serves from."""
    backend: Backend = request.app.state.backend
    return backend
