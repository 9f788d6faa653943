"""The HTTP service: its routes in process, and a real `bentoml serve` from start to shutdown."""

import asyncio
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from starlette.types import Message

from deitlt.bundle import default_bundle
from deitlt.classifier import Classifier, ImageLike, Options, Prediction, load
from deitlt.engine import Engine, usable_cores
from deitlt.errors import ImageError, Overloaded, UsageError
from serving.routes import INDEX, Frontend
from serving.service import LongTailClassifier
from serving.settings import Settings

CHECKOUT = Path(__file__).resolve().parents[1]
BENTOML = str(Path(sys.executable).with_name("bentoml"))
MAX_BYTES = 100_000
LIMITS = {
    "DEITLT_DEVICE": "cpu",
    "DEITLT_WORKERS": "2",
    "DEITLT_MAX_BYTES": str(MAX_BYTES),
    "DEITLT_MAX_PIXELS": "1000000",
    "DEITLT_MAX_IMAGES": "4",
}
CLASSIFY = "/v1/classify"
PATIENCE_S = 30


def picture(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = (24, 20)) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


def wide_picture() -> bytes:
    """More pixels than `LIMITS` allows in few bytes."""
    buffer = io.BytesIO()
    Image.new("1", (2000, 1000)).save(buffer, "PNG")
    return buffer.getvalue()


def as_files(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [(f"field{i}", (f"{i}.png", image)) for i, image in enumerate(images)]


class Answer(Protocol):
    """A response of `httpx` or of Starlette's test client."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def text(self) -> str: ...
    def json(self) -> Any: ...


def error_of(response: Answer, status: int, code: str) -> str:
    """The message of an error answer, after checking everything else about it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (error,) = response.json().values()
    assert error["code"] == code
    assert error["request_id"] == response.headers["x-request-id"]
    assert set(error) == {"code", "message", "request_id"}
    message: str = error["message"]
    assert message
    assert "\n" not in message
    return message


def plain(prediction: Prediction) -> Any:
    return json.loads(json.dumps(prediction.to_dict()))


def without_envelope(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in ("model", "request_id")}


@pytest.fixture(scope="module")
def local() -> Classifier:
    """What the service should answer like."""
    return load(device="cpu", num_threads=1)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """The BentoML service with `LIMITS`, in process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("DEITLT_")]:
            patch.delenv(name)
        for name, value in LIMITS.items():
            patch.setenv(name, value)
        service: Any = LongTailClassifier  # BentoML's decorator has no types
        with TestClient(service.to_asgi()) as client:
            yield client


class HeldClassifier(Classifier):
    """Begins on an image at once, but finishes none before `release` is set."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__(classifier.bundle, classifier.runtime)
        self.begun = threading.Event()
        self.release = threading.Event()
        self.num_begun = 0

    def predict_each(
        self, images: Sequence[ImageLike], options: Options = Options()
    ) -> list[Prediction | ImageError]:
        self.num_begun += 1
        self.begun.set()
        assert self.release.wait(PATIENCE_S)
        return super().predict_each(images, options)


class Held:
    """The routes in front of a `HeldClassifier`."""

    def __init__(self, classifier: Classifier, queue_size: int, timeout_s: float) -> None:
        self.classifier = HeldClassifier(classifier)
        self.engine = Engine(self.classifier, num_workers=1, queue_size=queue_size)
        self.frontend = Frontend()
        limits = {**LIMITS, "DEITLT_TIMEOUT_S": str(timeout_s)}
        self.frontend.attach(self.engine, Settings.from_environ(limits))
        self.client = TestClient(self.frontend, raise_server_exceptions=False)


@pytest.fixture
def hold(local: Classifier) -> Iterator[Callable[..., Held]]:
    """Makes a `Held`, and lets go of it after the test."""
    with ExitStack() as stack:

        def make(queue_size: int = 0, timeout_s: float = PATIENCE_S) -> Held:
            held = Held(local, queue_size, timeout_s)
            stack.callback(held.engine.close)
            stack.callback(held.classifier.release.set)
            stack.enter_context(held.client)
            return held

        yield make


# ------------------------------------------------------------------ answers


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("content_type", ["image/jpeg", "application/octet-stream", None])
def test_raw_image_is_answered_like_predict(
    client: TestClient, local: Classifier, kind: str, content_type: str | None
) -> None:
    data = picture(kind=kind)
    headers = {"Content-Type": content_type} if content_type else {}
    response = client.post(CLASSIFY, content=data, headers=headers)
    assert response.status_code == 200
    result = response.json()
    assert without_envelope(result) == plain(local.predict([data])[0])
    assert result["model"] == {"name": local.bundle.name, "version": local.bundle.version}
    assert result["request_id"] == response.headers["x-request-id"]
    assert float(response.headers["x-total-time-ms"]) > 0


def test_options_change_the_answer_as_in_predict(client: TestClient, local: Classifier) -> None:
    data = picture(3)
    response = client.post(f"{CLASSIFY}?experts=true&top_k=2&blend=0.9", content=data)
    result = without_envelope(response.json())
    assert result == plain(local.predict([data], experts=True, top_k=2, blend=0.9)[0])
    assert len(result["top_k"]) == len(result["experts"]["cls"]) == 2
    assert result["probability"] != client.post(CLASSIFY, content=data).json()["probability"]
    assert "experts" not in client.post(f"{CLASSIFY}?experts=false", content=data).json()


def test_more_top_k_than_classes_lists_all(client: TestClient, local: Classifier) -> None:
    response = client.post(f"{CLASSIFY}?top_k={10**30}", content=picture())
    assert len(response.json()["top_k"]) == len(local.bundle.classes)


def test_a_form_with_one_file_is_one_result(client: TestClient, local: Classifier) -> None:
    data = picture(1)
    response = client.post(CLASSIFY, files={"whatever": data})
    assert without_envelope(response.json()) == plain(local.predict([data])[0])


def test_several_images_keep_their_order_and_a_bad_one_fails_alone(
    client: TestClient, local: Classifier
) -> None:
    good = [picture(1), picture(2)]
    files = as_files(good[0], b"not an image", picture()[:100], good[1])
    response = client.post(f"{CLASSIFY}?top_k=1", files=files)
    assert response.status_code == 200
    first, foreign, damaged, last = response.json()["results"]
    expected = [plain(prediction) for prediction in local.predict(good, top_k=1)]
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


def test_model_says_what_is_served(client: TestClient, local: Classifier) -> None:
    bundle = local.bundle
    assert client.get("/v1/model").json() == {
        "name": bundle.name,
        "version": bundle.version,
        "classes": bundle.classes,
        "train_counts": bundle.train_counts,
        "groups": bundle.groups(),
        "preprocess": json.loads(json.dumps(bundle.preprocess.to_dict())),
        "provider": "CPUExecutionProvider",
    }


def test_index_lists_routes_that_exist_and_loads_nothing(client: TestClient) -> None:
    response = client.get("/")
    assert response.headers["content-type"] == "application/json"
    assert response.json()["routes"] == INDEX
    assert "://" not in response.text
    for route in INDEX:
        method, path = route.split()
        assert client.request(method, path).status_code not in (404, 405), route


@pytest.mark.parametrize("path", ["/docs.json", "/static_content/index.css", "/metrics"])
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


# ------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "query",
    [
        *("experts=yes", "experts=", "top_k=0", "top_k=-1", "top_k=many", "top_k=1.5", "top_k="),
        *("blend=1.1", "blend=-0.1", "blend=nan", "blend=inf", "blend=half", "topk=3", "%00=%ff"),
        f"top_k={'9' * 5000}",
    ],
)
def test_a_wrong_option_is_400(client: TestClient, query: str) -> None:
    message = error_of(client.post(f"{CLASSIFY}?{query}", content=picture()), 400, "bad_request")
    assert len(message) < 200


