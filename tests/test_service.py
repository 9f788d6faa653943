"""Answers of the HTTP service, in process: what `predict` says, however the images are sent."""

import json
import re

import pytest
from starlette.testclient import TestClient

from deitlt.classifier import Classifier
from serving.openapi import PATHS
from tests.service_support import CLASSIFY, as_files, error_of, picture, plain, without_envelope


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("content_type", ["image/jpeg", "application/octet-stream", None])
def test_raw_image_is_answered_like_predict(
    client: TestClient, classifier: Classifier, kind: str, content_type: str | None
) -> None:
    data = picture(kind=kind)
    headers = {"Content-Type": content_type} if content_type else {}
    response = client.post(CLASSIFY, content=data, headers=headers)
    assert response.status_code == 200
    result = response.json()
    assert without_envelope(result) == plain(classifier.predict([data])[0])
    assert result["model"] == {"name": classifier.bundle.name, "version": classifier.bundle.version}
    assert result["request_id"] == response.headers["x-request-id"]
    assert float(response.headers["x-total-time-ms"]) > 0


def test_options_change_the_answer_as_in_predict(
    client: TestClient, classifier: Classifier
) -> None:
    data = picture(3)
    response = client.post(f"{CLASSIFY}?experts=true&top_k=2&blend=0.9", content=data)
    result = without_envelope(response.json())
    assert result == plain(classifier.predict([data], experts=True, top_k=2, blend=0.9)[0])
    assert len(result["top_k"]) == len(result["experts"]["cls"]) == 2
    assert result["probability"] != client.post(CLASSIFY, content=data).json()["probability"]
    assert "experts" not in client.post(f"{CLASSIFY}?experts=false", content=data).json()


@pytest.mark.parametrize("blend", ["1", "0.9", ".9", "9e-1", "0", "-0.0", "1e-07"])
def test_blend_is_read_however_a_client_writes_it(
    client: TestClient, classifier: Classifier, blend: str
) -> None:
    response = client.post(f"{CLASSIFY}?blend={blend}", content=picture(3))
    wanted = classifier.predict([picture(3)], blend=float(blend))[0]
    assert without_envelope(response.json()) == plain(wanted)


def test_more_top_k_than_classes_lists_all(client: TestClient, classifier: Classifier) -> None:
    response = client.post(f"{CLASSIFY}?top_k={10**30}", content=picture())
    assert len(response.json()["top_k"]) == len(classifier.bundle.classes)


def test_a_form_with_one_file_is_one_result(client: TestClient, classifier: Classifier) -> None:
    data = picture(1)
    response = client.post(CLASSIFY, files={"whatever": data})
    assert without_envelope(response.json()) == plain(classifier.predict([data])[0])


def test_several_images_keep_their_order_and_a_bad_one_fails_alone(
    client: TestClient, classifier: Classifier
) -> None:
    good = [picture(1), picture(2)]
    files = as_files(good[0], b"not an image", picture()[:100], good[1])
    response = client.post(f"{CLASSIFY}?top_k=1", files=files)
    assert response.status_code == 200
    first, foreign, damaged, last = response.json()["results"]
    expected = [plain(prediction) for prediction in classifier.predict(good, top_k=1)]
    for result, prediction in zip((first, last), expected, strict=True):
        assert result["index"] == prediction["index"]
        assert result["probability"] == pytest.approx(prediction["probability"], rel=1e-5)
    assert foreign["error"]["code"] == "unsupported_image"
    assert damaged["error"]["code"] == "decode_failed"
    request_id = response.headers["x-request-id"]
    assert {first["request_id"], foreign["error"]["request_id"]} == {request_id}


def test_all_images_bad_is_still_a_list(client: TestClient) -> None:
    response = client.post(CLASSIFY, files=as_files(b"one", b"two"))
    assert response.status_code == 200
    assert ["error" in result for result in response.json()["results"]] == [True, True]


def test_the_card_says_what_is_served(client: TestClient, classifier: Classifier) -> None:
    bundle = classifier.bundle
    card = {
        "name": bundle.name,
        "version": bundle.version,
        "default": True,
        "classes": bundle.classes,
        "train_counts": bundle.train_counts,
        "groups": bundle.groups(),
        "preprocess": json.loads(json.dumps(bundle.preprocess.to_dict())),
        "artefacts": bundle.manifest["artefacts"],
        "variant": "float32",
        "provider": "CPUExecutionProvider",
        "explain": False,
    }
    assert client.get("/v1/models").json() == {"models": [card]}
    assert client.get("/v1/models/digits").json() == card
    assert client.get(f"/v1/models/digits?version={bundle.version}").json() == card


def test_index_lists_routes_that_exist_and_loads_nothing(client: TestClient) -> None:
    response = client.get("/")
    assert response.headers["content-type"] == "application/json"
    routes, version = response.json()["routes"], response.json()["model"]["version"]
    assert len(routes) == sum(map(len, PATHS.values()))
    assert "://" not in response.text
    for route in routes:
        filled = route.replace("{name}", "digits").replace("{version}", version)
        method, path = filled.split()
        response = client.request(method, path)
        if path == "/v1/explain":  # it is there, and says that it is off
            assert "DEITLT_EXPLAIN" in response.json()["error"]["message"]
        else:
            assert response.status_code not in (404, 405), route


@pytest.mark.parametrize("path", ["/docs.json", "/static_content/index.css"])
def test_bentoml_pages_are_out_of_reach(client: TestClient, path: str) -> None:
    error_of(client.get(path), 404, "not_found")


@pytest.mark.parametrize("given", ["abc-123", "a" * 128, "1f:2.3_4/5+6=="])
def test_a_sane_request_id_is_kept(client: TestClient, given: str) -> None:
    response = client.get("/", headers={"X-Request-ID": given})
    assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a" * 129, "two words", '"><script>', "é"])
def test_another_request_id_is_replaced(client: TestClient, given: str) -> None:
    response = client.get("/", headers=[(b"X-Request-ID", given.encode())])
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])
