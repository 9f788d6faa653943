"""The Open Inference Protocol, asked by NVIDIA's own client over a socket."""

import gzip
import json
import os
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.http import InferenceServerClient as Client  # type: ignore[import-untyped]
from tritonclient.http import InferRequestedOutput
from tritonclient.utils import InferenceServerException as Failed  # type: ignore[import-untyped]

from deitlt.bundle import MANIFEST, OUTPUTS, open_bundle
from deitlt.classifier import Classifier
from deitlt.files import write_json
from deitlt.runtimes import Outputs
from tests.bundle_support import DIGITS
from tests.kserve_support import (
    GIF,
    INFER,
    MAX_IMAGES,
    SIDE,
    Server,
    as_input,
    as_objects,
    images,
    pixels_of,
)
from tests.service_support import picture


def expected(classifier: Classifier, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    rows: list[Outputs] = [classifier.runtime.run(image[None]) for image in pixels]
    return {name: np.concatenate([row.heads()[name] for row in rows]) for name in OUTPUTS}


def assert_same(result: Any, truth: dict[str, NDArray[np.float32]]) -> None:
    for name, logits in truth.items():
        answer = result.as_numpy(name)
        assert (answer.dtype, answer.shape) == (np.float32, logits.shape)
        assert answer.tobytes() == logits.tobytes()


def test_health_and_metadata(triton: Client, http: httpx.Client, classifier: Classifier) -> None:
    version = classifier.bundle.version
    assert triton.is_server_live()
    assert triton.is_server_ready()
    asked = [("digits", ""), ("digits", version), ("digits", "000000000000"), ("letters", "")]
    assert [triton.is_model_ready(*model) for model in asked] == [True, True, False, False]
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/models/digits/ready").json() == {"name": "digits", "ready": True}
    assert triton.get_server_metadata()["name"] == "deitlt"
    index = [{"name": "digits", "version": version, "state": "READY"}]
    assert triton.get_model_repository_index() == index
    metadata = triton.get_model_metadata("digits")
    assert metadata == triton.get_model_metadata("digits", version)
    assert metadata["versions"] == [version]
    tensors = {tensor.pop("name"): tensor for tensor in metadata["inputs"] + metadata["outputs"]}
    assert tensors == {
        "images": {"datatype": "UINT8", "shape": [-1, SIDE, SIDE, 3]},
        "encoded": {"datatype": "BYTES", "shape": [-1, 1]},
        **{name: {"datatype": "FP32", "shape": [-1, 10]} for name in OUTPUTS},
    }


def test_configuration(triton: Client, classifier: Classifier) -> None:
    config = triton.get_model_config("digits", classifier.bundle.version)
    assert config["max_batch_size"] == MAX_IMAGES
    kinds = {tensor["name"]: tensor["data_type"] for tensor in config["input"] + config["output"]}
    heads = dict.fromkeys(OUTPUTS, "TYPE_FP32")
    assert kinds == {"images": "TYPE_UINT8", "encoded": "TYPE_STRING", **heads}
    assert config["input"][0]["dims"] == [SIDE, SIDE, 3]


@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binaries", [(True, True), (True, False), (False, True), (False, False)])
def test_pixels_give_the_logits_of_the_runtime(
    algorithm: str | None, binaries: tuple[bool, bool], triton: Client, classifier: Classifier
) -> None:
    pixels = pixels_of(MAX_IMAGES)
    outputs = [InferRequestedOutput(name, binary_data=binaries[1]) for name in OUTPUTS]
    inputs, compression = (
        [as_input(pixels, binary=binaries[0])],
        {"request_compression_algorithm": algorithm},
    )
    result = triton.infer("digits", inputs, outputs=outputs, request_id="mine", **compression)
    assert_same(result, expected(classifier, pixels))
    answer = result.get_response()
    assert (answer["id"], answer["model_version"]) == ("mine", classifier.bundle.version)
    assert ("data" in answer["outputs"][0]) != binaries[1]


@pytest.mark.parametrize("binary", [True, False])
def test_image_files_give_the_logits_of_classify(
    binary: bool, triton: Client, http: httpx.Client, classifier: Classifier
) -> None:
    files = [picture(0), picture(1, "JPEG"), picture(2, "BMP"), GIF]
    sent = as_objects(*(files if binary else [*map(b64encode, files[:3]), GIF]))
    result = triton.infer("digits", [as_input(sent, binary=binary)])
    # Who names no output wants all of them as bytes.
    assert not [output for output in result.get_response()["outputs"] if "data" in output]
    pixels = np.stack([classifier.load_pixels(file) for file in files])
    assert_same(result, expected(classifier, pixels))
    for i, file in enumerate(files):
        answer = http.post("/v1/classify?logits=true", content=file).json()
        assert result.as_numpy("logits")[i].tolist() == answer["logits"]["logits"]


def test_nested_lists_are_the_same_as_a_flat_one(http: httpx.Client) -> None:
    numbers = pixels_of(1)
    nested, flat = (
        http.post(INFER, content=images(data=data)).json()["outputs"]
        for data in (numbers.tolist(), numbers.ravel().tolist())
    )
    assert nested == flat
    packed = gzip.compress(images(data=numbers.tolist()))
    answer = http.post(INFER, content=packed, headers={"Content-Encoding": "GZip"})
    assert answer.json()["outputs"] == flat


@pytest.mark.parametrize("binary", [True, False])
def test_best_classes(binary: bool, triton: Client, classifier: Classifier) -> None:
    pixels = pixels_of(2)
    outputs = [
        InferRequestedOutput("cls_logits", binary_data=binary, class_count=3),
        InferRequestedOutput("logits", binary_data=not binary, class_count=99),
    ]
    result = triton.infer("digits", [as_input(pixels)], outputs=outputs)
    truth = expected(classifier, pixels)
    for name, count in (("cls_logits", 3), ("logits", 10)):
        answer = result.as_numpy(name)
        assert answer.shape == (2, count)
        for texts, logits in zip(answer, truth[name], strict=True):
            parts = [(t.decode() if binary == (count == 3) else t).split(":") for t in texts]
            order = [int(index) for _, index, _ in parts]
            assert order == np.argsort(-logits, kind="stable")[:count].tolist()
            assert [np.float32(value) for value, _, _ in parts] == logits[order].tolist()
            assert [label for _, _, label in parts] == [classifier.bundle.classes[i] for i in order]


def test_many_clients_at_once(kserve: Server, classifier: Classifier) -> None:
    def ask(seed: int) -> None:
        pixels = pixels_of(1 + seed % MAX_IMAGES, seed)
        with Client(kserve.address) as client:
            assert_same(client.infer("digits", [as_input(pixels)]), expected(classifier, pixels))

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(ask, range(24)))) == 24


