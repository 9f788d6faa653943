"""The rest of the HTTP API: JSON bodies, logits, timing, counters, keys, other origins, the log."""

import asyncio
import base64
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from deitlt.classifier import Classifier
from deitlt.errors import DecodeFailed, UsageError
from serving import answers
from serving.backend import Backend
from serving.frontend import Frontend
from serving.service import LongTailClassifier
from serving.settings import Settings
from tests.service_support import (
    CLASSIFY,
    LIMITS,
    as_files,
    error_of,
    picture,
    plain,
    without_envelope,
)

MODEL = ("model", "digits")
Counts = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@contextmanager
def service(settings: Mapping[str, str] | None = None) -> Iterator[TestClient]:
    """The routes with these settings, over the digits bundle."""
    backend = Backend.start(Settings.from_environ({**LIMITS, **(settings or {})}))
    frontend = Frontend()
    frontend.attach(backend)
    try:
        with TestClient(frontend) as client:
            yield client
    finally:
        backend.close()


def text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def counts(client: TestClient) -> Counts:
    """All samples, by name and labels, as Prometheus' own parser reads them."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(response.text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_base64_is_answered_like_the_bytes(client: TestClient, prefix: str) -> None:
    one = client.post(CLASSIFY, json={"image": prefix + text(picture())}).json()
    raw = client.post(CLASSIFY, content=picture()).json()
    assert {**one, "request_id": 0} == {**raw, "request_id": 0}


def test_several_in_json_are_a_list_and_a_bad_one_fails_alone(client: TestClient) -> None:
    body = {"images": [text(picture(1)), text(b"no image"), text(picture(2)), "not base64!"]}
    results = client.post(CLASSIFY, json=body).json()["results"]
    assert results[1]["error"]["code"] == "unsupported_image"
    assert results[3]["error"]["code"] == "decode_failed"
    assert results[3]["error"]["message"] == "image 4 is not base64 in one line"
    files = client.post(CLASSIFY, files=as_files(picture(1), picture(2))).json()["results"]
    assert [results[0]["top_k"], results[2]["top_k"]] == [file["top_k"] for file in files]


def test_none_of_several_in_json_is_base64(client: TestClient) -> None:
    results = client.post(CLASSIFY, json={"images": ["!", "?"]}).json()["results"]
    assert [result["error"]["code"] for result in results] == ["decode_failed"] * 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 20_000,
        b'{"image": 3}',
        b'{"image": "not base64!"}',
        b'{"image": "\\u00e9"}',
        b'{"images": []}',
        b'{"images": "x"}',
        b'{"images": [1]}',
        b'{"image": "x", "images": ["x"]}',
        b'{"url": "http://127.0.0.1/"}',
        json.dumps({"image": text(picture()), "top_k": 1}).encode(),
        json.dumps({"images": ["aGk="] * 5}).encode(),
    ],
)
def test_another_json_body_is_400(client: TestClient, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    error_of(client.post(CLASSIFY, content=body, headers=headers), 400, "bad_request")


def test_logits_are_those_of_the_graph(client: TestClient, classifier: Classifier) -> None:
    answer = client.post(f"{CLASSIFY}?logits=true&blend=1", content=picture()).json()
    outputs = classifier.runtime.run(classifier.load_pixels(picture())[None])
    assert outputs.cls_logits is not None
    wanted = {**outputs.heads(), "logits": outputs.cls_logits}
    assert set(answer["logits"]) == set(wanted)
    for name, logits in wanted.items():
        assert np.array_equal(np.array(answer["logits"][name], np.float32), logits[0])


@pytest.mark.parametrize("route", ["/v1/classify", "/v2/models/digits/infer"])
def test_an_answer_lists_no_more_than_fits(
    route: str, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "MAX_SCORES", 60)  # of ten classes and three heads

    def ask(number: int, **fields: Any) -> Any:
        images = [text(picture())] * number
        if route == CLASSIFY:
            return client.post(route, params=fields, json={"images": images})
        tensor = {"name": "encoded", "datatype": "BYTES", "shape": [number], "data": images}
        return client.post(route, json={"inputs": [tensor], "parameters": fields})

    whole: dict[str, Any] = {"experts": "true", "top_k": 99, "logits": "true"}
    more: dict[str, Any] = {"experts": "true"}
    most = 1
    if route != CLASSIFY:  # logits of all heads, as texts or as bytes
        whole, most, more = {}, 2, {"binary_data_output": True}
    assert ask(most, **whole).status_code == 200
    refused = ask(most + 1, **whole)
    assert refused.status_code == 400
    assert "more than 60; send fewer images" in refused.text
    assert ask(4, **more).status_code == 200
    monkeypatch.setattr(answers, "MAX_SCORES", 59)
    assert ask(most, **whole).status_code == 400


def test_others_have_a_turn_while_a_long_answer_is_written() -> None:
    turns: list[int] = []

    async def write() -> bytes:
        async def other() -> None:
            for turn in range(9):
                turns.append(turn)
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        model: Any = None  # of errors nothing is asked of it
        body = await answers.results_body([DecodeFailed("no")] * 4, model, "id")
        task.cancel()
        return body

    assert len(json.loads(asyncio.run(write()))["results"]) == 4
    assert len(turns) == 3


def test_answers_say_who_answered_and_where_the_time_went(client: TestClient) -> None:
    response = client.post(CLASSIFY, content=picture())
    model = response.json()["model"]
    assert response.headers["x-model"] == f"{model['name']}/{model['version']}"
    parts = [
        float(response.headers[f"x-{part}-time-ms"]) for part in ("queue", "decode", "inference")
    ]
    assert min(parts) >= 0
    assert parts[2] > 0
    assert sum(parts) <= float(response.headers["x-total-time-ms"]) + 0.2
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("query", ["model=digits", "model=digits&version={}", "version={}"])
def test_a_model_can_be_named(client: TestClient, query: str, classifier: Classifier) -> None:
    url = f"{CLASSIFY}?{query.format(classifier.bundle.version)}"
    assert client.post(url, content=picture()).status_code == 200


@pytest.mark.parametrize("query", ["model=birds", "model=digits&version=1", "version="])
def test_a_model_that_is_not_there_is_404(client: TestClient, query: str) -> None:
    text = error_of(client.post(f"{CLASSIFY}?{query}", content=picture()), 404, "unknown_model")
    assert "digits" in text
    error_of(client.get("/v1/models/birds"), 404, "unknown_model")


@pytest.mark.parametrize("query", ["vresion=1", "version=1&version=2"])
def test_a_card_of_another_version_is_not_given_by_mistake(client: TestClient, query: str) -> None:
    error_of(client.get(f"/v1/models/digits?{query}"), 400, "bad_request")


def test_counters_count() -> None:
    with service() as client:
        answers = [client.post(CLASSIFY, content=picture(seed)).json() for seed in range(6)]
        client.post(CLASSIFY, files=as_files(picture(0), b"bad"))
        client.post(CLASSIFY, content=b"bad")
        for number in range(5):
            client.get(f"/scan/{number}")
        seen = counts(client)
    assert seen["deitlt_requests_total", (("route", "/v1/classify"), ("status", "200"))] == 7
    assert seen["deitlt_requests_total", (("route", "unmatched"), ("status", "404"))] == 5
    assert seen["deitlt_refused_total", (("code", "unsupported_image"),)] == 2
    assert seen["deitlt_refused_total", (("code", "not_found"),)] == 5
    labels: tuple[tuple[str, str], ...]
    for stage, labels in (("queue_wait", ()), ("decode", ()), ("inference", (MODEL,))):
        assert seen[f"deitlt_{stage}_seconds_count", labels] == 7
    assert seen["deitlt_images_per_request_sum", ()] == 9
    assert seen["deitlt_queue_waiting", ()] == 0
    assert seen["deitlt_bundles_refused", ()] == 0
    assert seen["process_resident_memory_bytes", ()] > 0
    predictions = sum(n for (name, _), n in seen.items() if name == "deitlt_predictions_total")
    assert predictions == 7
    unlike = [a for a in [*answers, answers[0]] if not a["experts_agree"]]
    assert unlike, "pictures on which the experts differ make this test worth its name"
    version = answers[0]["model"]["version"]
    for group in ("head", "mid", "tail"):
        labels = (("group", group), MODEL, ("version", version))
        wanted = sum(a["group"] == group for a in unlike)
        assert seen.get(("deitlt_expert_disagreements_total", labels), 0) == wanted
    assert not any("scan" in str(labels) for _, labels in seen)


def test_a_group_whose_experts_agree_has_a_nought_to_divide_by(classifier: Classifier) -> None:
    images = map(picture, range(100))
    agreed = next(i for i in images if classifier.predict([i])[0].experts_agree)
    with service() as client:
        answer = client.post(CLASSIFY, content=agreed).json()
        seen = counts(client)
    about = {"group": answer["group"], "model": "digits", "version": answer["model"]["version"]}
    assert seen["deitlt_predictions_total", tuple(about.items())] == 1
    assert seen["deitlt_expert_disagreements_total", tuple(about.items())] == 0


def test_a_key_is_asked_for() -> None:
    with service({"DEITLT_API_KEY": "sesame"}) as client:
        for path in (CLASSIFY, "/v1/models", "/metrics", "/nothing"):
            response = client.post(path) if path == CLASSIFY else client.get(path)
            error_of(response, 401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
        for name, value in (
            ("X-API-Key", "sesam"),
            ("X-API-Key", "sesames"),
            ("Authorization", "Bearer"),
            ("Authorization", "Basic sesame"),
            ("Authorization", "sesame"),
            ("X-API-Key", "é"),
        ):
            response = client.get("/v1/models", headers=[(name.encode(), value.encode())])
            error_of(response, 401, "unauthorized")
        for name, value in (
            ("X-API-Key", "sesame"),
            ("Authorization", "Bearer sesame"),
            ("Authorization", "bearer sesame"),  # names of schemes are in either case (RFC 9110)
        ):
            given = {name: value}
            assert client.post(CLASSIFY, content=picture(), headers=given).status_code == 200
        for path in ("/", "/docs", "/openapi.json"):
            assert client.get(path, headers={"Accept": "text/html"}).status_code == 200
            assert "digits" not in client.get(path).text, "it tells of the model"


def test_other_origins_only_if_named(client: TestClient) -> None:
    origin = {"Origin": "https://app.example"}
    assert "access-control-allow-origin" not in client.get("/v1/models", headers=origin).headers
    with service({"DEITLT_CORS_ORIGINS": "https://app.example"}) as open_to_one:
        answer = open_to_one.get("/v1/models", headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        other = open_to_one.get("/v1/models", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_other_origins_may_read_refusals() -> None:
    origin = {"Origin": "https://app.example"}
    settings = {"DEITLT_CORS_ORIGINS": "https://app.example", "DEITLT_API_KEY": "sesame"}
    with service(settings) as client:
        for headers, ending, status in (({}, False, 401), ({"X-API-Key": "sesame"}, True, 503)):
            cast(Frontend, client.app).drain.begun = ending
            answer = client.get("/v1/models", headers={**origin, **headers})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "https://app.example"
            assert answer.headers["x-request-id"]
            # Before its page may send the key, a browser asks without it.
            wish = {"Access-Control-Request-Method": "POST"}
            wish["Access-Control-Request-Headers"] = "x-api-key"
            asked = client.options(CLASSIFY, headers={**origin, **wish})
            assert asked.status_code == 200
            assert asked.headers["access-control-allow-headers"] == "x-api-key"


def test_the_log_has_a_line_of_json_a_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="deitlt.access")
    with service({"DEITLT_ACCESS_LOG": "true"}) as client:
        client.post(CLASSIFY, content=b"bad", headers={"X-Request-ID": "abc"})
    lines = [json.loads(r.getMessage()) for r in caplog.records if r.name == "deitlt.access"]
    (line,) = lines
    wanted = {"request_id": "abc", "method": "POST", "path": CLASSIFY, "status": 415}
    assert {key: line[key] for key in wanted} == wanted
    assert line["error"] == "unsupported_image"
    assert line["ms"] > 0


def test_several_bundles_side_by_side(
    tmp_path: Path, make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("first", "Käfer 甲虫")
    paths = [make_bundle(tmp_path / name, name=name) for name in names]
    with service({"DEITLT_MODEL": ":".join(map(str, paths))}) as client:
        models: list[dict[str, Any]] = client.get("/v1/models").json()["models"]
        assert [(m["name"], m["default"]) for m in models] == [(names[0], True), (names[1], False)]
        assert client.post(CLASSIFY, content=picture()).json()["model"]["name"] == "first"
        answer = client.post(CLASSIFY, params={"model": names[1]}, content=picture())
        version = models[1]["version"]
        assert answer.json()["model"] == {"name": names[1], "version": version}
        assert unquote(answer.headers["x-model"]) == f"{names[1]}/{version}"


def test_the_service_answers_as_an_object(
    monkeypatch: pytest.MonkeyPatch, classifier: Classifier
) -> None:
    for name, value in LIMITS.items():
        monkeypatch.setenv(name, value)
    made: Any = LongTailClassifier  # BentoML's decorator has no types
    instance = made()
    try:
        given = asyncio.run(instance.classify(image=text(picture()), top_k=2))
        answer = json.loads(json.dumps(given))
        (wanted,) = classifier.predict([picture()], top_k=2)
        assert without_envelope(answer) == plain(wanted)
        with pytest.raises(UsageError, match="image is not base64"):
            asyncio.run(instance.classify(image="!"))
    finally:
        instance.close()
