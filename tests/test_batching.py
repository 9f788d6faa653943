"""Concurrent calls share a run; nothing here depends on how fast anything runs."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from deitlt.batching import BatchingRuntime, core_batch_size
from deitlt.classifier import Classifier
from deitlt.cores import usable_cores
from deitlt.errors import DeviceLost
from deitlt.prediction import Options
from deitlt.preprocess import Pixels
from deitlt.runtimes import Outputs
from serving.backend import Backend, default_workers, images_of_a_worker, max_batch
from serving.settings import Settings

Png = Callable[[int], bytes]
TIMEOUT_S = 20  # only ever waited for where a test fails
LIMIT = 8  # images that the fake's memory holds
POISON = 255


class Gated:
    """Answers each image with its first byte, one run at a time, once its gate is open."""

    provider = "Gated"

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.started = threading.Semaphore(0)
        self.runs: list[int] = []
        self.failure: Exception | None = None
        self._busy = threading.Lock()

    def run(self, pixels: Pixels) -> Outputs:
        assert self._busy.acquire(blocking=False), "two runs at the same time"
        try:
            self.runs.append(len(pixels))
            self.started.release()
            assert self.gate.acquire(timeout=TIMEOUT_S)
            if self.failure is not None:
                raise self.failure
            if len(pixels) > LIMIT:
                raise MemoryError
            values = pixels[:, 0, 0, 0].astype(np.float32)
            if POISON in values:
                raise ValueError("poison")
            logits = np.stack([values, -values], axis=1)
            return Outputs(logits, logits + 1, None, logits + 2)
        finally:
            self._busy.release()


@pytest.fixture
def gated() -> Gated:
    return Gated()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


def images(*values: int) -> Pixels:
    return np.array(values, np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)


def gather(
    pool: ThreadPoolExecutor, runtime: BatchingRuntime, gated: Gated, *parts: Pixels
) -> list[Future[Outputs]]:
    """The first part runs and waits at the gate; the others queue up behind it, in order."""
    futures = [pool.submit(runtime.run, parts[0])]
    assert gated.started.acquire(timeout=TIMEOUT_S)
    for number, part in enumerate(parts[1:], start=1):
        futures.append(pool.submit(runtime.run, part))
        while len(runtime._waiting) < number:
            assert not futures[-1].done()
    return futures


def values(future: Future[Outputs]) -> list[float]:
    outputs = future.result(TIMEOUT_S)
    assert outputs.cls_logits is not None
    assert outputs.cls_features is not None
    np.testing.assert_array_equal(outputs.cls_logits, outputs.logits + 1)
    np.testing.assert_array_equal(outputs.cls_features, outputs.logits + 2)
    assert outputs.distillation_logits is None
    return [float(value) for value in outputs.logits[:, 0]]


@pytest.mark.parametrize(
    ("img_size", "patch_size", "expected"), [(16, 4, 32), (32, 4, 8), (224, 16, 2), (384, 16, 1)]
)
def test_what_suits_a_core_follows_the_number_of_patches(
    img_size: int, patch_size: int, expected: int, classifier: Classifier, gated: Gated
) -> None:
    shape = {"img_size": img_size, "patch_size": patch_size}
    bundle = replace(classifier.bundle, manifest={"architecture": shape})
    assert core_batch_size(classifier.runtime, bundle) == expected
    assert core_batch_size(gated, bundle) == 1  # PyTorch's answers, say, depend on the batch


def test_answers_of_the_cpu_do_not_depend_on_the_batch(png: Png, classifier: Classifier) -> None:
    images = np.stack([classifier.load_pixels(png(seed)) for seed in range(37)])
    alone = [classifier.runtime.run(image[None]).parts() for image in images]
    for size in (2, core_batch_size(classifier.runtime, classifier.bundle), 37):
        for start in range(0, len(images), size):
            together = classifier.runtime.run(images[start : start + size]).parts()
            for name, values in together.items():
                expected = np.concatenate([part[name] for part in alone[start : start + size]])
                np.testing.assert_array_equal(values, expected)


def test_a_lone_call_runs_at_once_and_alone(gated: Gated, pool: ThreadPoolExecutor) -> None:
    runtime = BatchingRuntime(gated, max_batch=LIMIT)
    gated.gate.release(2)
    assert values(pool.submit(runtime.run, images(3))) == [3]
    assert values(pool.submit(runtime.run, images(4, 5))) == [4, 5]
    assert gated.runs == [1, 2]


def test_what_came_while_one_ran_goes_together(gated: Gated, pool: ThreadPoolExecutor) -> None:
    seen: list[int] = []
    runtime = BatchingRuntime(gated, max_batch=4, observe=seen.append)  # as many as will wait
    parts = [images(1), images(2), images(3, 4), images(5)]
    futures = gather(pool, runtime, gated, *parts)
    gated.gate.release(2)
    assert [values(future) for future in futures] == [[1], [2], [3, 4], [5]]
    assert gated.runs == seen == [1, 4]


def test_no_run_exceeds_the_largest_batch_and_nobody_is_overtaken(
    gated: Gated, pool: ThreadPoolExecutor
) -> None:
    runtime = BatchingRuntime(gated, max_batch=4)
    parts = [images(1), images(2), images(3, 4), images(5, 6), images(7), images(8, 9, 10, 11, 12)]
    futures = gather(pool, runtime, gated, *parts)
    gated.gate.release(10)
    assert [values(f) for f in futures] == [[1], [2], [3, 4], [5, 6], [7], [8, 9, 10, 11, 12]]
    assert gated.runs == [1, 3, 3, 5]  # the last asked for more than fits, and got it by itself


def test_runs_are_filled_up_to_a_power_of_two(gated: Gated, pool: ThreadPoolExecutor) -> None:
    seen: list[int] = []
    runtime = BatchingRuntime(gated, max_batch=6, pad=True, observe=seen.append)
    gated.gate.release(10)
    for number in (1, 2, 3, 5, 6, 7):
        assert values(pool.submit(runtime.run, images(*range(number)))) == list(range(number))
    assert gated.runs == [1, 2, 4, 6, 6, 7]  # or to the largest batch
    assert seen == [1, 2, 3, 5, 6, 7]


def test_a_failed_run_is_tried_again_call_by_call(gated: Gated, pool: ThreadPoolExecutor) -> None:
    runtime = BatchingRuntime(gated, max_batch=16)
    parts = [images(1), images(2), images(POISON), images(3)]
    futures = gather(pool, runtime, gated, *parts)
    gated.gate.release(10)
    assert [values(futures[i]) for i in (0, 1, 3)] == [[1], [2], [3]]
    with pytest.raises(ValueError, match="poison"):
        futures[2].result(TIMEOUT_S)
    assert gated.runs == [1, 3, 1, 1, 1]


def test_too_much_for_the_memory_is_run_in_parts(gated: Gated, pool: ThreadPoolExecutor) -> None:
    runtime = BatchingRuntime(gated, max_batch=16)
    parts = [images(0), *(images(i, i, i) for i in range(1, 5))]
    futures = gather(pool, runtime, gated, *parts)
    gated.gate.release(10)
    assert [values(future) for future in futures] == [[0], *([i] * 3 for i in range(1, 5))]
    assert gated.runs == [1, 12, 3, 3, 3, 3]


def test_a_failure_of_the_first_leaves_the_lead_to_the_next(
    gated: Gated, pool: ThreadPoolExecutor
) -> None:
    runtime = BatchingRuntime(gated, max_batch=LIMIT)
    futures = gather(pool, runtime, gated, images(POISON), images(1))
    gated.gate.release(2)
    with pytest.raises(ValueError, match="poison"):
        futures[0].result(TIMEOUT_S)
    assert values(futures[1]) == [1]


def test_a_lost_device_fails_every_call_and_is_logged_once(
    gated: Gated, pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = BatchingRuntime(gated, max_batch=LIMIT)
    gated.gate.release(9)
    assert values(pool.submit(runtime.run, images(1))) == [1]
    assert not runtime.lost
    gated.gate = threading.Semaphore(0)
    gated.failure = DeviceLost("the GPU is lost: CUDA failure 700")
    futures = gather(pool, runtime, gated, images(1), images(2), images(3))
    gated.gate.release(9)
    for future in futures:
        with pytest.raises(DeviceLost):
            future.result(TIMEOUT_S)
    assert runtime.lost
    assert gated.runs == [1, 1, 2], "what was lost together is not tried again one by one"
    assert caplog.messages == ["the GPU is lost: CUDA failure 700"]


def test_many_callers_all_get_their_own(gated: Gated) -> None:
    runtime = BatchingRuntime(gated, max_batch=LIMIT)
    gated.gate.release(1000)
    with ThreadPoolExecutor(24) as pool:
        futures = [pool.submit(runtime.run, images(i % 200)) for i in range(600)]
        assert [values(future) for future in futures] == [[i % 200] for i in range(600)]
    assert sum(gated.runs) == 600
    assert max(gated.runs) <= LIMIT


def test_without_batches_calls_run_side_by_side() -> None:
    both = threading.Barrier(2)

    class Parallel:
        provider = "Parallel"

        def run(self, pixels: Pixels) -> Outputs:
            both.wait(TIMEOUT_S)
            return Outputs(pixels[:, 0, 0, :1].astype(np.float32))

    runtime = BatchingRuntime(Parallel(), max_batch=1)
    assert runtime.provider == "Parallel"
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(runtime.run, (images(1), images(2))))
    assert [float(o.logits[0, 0]) for o in outputs] == [1, 2]


def test_the_service_shares_runs_and_counts_them(
    classifier: Classifier, pixels: Callable[..., Image.Image]
) -> None:
    pictures = [pixels(seed=seed) for seed in range(40)]
    alone = classifier.predict(pictures, top_k=10)
    environ = {"DEITLT_MODEL": str(classifier.bundle.path), "DEITLT_DEVICE": "cpu"}
    backend = Backend.start(Settings.from_environ({**environ, "DEITLT_MAX_BATCH": "8"}))
    try:
        assert backend.engine.num_workers == usable_cores()
        asked = backend.models.default.classifier
        futures = backend.engine.submit_all(pictures, Options(10), classifier=asked)
        assert [future.result(TIMEOUT_S) for future in futures] == alone
        counts = dict(line.rsplit(" ", 1) for line in backend.metrics.text().decode().splitlines())
    finally:
        backend.close()
    # One more image is the one that every model is warmed up with.
    assert float(counts["deitlt_batch_size_sum"]) == 41
    assert 6 <= float(counts["deitlt_batch_size_count"]) <= 41


def test_batches_and_threads_suit_the_device(classifier: Classifier) -> None:
    class Somewhere:
        def __init__(self, provider: str) -> None:
            self.provider = provider

        def run(self, pixels: Pixels) -> Outputs:
            raise AssertionError

    def plan(provider: str, **environ: str) -> tuple[int, int, int]:
        settings = Settings.from_environ(environ)
        there = Classifier(classifier.bundle, Somewhere(provider))
        return (
            max_batch(settings, there.runtime, there.bundle),
            default_workers(settings, there) - usable_cores(),
            images_of_a_worker(settings, there),
        )

    for provider in ("CUDAExecutionProvider", "PyTorch cuda"):
        assert plan(provider) == (32, 64, 1)
        assert plan(provider, DEITLT_MAX_BATCH="4") == (4, 8, 1)
    assert plan("CPUExecutionProvider") == (32, 0, 32)
    assert plan("PyTorch cpu") == (1, 0, 1)
    assert plan("PyTorch cpu", DEITLT_MAX_BATCH="4") == (4, 0, 4)


def test_warming_up_meets_every_size(gated: Gated) -> None:
    gated.gate.release(10)
    BatchingRuntime(gated, max_batch=6, pad=True).warm_up(4)
    assert gated.runs == [1, 2, 4, 6]
