"""A real BentoML server: its own clients, the key, the access log, a bundle replaced under load."""

import base64
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bentoml
import httpx
import pytest
from bentoml.exceptions import BentoMLException

from deitlt.bundle import open_bundle
from deitlt.classifier import Classifier
from tests.serve_support import serving
from tests.service_support import (
    CLASSIFY,
    PATIENCE_S,
    error_of,
    picture,
    plain,
    without_envelope,
)

SDK = "/sdk/classify"
KEY = {"X-API-Key": "sesame"}


class Site:
    """A running server, its bundle folder and its log."""

    def __init__(self, url: str, bundle: Path, log: Path) -> None:
        self.url, self.bundle, self.log = url, bundle, log

    def post(self, path: str, **options: object) -> httpx.Response:
        return httpx.post(self.url + path, headers=KEY, timeout=PATIENCE_S, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, make_bundle: Callable[..., Path]
) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("serve")
    bundle = make_bundle(home / "bundle", name="first")
    settings: dict[str, Any] = {
        "DEITLT_MODEL": str(bundle),
        "DEITLT_API_KEY": "sesame",
        "DEITLT_ACCESS_LOG": "true",
        "DEITLT_RELOAD_S": "0.1",
    }
    with serving(home, **settings) as (_, port):
        yield Site(f"http://127.0.0.1:{port}", bundle, home / "serve.log")


def text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def line_of(site: Site, request_id: str) -> Any:
    """The access log's line of a request."""
    for _ in range(PATIENCE_S * 10):
        lines = [line for line in site.log.read_text().splitlines() if request_id in line]
        if lines:
            break
        time.sleep(0.1)
    (line,) = lines
    return json.loads(line)


def test_bentomls_own_client_gets_the_same_answer(site: Site, classifier: Classifier) -> None:
    (wanted,) = classifier.predict([picture()], experts=True, top_k=3)
    with bentoml.SyncHTTPClient(site.url, token=KEY["X-API-Key"]) as client:
        answer = client.classify(image=text(picture()), experts=True, top_k=3)
        assert without_envelope(answer) == plain(wanted)
        for image, status in (("!", 400), (text(b"no image"), 415)):
            with pytest.raises(BentoMLException) as caught:
                client.classify(image=image)
            assert caught.value.error_code == status


def test_the_sdk_route_is_one_of_ours(site: Site) -> None:
    error_of(httpx.post(site.url + SDK, json={"image": ""}), 401, "unauthorized")
    files = {"image": ("a.png", picture())}
    error_of(site.post(SDK, files=files), 415, "unsupported_image")
    # BentoML would fetch it.
    url = {"image": "http://127.0.0.1:9/"}
    error_of(site.post(SDK, data=url), 415, "unsupported_image")
    error_of(site.post(SDK, json=url), 400, "bad_request")
    error_of(site.post(SDK, json={"image": "A" * 300_000}), 413, "too_large")
    error_of(site.post(SDK, json={"image": text(b"no image")}), 415, "unsupported_image")
    for wrong in ('{"image": 3}', "{}", "[]", "{", '{"image": "", "top_k": true}', '{"url": "a"}'):
        as_json = {**KEY, "Content-Type": "application/json"}
        answer = httpx.post(site.url + SDK, content=wrong, headers=as_json)
        error_of(answer, 400, "bad_request")
    error_of(httpx.get(site.url + SDK, headers=KEY), 405, "method_not_allowed")
    error_of(site.post("/sdk/other", json={}), 404, "not_found")
    answer = site.post(SDK, json={"image": text(picture())})
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert float(answer.headers["x-inference-time-ms"]) > 0
    counters = httpx.get(f"{site.url}/metrics", headers=KEY).text
    assert f'deitlt_requests_total{{route="{SDK}",status="200"}}' in counters
    assert line_of(site, answer.headers["x-request-id"])["path"] == SDK
    assert "Traceback" not in site.log.read_text()


def test_the_key_is_asked_for_and_health_is_not(site: Site) -> None:
    error_of(httpx.post(site.url + CLASSIFY, content=picture()), 401, "unauthorized")
    assert site.post(CLASSIFY, content=picture()).status_code == 200
    for path in ("/livez", "/readyz", "/docs", "/"):
        assert httpx.get(site.url + path, timeout=PATIENCE_S).status_code == 200


def test_the_access_log_is_json_on_standard_output(site: Site) -> None:
    answer = site.post(f"{CLASSIFY}?top_k=0", content=picture())
    request_id = answer.headers["x-request-id"]
    noted = line_of(site, request_id)
    assert (noted["status"], noted["error"]) == (400, "bad_request")
    assert (noted["path"], noted["client"]) == (CLASSIFY, "127.0.0.1")


def test_the_access_log_has_the_client_of_a_proxy(site: Site) -> None:
    headers = {"X-Request-ID": "forwarded", "X-Forwarded-For": "192.0.2.7"}
    httpx.get(site.url, headers={**KEY, **headers}, timeout=PATIENCE_S)
    assert line_of(site, "forwarded")["client"] == "192.0.2.7"


def test_a_new_version_takes_over_without_a_dropped_request(
    site: Site, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    seen: list[tuple[int, str]] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            answer = site.post(CLASSIFY, content=picture())
            seen.append((answer.status_code, answer.json().get("model", {}).get("name", "")))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        new = make_bundle(site.bundle.with_name("new"), name="second")
        while not seen:
            time.sleep(0.01)
        site.bundle.rename(tmp_path / "old")
        new.rename(site.bundle)
        for _ in range(PATIENCE_S * 20):
            if seen and seen[-1][1] == "second":
                break
            time.sleep(0.05)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in seen} == {200}
    assert list(dict.fromkeys(name for _, name in seen)) == ["first", "second"]
    models = httpx.get(f"{site.url}/v1/models", headers=KEY).json()["models"]
    assert [m["version"] for m in models] == [open_bundle(site.bundle).version]
    assert f"second: version {models[0]['version']} replaces" in site.log.read_text()
    shutil.rmtree(tmp_path / "old")