def test_an_empty_body_is_400(client: TestClient) -> None:
    message = error_of(client.post(CLASSIFY), 400, "bad_request")
    assert "no body" in message


MULTIPART = {"Content-Type": "multipart/form-data; boundary=B"}
FILE_PART = b'--B\r\nContent-Disposition: form-data; name="a"; filename="a.png"\r\n\r\n'


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (FILE_PART + b"data\r\n--B--", "multipart/form-data", "boundary"),
        (FILE_PART + b"data\r\n--B--", f"multipart/form-data; boundary={'B' * 999}", "malformed"),
        (b"no form at all", MULTIPART["Content-Type"], "malformed"),
        (FILE_PART + b"data", MULTIPART["Content-Type"], "closing boundary"),
        (FILE_PART + b"data\r\n--B\r\n", MULTIPART["Content-Type"], "closing boundary"),
        (b"--B--\r\n", MULTIPART["Content-Type"], "no file"),
        (b"", MULTIPART["Content-Type"], "closing boundary"),
        (b"--B\r\n\r\ndata\r\n--B--", MULTIPART["Content-Type"], "not a file"),
    ],
)
def test_a_malformed_form_is_400(
    client: TestClient, body: bytes, content_type: str, reason: str
) -> None:
    response = client.post(CLASSIFY, content=body, headers={"Content-Type": content_type})
    assert reason in error_of(response, 400, "bad_request")


