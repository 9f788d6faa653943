"""The inference stage: batches that fit, batches at the same places after a resume, its plan."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from deitlt.batch.inference import Plan, choose_plan, find_batch_size
from deitlt.batch.pipeline import predict_iter
from deitlt.classifier import Classifier
from deitlt.cores import usable_cores
from deitlt.errors import RuntimeUnavailable, UsageError
from deitlt.prediction import Options, Prediction
from deitlt.preprocess import Pixels
from deitlt.runtimes import Outputs, default_variant
from tests.pipeline_support import Given

Png = Callable[[int], bytes]
# As ONNX Runtime says it on a GPU.
NO_MEMORY = onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException(
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Gemm "
    "node. Status Message: bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal "
    "Failed to allocate memory for requested buffer of size 1258291200"
)


class Device:
    """A runtime with little memory, whose last digits depend on the shape of a batch."""

    provider = "CUDAExecutionProvider"

    def __init__(self, fits: int = 1000, error: Exception = NO_MEMORY) -> None:
        self.fits, self.error = fits, error
        self.sizes: list[int] = []

    def run(self, pixels: Pixels) -> Outputs:
        self.sizes.append(len(pixels))
        if len(pixels) > self.fits:
            raise self.error
        means = pixels.reshape(len(pixels), -1).mean(axis=1, dtype=np.float64)
        places = np.arange(len(pixels)) + 100 * len(pixels)
        logits = np.outer(means / 255, np.arange(10)) + 1e-4 * places[:, None] * np.arange(10)
        return Outputs(logits.astype(np.float32))


def on(device: Device, classifier: Classifier) -> Classifier:
    return Classifier(classifier.bundle, device)


def predictions(
    device: Device, classifier: Classifier, sources: list[Given], first: int = 0, size: int = 8
) -> list[object]:
    running = predict_iter(
        on(device, classifier),
        sources[first:],
        Options(logits=True),
        num_workers=0,
        batch_size=size,
        first=first,
    )
    return [result if isinstance(result, Prediction) else str(result) for _, result in running]


@pytest.fixture(scope="module")
def sources(png: Png) -> list[Given]:
    """27 images, the third and two whole batches of them damaged."""
    bad = {2, *range(8, 16)}
    return [Given(b"x" if i in bad else png(i)) for i in range(27)]


@pytest.mark.parametrize("first", [1, 3, 7, 8, 12, 16, 26, 27])
def test_a_resumed_run_gives_the_very_same_numbers(
    first: int, sources: list[Given], classifier: Classifier
) -> None:
    whole, device = predictions(Device(), classifier, sources), Device()
    assert predictions(device, classifier, sources, first) == whole[first:]
    assert set(device.sizes) <= {8, 3}


def test_batches_are_full_and_nothing_is_run_for_damaged_images_alone(
    sources: list[Given], classifier: Classifier
) -> None:
    device = Device()
    predictions(device, classifier, sources)
    assert sorted(device.sizes) == [3, 8, 8]
    single = Device()
    predictions(single, classifier, sources, size=1)
    assert single.sizes == [1] * 18


@pytest.mark.parametrize(
    "error",
    [
        NO_MEMORY,
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; expr=cublasCreate"),
        RuntimeError("Available memory of 1048576 is smaller than requested bytes of 2097152"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_and_loses_nothing(
    error: Exception, png: Png, classifier: Classifier
) -> None:
    sources, device = [Given(png(i)) for i in range(40)], Device(fits=3, error=error)
    found = predict_iter(on(device, classifier), sources, num_workers=0, batch_size=16)
    labels = [result.label for _, result in found if isinstance(result, Prediction)]
    assert len(labels) == 40
    failed = [size for size in device.sizes if size > 3]
    # Once it is known what fits, no more is tried; another thread may be in the middle of it.
    assert failed[0] == 16
    assert sorted(set(failed)) == [4, 8, 16]
    assert len(failed) <= 6
    assert sum(size for size in device.sizes if size <= 3) == 40


def test_one_image_that_does_not_fit_is_one_line(png: Png, classifier: Classifier) -> None:
    with pytest.raises(RuntimeUnavailable, match="one image at a time") as caught:
        predictions(Device(fits=0), classifier, [Given(png(0))])
    assert "\n" not in str(caught.value)


def test_another_failure_is_not_taken_for_want_of_memory(png: Png, classifier: Classifier) -> None:
    device = Device(fits=1, error=RuntimeError("CUDA failure 700: an illegal memory access"))
    with pytest.raises(RuntimeError, match="700"):
        predictions(device, classifier, [Given(png(0))] * 2)
    assert device.sizes == [2]


@pytest.mark.parametrize(
    ("call_s", "image_s", "fits", "expected"),
    [
        (0.004, 0.001, 1000, 64),  # 128 at a time would be 3 % faster, 64 are 5.9 %
        (0.0, 0.001, 1000, 1),
        (0.1, 0.001, 1000, 256),
        (0.1, 0.001, 40, 32),
        (0.1, 0.001, 1, 1),
    ],
)
def test_the_batch_grows_while_that_pays_and_fits(
    call_s: float, image_s: float, fits: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    device = Device(fits)

    class Clocked:
        provider = device.provider

        def run(self, pixels: Pixels) -> Outputs:
            now[0] += call_s + image_s * len(pixels)
            return device.run(pixels)

    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr("deitlt.batch.inference.time", clock)
    assert find_batch_size(Clocked(), 4) == expected
    assert all(b in (a, 2 * a) for a, b in pairwise(device.sizes))


def test_a_device_that_cannot_run_one_image_says_so_itself() -> None:
    with pytest.raises(type(NO_MEMORY), match="bfc_arena"):
        find_batch_size(Device(fits=0), 4)


@pytest.mark.parametrize(
    ("provider", "num_threads", "expected"),
    [
        ("CPUExecutionProvider", 1, Plan(32, usable_cores(), usable_cores())),
        ("CPUExecutionProvider", None, Plan(8, 1, 2)),
        ("PyTorch cpu", 1, Plan(1, usable_cores(), usable_cores())),
        ("Triton grpc", 1, Plan(1, 8, 8)),
    ],
)
def test_the_plan_suits_the_runtime(
    provider: str, num_threads: int | None, expected: Plan, classifier: Classifier
) -> None:
    device = Device()
    device.provider, device.num_threads = provider, num_threads  # type: ignore[attr-defined]
    assert choose_plan(on(device, classifier)) == expected
    assert device.sizes == []
    assert choose_plan(on(device, classifier), batch_size=5).batch_size == 5


def test_a_gpu_runs_one_call_at_a_time(classifier: Classifier) -> None:
    assert choose_plan(on(Device(), classifier), 64) == Plan(64, at_once=1, num_threads=2)


def test_embeddings_of_a_model_without_features_are_refused_in_one_line(
    png: Png, classifier: Classifier
) -> None:
    running = predict_iter(on(Device(), classifier), [Given(png(0))], Options(embeddings=True))
    with pytest.raises(UsageError, match="gives no features; export the bundle again") as caught:
        next(running)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("device", "gpus", "has", "expected"),
    [
        ("auto", 1, True, "fp16"),
        ("auto", 1, False, "float32"),
        ("auto", 0, True, "float32"),
        ("cpu", 1, True, "float32"),
        ("cuda", 0, True, "fp16"),
    ],
)
def test_a_gpu_gets_fp16_where_the_bundle_has_it(
    device: Any,
    gpus: int,
    has: bool,
    expected: str,
    classifier: Classifier,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr("deitlt.runtimes.count_gpus", lambda: gpus)
    monkeypatch.setattr("deitlt.runtimes.cuda_works", lambda: True)
    entry = classifier.bundle.manifest["artefacts"]["float32"]
    artefacts = {"float32": entry} | ({"fp16": entry} if has else {})
    bundle = replace(classifier.bundle, manifest={"artefacts": artefacts})
    assert default_variant(bundle, device) == expected
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers[1:])
    assert default_variant(bundle, "auto") == "float32"