def test_versions_of_a_model(bundle_path: Path) -> None:
    manifest = json.loads((bundle_path / MANIFEST).read_bytes())
    del manifest["sha256"]
    manifest["created"] = "2000-01-01T00:00:00+00:00"
    digest = sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    write_json(bundle_path / MANIFEST, {**manifest, "sha256": digest})
    first, second = open_bundle(DIGITS).version, digest[:12]
    paths = os.pathsep.join([str(DIGITS), str(bundle_path)])
    with Server(DEITLT_MODEL=paths) as server, Client(server.address) as client:
        assert client.get_model_metadata("digits")["versions"] == [first, second]
        for asked, given in (("", first), (first, first), (second, second)):
            result = client.infer("digits", [as_input(pixels_of(1))], model_version=asked)
            assert result.get_response()["model_version"] == given
        with pytest.raises(Failed, match="digits in version 1;"):
            client.infer("digits", [as_input(pixels_of(1))], model_version="1")


def test_images_are_counted(triton: Client, http: httpx.Client) -> None:
    def counted(name: str) -> float:
        lines = http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    names = ("deitlt_images_per_request_sum", "deitlt_predictions_total", "deitlt_decode_seconds_c")
    before = [counted(name) for name in names]
    triton.infer("digits", [as_input(pixels_of(3))])
    assert [counted(name) - old for name, old in zip(names, before, strict=True)] == [3, 3, 3]


def test_requests_are_counted_by_route(http: httpx.Client) -> None:
    model = "/v2/models/digits"
    for path in ("/v2/health/live", f"{model}/ready", f"{model}/versions/0/ready", "/v2/nothing"):
        http.get(path)
    counted = http.get("/metrics").text
    for route, status in (
        ("/v2/health/live", 200),
        ("/v2/models/{name}/ready", 200),
        ("/v2/models/{name}/versions/{version}/ready", 404),
        ("unmatched", 404),
    ):
        assert f'deitlt_requests_total{{route="{route}",status="{status}"}}' in counted
