"""Batch prediction past one machine: Ray Data actors that each hold the bundle.

What an actor does to its images is `pipeline.predict_iter` itself, so its rows and errors are those
of a local run. The bundle's folder must be at the same place on every machine, on a shared disk for
instance, and so must the images.
"""

import logging
import os
import pickle
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from deitlt.batch.decode_worker import Readable
from deitlt.batch.pipeline import Result, predict_iter
from deitlt.bundle import FLOAT32, default_bundle
from deitlt.classifier import Classifier, load
from deitlt.errors import DeitLTError, RuntimeUnavailable, UsageError
from deitlt.prediction import Options
from deitlt.preprocess import MAX_PIXELS
from deitlt.runtimes import Device

S = TypeVar("S", bound=Readable)

# Sources of a task; an actor that is lost costs the work on so many. Each task starts a process to
# decode in, which takes as long as decoding a hundred pictures.
TASK = 1024
# Tasks of one Ray data set: the driver holds no more results than these have.
TASKS = 1024
# Bytes of sources, which may hold images (of compressed archives), in a task and in a data set.
TASK_BYTES, SET_BYTES = 1 << 26, 1 << 28
GPU_BATCH = 64


def predict_with_ray(
    model: str | Path | None,
    sources: Iterable[S],
    options: Options = Options(),
    *,
    variant: str = FLOAT32,
    device: Device = "auto",
    num_workers: int | None = None,
    batch_size: int | None = None,
    first: int = 0,
    max_pixels: int = MAX_PIXELS,
    fast_decode: bool = False,
) -> Generator[tuple[S, Result], None, None]:
    """As `pipeline.predict_iter`, on a Ray cluster.

    It is the one that this process is connected to, else that of `RAY_ADDRESS`, else one is started
    on this machine, which ends with this process.

    Args:
        model: bundle folder, as every machine finds it; None takes the packaged one.
        sources: what to classify; they must be picklable.
        options: what the predictions should hold.
        variant: which form of the model.
        device: `cuda` takes a GPU for each actor; else each takes one core.
        num_workers: actors; as many as the cluster has cores, or GPUs, by default.
        batch_size: images a call of the model; by default what suits a core, 64 on a GPU.
        first: how many sources came before these in an earlier run.
        max_pixels: images with more pixels are refused.
        fast_decode: as `deitlt.load` takes it.

    Raises:
        RuntimeUnavailable: Ray is not installed, or the cluster has no such device.
        UsageError: an argument is out of range.
    """
    if num_workers is not None and num_workers < 1:
        raise UsageError(f"{num_workers} workers; Ray needs at least 1")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch size {batch_size}; at least 1 image is needed")
    ray = _import_ray()
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody has asked to be counted
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    on_gpu = device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    size = batch_size or (GPU_BATCH if on_gpu else None)  # what suits a core, the actors know
    opening = {
        "model": str(Path(model or default_bundle()).resolve()),
        "variant": variant,
        "device": "cuda" if on_gpu else "cpu",
        "max_pixels": max_pixels,
        "fast_decode": fast_decode,
    }
    available = int(ray.cluster_resources().get("GPU" if on_gpu else "CPU", 0))
    if available < 1:
        raise RuntimeUnavailable(f"the Ray cluster has no {'GPU' if on_gpu else 'core'} to run on")
    actors = min(num_workers or available, available)
    # A GPU's actor gets its share of the cores to decode on.
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)) // available) if on_gpu else 1
    arguments = {"opening": opening, "options": options, "batch_size": size, "cores": cores}
    return _stream(ray, iter(sources), arguments, actors, on_gpu, first)


class Actor:
    """A bundle on a machine of the cluster, which classifies tasks."""

    def __init__(
        self, opening: dict[str, Any], options: Options, batch_size: int | None, cores: int
    ) -> None:
        self._options, self._batch_size, self._cores = options, batch_size, cores
        self._classifier: Classifier | DeitLTError
        try:
            self._classifier = load(**opening, num_threads=1)
        except DeitLTError as error:  # Ray would try again, and print its own frames
            self._classifier = error.with_traceback(None)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The results of each task of a batch, or why there are none, pickled."""
        results = [
            self._classify(int(first), pickle.loads(sources))
            for first, sources in zip(batch["first"], batch["sources"], strict=True)
        ]
        return {"first": batch["first"], "results": results}

    def _classify(self, first: int, sources: list[Readable]) -> bytes:
        if isinstance(self._classifier, DeitLTError):
            return pickle.dumps(self._classifier)
        running = predict_iter(
            self._classifier,
            sources,
            self._options,
            num_workers=self._cores,
            batch_size=self._batch_size,
            first=first,
        )
        try:
            return pickle.dumps([result for _, result in running])
        except DeitLTError as error:
            return pickle.dumps(error)


def _stream(
    ray: Any,
    sources: Iterator[S],
    arguments: dict[str, Any],
    actors: int,
    on_gpu: bool,
    first: int,
) -> Generator[tuple[S, Result], None, None]:
    size = arguments["batch_size"] or 1
    whole = -(-TASK // size) * size
    while True:
        tasks, position, held = list[tuple[int, list[S]]](), first, 0
        while len(tasks) < TASKS and held < SET_BYTES:
            # The first task of a resumed run ends where a batch does.
            part, num_bytes = _part(sources, whole - position % size, size)
            if not part:
                break
            tasks.append((position, part))
            position, held = position + len(part), held + num_bytes
        if not tasks:
            return
        yield from _classify(ray, tasks, arguments, min(actors, len(tasks)), on_gpu)
        first = position


def _part(sources: Iterator[S], most: int, size: int) -> tuple[list[S], int]:
    """The next sources, whole batches of `size` behind the first, and their bytes."""
    part, num_bytes = list[S](), 0
    for source in islice(sources, most):
        part.append(source)
        num_bytes += len(pickle.dumps(source))
        if num_bytes > TASK_BYTES and (most - len(part)) % size == 0:
            break
    return part, num_bytes


def _classify(
    ray: Any,
    tasks: list[tuple[int, list[S]]],
    arguments: dict[str, Any],
    actors: int,
    on_gpu: bool,
) -> Iterator[tuple[S, Result]]:
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    rows = [{"first": first, "sources": pickle.dumps(part)} for first, part in tasks]
    with ray.data.DataContext.current(context):
        # A block a task, so that tasks go to whichever actor is free.
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Actor,
            fn_constructor_kwargs=arguments,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=arguments["cores"],
            num_gpus=1 if on_gpu else 0,
        )
        answers = dataset.iter_rows()
        try:
            for (first, part), answer in zip(tasks, answers, strict=True):
                assert answer["first"] == first, "Ray returned tasks out of order"
                results = pickle.loads(answer["results"])
                if isinstance(results, DeitLTError):
                    raise results
                yield from zip(part, results, strict=True)
        except ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = (lines or [type(error).__name__])[-1]
            raise RuntimeUnavailable(f"the run on Ray failed ({reason})") from error


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RuntimeUnavailable(
            "Ray Data is not installed; pip install 'deitlt[ray]', or use --engine local"
        ) from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it reports every data set it runs
    return ray