def test_a_url_is_never_fetched(client: TestClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/image.png"
        files = [("image", (None, url.encode()))]
        error_of(client.post(CLASSIFY, files=files), 400, "bad_request")
        error_of(client.post(f"{CLASSIFY}?url={url}", content=picture()), 400, "bad_request")
        error_of(client.post(CLASSIFY, content=url.encode()), 415, "unsupported_image")
        with pytest.raises(BlockingIOError):  # nobody came
            listener.accept()


def test_too_many_images_are_400(client: TestClient) -> None:
    response = client.post(CLASSIFY, files=as_files(*[picture()] * 5))
    assert "more than 4 images" in error_of(response, 400, "bad_request")


@pytest.mark.parametrize("path", ["/nothing", "/v1", f"{CLASSIFY}/", "/v1/model/x", "/%2e%2e/x"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_unknown_path_is_404(client: TestClient, method: str, path: str) -> None:
    error_of(client.request(method, path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", CLASSIFY, {"POST"}), ("PUT", CLASSIFY, {"POST"}), ("POST", "/", {"GET", "HEAD"})],
)
def test_a_wrong_method_is_405(
    client: TestClient, method: str, path: str, allowed: set[str]
) -> None:
    response = client.request(method, path)
    error_of(response, 405, "method_not_allowed")
    assert set(response.headers["allow"].split(", ")) == allowed


def test_too_many_bytes_are_413(client: TestClient) -> None:
    body = bytes(MAX_BYTES + 1)
    assert str(MAX_BYTES) in error_of(client.post(CLASSIFY, content=body), 413, "too_large")
    error_of(client.post(CLASSIFY, files={"a": body}), 413, "too_large")
    at_the_limit = client.post(CLASSIFY, content=body[:-1])
    error_of(at_the_limit, 415, "unsupported_image")


def test_too_many_pixels_are_413(client: TestClient) -> None:
    message = error_of(client.post(CLASSIFY, content=wide_picture()), 413, "too_large")
    assert "2000 x 1000" in message


@pytest.mark.parametrize("content_type", ["text/html", "application/json", "multipart/mixed", "x"])
def test_another_content_type_is_415(client: TestClient, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    response = client.post(CLASSIFY, content=picture(), headers=headers)
    assert content_type in error_of(response, 415, "unsupported_image")


def test_bytes_of_no_image_are_415(client: TestClient) -> None:
    error_of(client.post(CLASSIFY, content=b"<svg/>"), 415, "unsupported_image")
    error_of(client.post(CLASSIFY, files={"a": b"<svg/>"}), 415, "unsupported_image")


def test_a_damaged_image_is_422(client: TestClient) -> None:
    error_of(client.post(CLASSIFY, content=picture()[:-200]), 422, "decode_failed")


def test_no_form_gives_a_500(client: TestClient) -> None:
    generator = random.Random(0)
    form = FILE_PART + picture() + b"\r\n" + FILE_PART + picture(1) + b"\r\n--B--\r\n"
    content_type = b'multipart/form-data; boundary="B"; charset=utf-8'
    for _ in range(200):
        body, header = bytearray(form), bytearray(content_type)
        for _ in range(generator.randrange(4)):
            start = generator.randrange(len(body))
            body[start : start + generator.randrange(3)] = generator.randbytes(2)
        if generator.random() < 0.5:
            header[generator.randrange(19, len(header))] = generator.choice(b"\"\\;*=%\x80 'B")
        headers = [(b"Content-Type", bytes(header))]
        response = client.post(CLASSIFY, content=bytes(body), headers=headers)
        assert response.status_code in (200, 400, 415, 422), (response.text, header, body)


def test_a_full_queue_is_429_and_does_not_block_the_others(hold: Callable[..., Held]) -> None:
    held = hold(queue_size=0)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(held.client.post, CLASSIFY, content=picture())
        assert held.classifier.begun.wait(PATIENCE_S)
        refused = held.client.post(CLASSIFY, content=picture())
        error_of(refused, 429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert held.client.get("/").status_code == 200  # the event loop is free
        held.classifier.release.set()
        assert first.result(PATIENCE_S).status_code == 200


def test_several_images_are_admitted_together_or_not_at_all(hold: Callable[..., Held]) -> None:
    held = hold(queue_size=2)
    held.engine.submit(picture())
    assert held.classifier.begun.wait(PATIENCE_S)
    response = held.client.post(CLASSIFY, files=as_files(*[picture()] * 3))
    error_of(response, 429, "overloaded")
    # The refused request left no trace: there is room for exactly two, and its images never run.
    accepted = [held.engine.submit(picture()) for _ in range(2)]
    with pytest.raises(Overloaded):
        held.engine.submit(picture())
    held.classifier.release.set()
    assert [future.result(PATIENCE_S).index for future in accepted]
    held.engine.close()
    assert held.classifier.num_begun == 3


def test_more_images_than_the_engine_holds_are_400(hold: Callable[..., Held]) -> None:
    held = hold(queue_size=1)  # 429 would promise that trying again helps
    response = held.client.post(CLASSIFY, files=as_files(*[picture()] * 3))
    assert "more than 2 images" in error_of(response, 400, "bad_request")


def test_past_the_deadline_is_504_and_gives_the_place_back(hold: Callable[..., Held]) -> None:
    held = hold(queue_size=1, timeout_s=0.05)
    held.engine.submit(picture())
    assert held.classifier.begun.wait(PATIENCE_S)
    error_of(held.client.post(CLASSIFY, content=picture()), 504, "deadline_exceeded")
    held.engine.submit(picture())  # into the place of the image that was given up
    held.classifier.release.set()
    held.engine.close()
    assert held.classifier.num_begun == 2


def test_a_closed_engine_is_503(hold: Callable[..., Held]) -> None:
    held = hold()
    held.engine.close()
    response = held.client.post(CLASSIFY, content=picture())
    error_of(response, 503, "shutting_down")
    assert int(response.headers["retry-after"]) >= 1


def test_a_fault_of_ours_is_500_and_tells_nothing(
    hold: Callable[..., Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = hold()

    def fail(*_: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(held.classifier, "predict_each", fail)
    response = held.client.post(CLASSIFY, content=picture())
    assert "secret" not in error_of(response, 500, "internal_error")


def exchange(
    frontend: Frontend, receive: Callable[[], Message | None], **headers: str
) -> list[Message]:
    """What the routes send for a POST whose body `receive` makes up; None means silence."""
    sent: list[Message] = []

    async def get_message() -> Message:
        message = receive()
        return message if message is not None else await asyncio.Future()

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": CLASSIFY,
        "query_string": b"",
        "headers": [
            (name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()
        ],
    }
    asyncio.run(frontend(scope, get_message, send))
    return sent


def test_an_endless_body_is_not_read_beyond_the_limit(hold: Callable[..., Held]) -> None:
    num_read = 0

    def endless() -> Message:
        nonlocal num_read
        num_read += 10_000
        return {"type": "http.request", "body": bytes(10_000), "more_body": True}

    sent = exchange(hold().frontend, endless)
    assert sent[0]["status"] == 413
    assert num_read <= MAX_BYTES + 10_000


def test_an_announced_oversize_body_is_not_read_at_all(hold: Callable[..., Held]) -> None:
    def unread() -> Message:
        raise AssertionError("the body was read")

    sent = exchange(hold().frontend, unread, content_length=str(MAX_BYTES + 1))
    assert sent[0]["status"] == 413


def test_a_body_that_never_ends_is_504(hold: Callable[..., Held]) -> None:
    assert exchange(hold(timeout_s=0.05).frontend, lambda: None)[0]["status"] == 504


def test_a_client_that_leaves_is_no_fault_of_ours(hold: Callable[..., Held]) -> None:
    sent = exchange(hold().frontend, lambda: {"type": "http.disconnect"})
    assert sent[0]["status"] == 400


# ----------------------------------------------------------------- settings


def test_settings_have_defaults_that_an_empty_variable_keeps() -> None:
    settings = Settings.from_environ({})
    assert settings == Settings.from_environ({"DEITLT_MODEL": "", "DEITLT_WORKERS": ""})
    assert settings.model == default_bundle()
    assert settings.num_workers == usable_cores()
    assert (settings.max_bytes, settings.timeout_s, settings.device) == (20 * 2**20, 30, "auto")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DEITLT_DEVICE", "gpu"),
        *(("DEITLT_WORKERS", value) for value in ("0", "-1", "two", "1.5")),
        ("DEITLT_QUEUE_SIZE", "-1"),
        ("DEITLT_MAX_BYTES", "20MB"),
        ("DEITLT_MAX_PIXELS", "178956971"),
        ("DEITLT_MAX_IMAGES", "0"),
        *(("DEITLT_TIMEOUT_S", value) for value in ("0", "nan", "inf", "301", "soon")),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} is '{value}'; it must be ") as caught:
        Settings.from_environ({name: value})
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------ bentoml serve


def serve_command(port: int) -> list[str]:
    return [BENTOML, "serve", "serving.service:LongTailClassifier", "--port", str(port)]


def serve_environ(tmp_path: Path, **settings: str) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith("DEITLT_")}
    ours = {"BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "True"}
    return {**others, **ours, **LIMITS, **settings}


@contextmanager
def serving(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A real server that is ready, and its port; killed with all its workers at the end."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = tmp_path / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*serve_command(port), "--host", "127.0.0.1"],
            cwd=CHECKOUT,
            env=serve_environ(tmp_path),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_until_ready(process, port, log)
            yield process, port
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE_S)


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            ready = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=PATIENCE_S)
            assert ready.status_code == 200, log.read_text()
            return
        except httpx.TransportError:
            time.sleep(0.05)  # nothing tells that a port will be opened
    pytest.fail(f"not ready in {PATIENCE_S} s\n{log.read_text()}")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("serve")) as (_, port):
        yield f"http://127.0.0.1:{port}"


def test_served_answers_equal_predict(url: str, local: Classifier) -> None:
    assert httpx.get(f"{url}/livez").status_code == 200
    data = picture(7, "JPEG")
    response = httpx.post(f"{url}{CLASSIFY}?experts=true", content=data)
    assert without_envelope(response.json()) == plain(local.predict([data], experts=True)[0])
    several = httpx.post(f"{url}{CLASSIFY}", files=as_files(data, b"junk"))
    assert ["error" in result for result in several.json()["results"]] == [False, True]


def test_served_errors_have_the_one_body(url: str) -> None:
    address = f"{url}{CLASSIFY}"
    error_of(httpx.post(address), 400, "bad_request")
    error_of(httpx.get(f"{url}/nothing"), 404, "not_found")
    error_of(httpx.get(address), 405, "method_not_allowed")
    error_of(httpx.post(address, content=wide_picture()), 413, "too_large")
    error_of(httpx.post(address, content=b"junk"), 415, "unsupported_image")
    error_of(httpx.post(address, content=picture()[:-200]), 422, "decode_failed")


def test_served_oversize_is_413_announced_or_chunked(url: str) -> None:
    body = bytes(MAX_BYTES + 1)
    error_of(httpx.post(f"{url}{CLASSIFY}", content=body), 413, "too_large")
    chunks = (body[i : i + 10_000] for i in range(0, len(body), 10_000))
    chunked = httpx.post(f"{url}{CLASSIFY}", content=chunks)
    assert "transfer-encoding" in chunked.request.headers
    error_of(chunked, 413, "too_large")


def test_served_index_is_json(url: str) -> None:
    response = httpx.get(url)
    assert response.headers["content-type"] == "application/json"
    assert "://" not in response.text


def read_until(connection: socket.socket, end: bytes) -> bytes:
    received = b""
    while end not in received:
        received += (data := connection.recv(65536))
        assert data, received
    return received


def test_sigterm_finishes_what_is_in_flight(tmp_path: Path) -> None:
    data = picture()
    head = (
        f"POST {CLASSIFY} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
        "Expect: 100-continue\r\n\r\n"
    )
    with serving(tmp_path) as (process, port), ExitStack() as stack:
        busy, idle = (
            stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE_S))
            for _ in range(2)
        )
        idle.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        read_until(idle, b"\r\n\r\n\n")
        busy.sendall(head.encode())
        read_until(busy, b"100 Continue\r\n\r\n")  # our route is waiting for the body now
        process.terminate()
        assert idle.recv(1) == b""  # the server hangs up on the idle: it is shutting down
        assert process.poll() is None
        busy.sendall(data)
        answer = read_until(busy, b'"request_id"')
        assert answer.startswith(b"HTTP/1.1 200")
        assert process.wait(PATIENCE_S) == 0
    assert "Completed cleanup hook: close" in (tmp_path / "serve.log").read_text()


@pytest.mark.parametrize("wrong", ["setting", "bundle"])
def test_a_wrong_start_is_one_line_and_a_status(tmp_path: Path, wrong: str) -> None:
    bundle = shutil.copytree(default_bundle(), tmp_path / "bundle")
    with (bundle / "model.onnx").open("ab") as model:
        model.write(b"!")
    settings, reason = {
        "setting": ({"DEITLT_WORKERS": "many"}, "DEITLT_WORKERS is 'many'"),
        "bundle": ({"DEITLT_MODEL": str(bundle)}, f"{bundle / 'model.onnx'}: changed since"),
    }[wrong]
    result = subprocess.run(
        serve_command(0),
        cwd=CHECKOUT,
        env=serve_environ(tmp_path, **settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert result.returncode == 1
    (line,) = (result.stdout + result.stderr).splitlines()
    assert reason in line
