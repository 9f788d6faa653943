"""The serving benchmark on a GPU: device, form and batches reach bare calls and every server.

There need be no GPU: a stand-in notes what it is asked for, runs it on the CPU and says CUDA.
"""

from collections.abc import Callable
from pathlib import Path
from threading import Semaphore
from typing import Any

import pytest

from deitlt.bundle import Bundle
from deitlt.cores import usable_cores
from deitlt.measuring import Gpu
from serving.backend import default_workers, load_model, max_batch
from serving.benchmark import __main__ as benchmark
from serving.benchmark.bare import open_bare
from serving.benchmark.peers import batchable, depends, fastapi_threads, litserve_workers
from serving.benchmark.peers.bundle import open_classifier
from serving.benchmark.photos import made_up_photos
from serving.benchmark.run import Findings, Plan
from serving.benchmark.servers import SERVERS, Setup
from serving.metrics import Metrics
from serving.settings import Settings
from tests.on_gpu_support import OnGpu, add_fp16

ASKED = ("both", "fp16", "cuda")


@pytest.fixture
def setup(tmp_path: Path, make_bundle: Callable[..., Path]) -> Setup:
    bundle = add_fp16(make_bundle(tmp_path / "plain", name="plain"), tmp_path / "both")
    return Setup(bundle, "fp16", "cuda", None, tmp_path)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[OnGpu, tuple[str, str, str]]]:
    """Every runtime that is opened, and what for: bundle, form and device."""
    found: list[tuple[OnGpu, tuple[str, str, str]]] = []

    def open_there(bundle: Bundle, variant: str, *, device: str, num_threads: int) -> OnGpu:
        runtime = OnGpu(bundle, variant)
        found.append((runtime, (bundle.name, variant, device)))
        return runtime

    for module in ("deitlt.classifier", "serving.backend"):
        monkeypatch.setattr(f"{module}.open_runtime", open_there)
    return found


def test_bare_calls_share_batches_as_large_as_the_service_s(
    setup: Setup, opened: list[tuple[OnGpu, tuple[str, str, str]]]
) -> None:
    photos = made_up_photos()
    bare = open_bare(setup, photos)
    ((runtime, asked),) = opened
    assert asked == ASKED
    assert runtime.sizes == [1, 2, 4, 8, 16, 32]  # warm before the first window
    assert (bare.batch_size, bare.max_threads) == (32, usable_cores() + 64)
    assert "threads share runs of up to 32 images, on CUDAExecutionProvider" in bare.setting

    runtime.sizes.clear()
    assert len(bare.answers()) == len(photos)
    assert set(runtime.sizes) == {1}

    runtime.sizes.clear()
    runtime.seconds = 0.05  # in which others decode and gather
    assert bare.classify(8, 0.5, 0.1).images() > 0
    assert 1 < max(runtime.sizes) <= 8, "with 8 under way no run holds more"
    assert {size & (size - 1) for size in runtime.sizes} == {0}, "padded to few shapes"


def test_the_bare_runtime_runs_whole_batches_and_counts_every_image(
    setup: Setup, opened: list[tuple[OnGpu, tuple[str, str, str]]]
) -> None:
    bare = open_bare(setup, made_up_photos())
    ((runtime, _),) = opened
    runtime.sizes.clear()
    window = bare.pure(8, 0.3, 0.0)
    assert set(runtime.sizes) == {32}
    assert len(window.calls) % 32 == 0
    assert 0 < len(window.calls) <= 32 * len(runtime.sizes)
    assert bare.pure_label == "pure runtime, batches of 32"


def test_the_service_and_every_peer_get_device_and_form(
    setup: Setup,
    opened: list[tuple[OnGpu, tuple[str, str, str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEITLT_MAX_BATCH", "2")  # of the caller, which must not reach servers
    on_gpu = [server for server in SERVERS.values() if server.key != "triton"]
    for server in on_gpu:
        environ = server.launch(setup, 1).environ
        given = {name: text for name, text in environ.items() if name.startswith("DEITLT_")}
        assert given == {
            "DEITLT_MODEL": str(setup.bundle),
            "DEITLT_VARIANT": "fp16",
            "DEITLT_DEVICE": "cuda",
        }, server.key
    settings = Settings.from_environ(given)
    classifier = load_model(settings, Metrics(), Semaphore(), settings.models[0])
    bare = open_bare(setup, made_up_photos())
    assert bare.batch_size == max_batch(settings, classifier.runtime, classifier.bundle)
    assert bare.max_threads == default_workers(settings, classifier)

    for name, text in given.items():
        monkeypatch.setenv(name, text)
    assert open_classifier(1).predict_one(made_up_photos()[0]).label
    services: list[Any] = [batchable.Best, batchable.Default, depends.Inner]
    for service in services:
        service.inner()
    fastapi_threads.make_app()
    litserve_workers.Classify().setup("cpu")  # its own idea of a device is not used
    assert [asked for _, asked in opened] == [ASKED] * 8


def test_a_server_that_cannot_use_a_gpu_is_a_named_row(setup: Setup) -> None:
    why = {key: server.missing(setup) for key, server in SERVERS.items()}
    assert why["triton"] == "as it is set up here it runs on the CPU alone"
    assert why["ours"] is None


def test_a_run_takes_fp16_and_names_the_gpu(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[Plan, Setup]] = []

    def measure(plan: Plan, given: Setup, images: list[bytes], found: Findings) -> None:
        seen.append((plan, given))
        found.bare = "up to 9 threads share runs"

    monkeypatch.setattr(benchmark, "measure", measure)
    monkeypatch.setattr(benchmark, "count_gpus", lambda: 1)
    monkeypatch.setattr(benchmark, "first_gpu", lambda: Gpu("H9", 3 << 30))
    flags = ["--quick", "--model", str(setup.bundle)]
    assert benchmark.main([*flags, "--device", "cuda"]) == 0
    said = capsys.readouterr().out
    assert "\nH9, 3.0 GiB; " in said
    assert ", fp16 on cuda, " in said
    assert "\n  bare calls: up to 9 threads share runs\n" in said
    assert benchmark.main([*flags, "--device", "cuda", "--variant", "float32"]) == 0
    assert benchmark.main(flags) == 0
    assert "\nno GPU used; " in capsys.readouterr().out
    assert [(plan.busy, to.device, to.variant) for plan, to in seen] == [
        (64, "cuda", "fp16"), (64, "cuda", "float32"), (8, "cpu", "float32"),
    ]  # fmt: skip


def test_without_a_gpu_nothing_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "count_gpus", lambda: 0)
    monkeypatch.setattr(benchmark, "measure", lambda *_: pytest.fail("it was started"))
    assert benchmark.main(["--quick", "--device", "cuda"]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line == ("serving.benchmark: --device cuda: the driver offers no GPU; use --device cpu")
    assert said.out == ""
