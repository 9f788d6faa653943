"""`POST /v1/explain` over HTTP: asked like classify, answered by the variant `explain`."""

import json
import os
import shutil
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from deitlt.classifier import Classifier, load
from deitlt.errors import UsageError
from deitlt.prediction import Options
from serving.backend import Backend
from serving.openapi import PATHS
from serving.settings import Settings
from serving.startup import why_not
from tests.bundle_support import DIGITS
from tests.kserve_support import Server
from tests.service_support import (
    CLASSIFY,
    EXPLAIN,
    LIMITS,
    as_files,
    error_of,
    picture,
    plain,
    without_envelope,
)

MAPS = ("cls_rollout", "distillation_rollout")


@pytest.fixture(scope="module")
def server(explaining_bundle: Path) -> Iterator[Server]:
    """A model that explains, and one whose bundle has no such variant."""
    paths = os.pathsep.join(map(str, (explaining_bundle, DIGITS)))
    with Server(DEITLT_MODEL=paths, DEITLT_EXPLAIN="true") as server:
        yield server


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{server.address}", timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def explaining(explaining_bundle: Path) -> Classifier:
    return load(explaining_bundle, variant="explain", device="cpu", num_threads=1)


def expected(explaining: Classifier, image: bytes, **options: Any) -> Any:
    """What the library says, its maps with six decimals."""
    asked = Options(experts=True, rollouts=True, **options)
    answer = plain(explaining.predict_one(image, asked))
    answer["rollouts"] = {
        name: [[round(share, 6) for share in row] for row in rows]
        for name, rows in answer["rollouts"].items()
    }
    return answer


@pytest.mark.parametrize("kind", ["raw", "form", "json"])
def test_it_answers_as_the_variant_does(
    http: httpx.Client, explaining: Classifier, kind: str
) -> None:
    image = picture(3)
    forms: dict[str, dict[str, Any]] = {
        "raw": {"content": image},
        "form": {"files": as_files(image)},
        "json": {"json": {"image": b64encode(image).decode()}},
    }
    response = http.post(f"{EXPLAIN}?top_k=2&blend=0.25&logits=true", **forms[kind])
    assert response.status_code == 200
    answer = without_envelope(response.json())
    assert answer == expected(explaining, image, top_k=2, blend=0.25, logits=True)
    assert answer["experts"]
    raw = explaining.runtime.run(explaining.load_pixels(image)[None])
    for name, maps in raw.rollouts().items():
        np.testing.assert_allclose(answer["rollouts"][name], maps[0], atol=5.1e-7)
    assert float(response.headers["x-inference-time-ms"]) > 0
    assert response.headers["x-model"].startswith("digits/")


def test_experts_are_always_there_and_classify_stays_as_it_was(http: httpx.Client) -> None:
    explained = http.post(f"{EXPLAIN}?experts=false", content=picture()).json()
    classified = http.post(CLASSIFY, content=picture()).json()
    assert set(explained) - set(classified) == {"experts", "rollouts"}
    assert explained["top_k"] != classified["top_k"], "the fixture's graphs differ"


def test_a_bad_image_among_several_fails_alone(http: httpx.Client, explaining: Classifier) -> None:
    response = http.post(EXPLAIN, files=as_files(picture(1), b"no picture", picture(2)))
    first, bad, last = response.json()["results"]
    assert bad["error"]["code"] == "unsupported_image"
    assert without_envelope(first) == expected(explaining, picture(1))
    assert without_envelope(last) == expected(explaining, picture(2))
    error_of(http.post(EXPLAIN, content=b"no picture"), 415, "unsupported_image")
    error_of(http.post(f"{EXPLAIN}?top_k=0", content=picture()), 400, "bad_request")
    error_of(http.post(f"{EXPLAIN}?rollouts=true", content=picture()), 400, "bad_request")
    error_of(http.post(f"{EXPLAIN}?model=birds", content=picture()), 404, "unknown_model")


def test_a_model_without_the_variant_says_what_to_do(http: httpx.Client, server: Server) -> None:
    cards = http.get("/v1/models").json()["models"]
    assert [card["explain"] for card in cards] == [True, False]
    version = server.backend.models.all()[1].version
    assert version == cards[1]["version"] != cards[0]["version"]
    refused = http.post(f"{EXPLAIN}?version={version}", content=picture())
    assert "export it again with --variants explain" in error_of(refused, 404, "not_found")
    assert http.get(f"/v1/models/digits?version={version}").json()["explain"] is False


def test_off_it_says_what_to_do(client: TestClient) -> None:
    refused = error_of(client.post(EXPLAIN, content=picture()), 404, "not_found")
    assert "set DEITLT_EXPLAIN=true" in refused
    assert client.get("/v1/models/digits").json()["explain"] is False


def test_it_is_counted_under_its_own_route(http: httpx.Client) -> None:
    def counted() -> tuple[float, float]:
        lines = dict(line.rsplit(" ", 1) for line in http.get("/metrics").text.splitlines())
        request = 'deitlt_requests_total{route="/v1/explain",status="200"}'
        images = 'deitlt_inference_seconds_count{model="digits"}'
        return float(lines.get(request, 0)), float(lines.get(images, 0))

    before = counted()
    assert http.post(EXPLAIN, files=as_files(picture(1), picture(2))).status_code == 200
    assert np.subtract(counted(), before).tolist() == [1, 2]


def test_it_is_described_beside_classify() -> None:
    explain, classify = PATHS[EXPLAIN]["post"], PATHS[CLASSIFY]["post"]
    assert explain["requestBody"] is classify["requestBody"]
    assert "`not_found`" in explain["responses"]["404"]["description"]
    assert "`not_found`" not in classify["responses"]["404"]["description"]
    assert explain["operationId"] != classify["operationId"]


def test_a_bundle_that_is_written_again_brings_its_own(
    explaining_bundle: Path, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    served = shutil.copytree(explaining_bundle, tmp_path / "served")
    environ = {**LIMITS, "DEITLT_MODEL": str(served), "DEITLT_EXPLAIN": "true"}
    backend = Backend.start(Settings.from_environ(environ))
    try:
        shutil.rmtree(served)
        make_bundle(served, name="plain")
        (model,) = backend.models.refresh()
        assert (model.name, model.explainer) == ("plain", None)
        shutil.rmtree(served)
        shutil.copytree(explaining_bundle, served)
        (model,) = backend.models.refresh()
        assert model.explainer is not None
        assert model.explainer.predict_one(picture(), Options(rollouts=True)).rollouts
    finally:
        backend.close()


def test_it_does_not_start_where_nothing_explains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEITLT_EXPLAIN", "true")
    monkeypatch.setenv("DEITLT_MODEL", str(DIGITS))
    monkeypatch.setenv("DEITLT_DEVICE", "cpu")
    reason = why_not()
    assert reason is not None
    assert reason.startswith("DEITLT_EXPLAIN is true and no served bundle has the variant explain")
    assert "--variants explain" in reason
    with pytest.raises(UsageError, match="DEITLT_EXPLAIN is true and DEITLT_TRITON is set"):
        Settings.from_environ({"DEITLT_EXPLAIN": "true", "DEITLT_TRITON": "grpc://localhost:1"})


def test_a_map_is_short(http: httpx.Client) -> None:
    texts = http.post(EXPLAIN, content=picture()).text.split('"rollouts":')[1]
    rollouts = json.JSONDecoder(parse_float=str).raw_decode(texts)[0]
    shares = [share for name in MAPS for row in rollouts[name] for share in row]
    assert len(shares) == 2 * 4 * 4
    assert max(map(len, shares)) <= len("0.123456")
