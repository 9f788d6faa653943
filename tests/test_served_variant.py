"""Which form of each model the service runs: on a GPU fp16 where the bundle has it, else float32.

There need be no GPU: a stand-in notes what it is asked for, runs it on the CPU and says CUDA.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from starlette.testclient import TestClient

from deitlt import runtimes
from deitlt.bundle import Bundle
from deitlt.errors import DeviceLost
from deitlt.preprocess import Pixels
from deitlt.runtimes import CPU_PROVIDER, CUDA_PROVIDER, Outputs, open_runtime
from serving import startup
from serving.backend import Backend
from serving.frontend import Frontend
from serving.service import frontend
from serving.settings import Settings
from tests.on_gpu_support import FP16_OUTPUTS, OnGpu, add_fp16
from tests.service_support import CLASSIFY, LIMITS, error_of, in_process, picture


@pytest.fixture
def two_bundles(tmp_path: Path, make_bundle: Callable[..., Path]) -> list[Path]:
    """One that has fp16, which here gives the mean alone, and one that has not."""
    plain = make_bundle(tmp_path / "plain", name="plain")
    return [add_fp16(plain, tmp_path / "both"), plain]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Name, variant and device of every runtime that is opened on a machine with a GPU."""
    asked: list[tuple[str, str, str]] = []

    def open_there(bundle: Bundle, variant: str, *, device: str, num_threads: int) -> Any:
        asked.append((bundle.name, variant, device))
        if device == "cpu":
            return open_runtime(bundle, variant, device="cpu", num_threads=num_threads)
        return OnGpu(bundle, variant)

    monkeypatch.setattr("serving.backend.open_runtime", open_there)
    monkeypatch.setattr(runtimes, "count_gpus", lambda: 1)
    monkeypatch.setattr(runtimes, "cuda_works", lambda: True)
    providers = [CUDA_PROVIDER, CPU_PROVIDER]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    return asked


def environ(bundles: list[Path], **more: str) -> dict[str, str]:
    return {**LIMITS, "DEITLT_MODEL": os.pathsep.join(map(str, bundles)), **more}


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_on_a_gpu_each_bundle_gives_its_fp16_or_float32(
    two_bundles: list[Path], opened: list[tuple[str, str, str]], device: str
) -> None:
    settings = Settings.from_environ(environ(two_bundles, DEITLT_DEVICE=device))
    backend = Backend.start(settings)
    routes = Frontend()
    routes.attach(backend)
    try:
        with TestClient(routes) as client:
            cards = client.get("/v1/models").json()["models"]
            served = {card["name"]: (card["variant"], card["provider"]) for card in cards}
            assert served == {
                "both": ("fp16", CUDA_PROVIDER),
                "plain": ("float32", CUDA_PROVIDER),
            }
            # The other protocol offers what the chosen form gives.
            outputs = [o["name"] for o in client.get("/v2/models/both").json()["outputs"]]
            assert outputs == FP16_OUTPUTS
            assert len(client.get("/v2/models/plain").json()["outputs"]) > 1
            assert client.post(CLASSIFY, content=picture()).status_code == 200
    finally:
        backend.close()
    assert opened == [("both", "fp16", device), ("plain", "float32", device)]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"DEITLT_DEVICE": "cpu"}, "float32"),
        ({"DEITLT_DEVICE": "cuda", "DEITLT_VARIANT": "float32"}, "float32"),
        ({"DEITLT_DEVICE": "cpu", "DEITLT_VARIANT": "fp16"}, "fp16"),
    ],
)
def test_a_cpu_gets_float32_and_a_named_form_is_kept(
    two_bundles: list[Path],
    opened: list[tuple[str, str, str]],
    settings: dict[str, str],
    wanted: str,
) -> None:
    Backend.start(Settings.from_environ(environ(two_bundles[:1], **settings))).close()
    assert opened == [("both", wanted, settings["DEITLT_DEVICE"])]


def test_the_check_before_a_start_tries_the_form_that_is_served(
    two_bundles: list[Path],
    opened: list[tuple[str, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environ(two_bundles, DEITLT_DEVICE="auto").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("DEITLT_VARIANT", raising=False)
    assert startup.main([]) == startup.OK
    assert [variant for _, variant, _ in opened] == ["fp16", "float32"]
    monkeypatch.setenv("DEITLT_VARIANT", "fp16")
    assert startup.main([]) == startup.WRONG_USE
    assert "plain: has no variant 'fp16'" in capsys.readouterr().err


def test_a_lost_gpu_ends_readiness_and_life(caplog: pytest.LogCaptureFixture) -> None:
    def fail(pixels: Pixels) -> Outputs:
        raise DeviceLost("the GPU is lost to this process (CUDA_ERROR_LAUNCH_FAILED)")

    with in_process() as client:
        probes = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")
        assert [client.get(path).status_code for path in probes] == [200] * 4
        backend: Any = frontend._backend
        runtime = backend.models.default.classifier.runtime
        runtime._runtime.run = fail
        for _ in range(2):
            response = client.post(CLASSIFY, content=picture())
            assert "LAUNCH_FAILED" in error_of(response, 503, "device_lost")
        assert [client.get(path).status_code for path in probes] == [503] * 4
    assert [r.levelname for r in caplog.records if "LAUNCH_FAILED" in r.message] == ["CRITICAL"]
