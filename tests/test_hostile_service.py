"""Hundreds of hostile images against the decoder, the classifier and a real server."""

import gzip
import io
import json
import select
import socket
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
from PIL import Image

from deitlt.classifier import Classifier, load
from deitlt.errors import ImageError
from deitlt.prediction import Prediction
from deitlt.preprocess import decode
from serving.answers import status_of
from tests.bundle_support import DIGITS
from tests.hostile_pictures import Hostile
from tests.hostile_support import hostile_images
from tests.kserve_support import INFER
from tests.serve_support import serving
from tests.service_support import (
    CLASSIFY,
    PATIENCE_S,
    error_of,
    in_process,
    picture,
    plain,
    without_envelope,
)

MAX_PIXELS = 4_000_000
MAX_BYTES = 8 * 2**20
NUM_CLIENTS = 4
LIMITS: dict[str, Any] = {
    "DEITLT_MAX_BYTES": str(MAX_BYTES),
    "DEITLT_MAX_HELD_BYTES": str(NUM_CLIENTS * MAX_BYTES),
    "DEITLT_MAX_PIXELS": str(MAX_PIXELS),
    "DEITLT_MAX_IMAGES": "16",
    "DEITLT_TIMEOUT_S": "15",  # an image that takes longer is a 504, and fails the test
}
# What the server may take beyond its idle memory, whatever is sent: four bodies of up to 8 MiB,
# two images of 4 megapixels in work with their copies, and what malloc keeps.
MAX_GROWTH = 150 * 2**20
# Requests of several images stay below the limit of bytes.
MAX_BYTES_TOGETHER = 500_000
CONTENT_TYPES = ("image/png", "application/octet-stream", "image/x-nonsense", "IMAGE/JPEG; q=1")
# The warnings of Pillow about what these files do on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")

Outcome = Prediction | ImageError


@pytest.fixture(scope="module")
def hostile() -> list[Hostile]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hostile_images()


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return load(DIGITS, device="cpu", num_threads=1, max_pixels=MAX_PIXELS)


@pytest.fixture(scope="module")
def outcomes(hostile: list[Hostile], classifier: Classifier) -> list[Outcome]:
    """What the classifier says of each alone; any other exception fails every test here."""

    def ask(image: Hostile) -> Outcome:
        try:
            return classifier.predict_one(image.data)
        except ImageError as error:
            return error

    return [ask(image) for image in hostile]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, psutil.Process, Path]]:
    """The address of a real server, its worker and its log."""
    home = tmp_path_factory.mktemp("serve")
    with serving(home, **LIMITS) as (process, port):
        (worker,) = psutil.Process(process.pid).children(recursive=True)
        yield f"http://127.0.0.1:{port}", worker, home / "serve.log"


def code_of(outcome: Outcome) -> str:
    return outcome.code if isinstance(outcome, ImageError) else ""


def test_every_image_gets_its_code(hostile: list[Hostile], outcomes: list[Outcome]) -> None:
    assert len(hostile) >= 300
    codes = {image.name: code_of(o) for image, o in zip(hostile, outcomes, strict=True)}
    assert len(codes) == len(hostile)
    allowed = {image.name: image.codes for image in hostile}
    assert {name: code for name, code in codes.items() if code not in allowed[name]} == {}
    assert set(codes.values()) == {"", "unsupported_image", "decode_failed", "too_large"}
    assert not any("\n" in str(o) for o in outcomes if isinstance(o, ImageError))


def test_unusual_pictures_have_the_right_pixels(hostile: list[Hostile]) -> None:
    num_right = 0
    for image in hostile:
        if image.pixels is not None:
            try:
                pixels = np.asarray(decode(image.data))
            except ImageError:
                continue  # the test above knows whether it may
            assert np.array_equal(pixels, image.pixels), image.name
            num_right += 1
    assert num_right > 40


def test_a_list_of_them_fails_one_by_one(
    hostile: list[Hostile], outcomes: list[Outcome], classifier: Classifier
) -> None:
    together = classifier.predict_each([image.data for image in hostile])
    for image, alone, listed in zip(hostile, outcomes, together, strict=True):
        assert code_of(listed) == code_of(alone), image.name
        if isinstance(alone, Prediction) and isinstance(listed, Prediction):
            assert listed.index == alone.index, image.name
            assert listed.probability == pytest.approx(alone.probability, rel=1e-4), image.name


@contextmanager
def bounded_memory(worker: psutil.Process, growth: int = MAX_GROWTH) -> Iterator[None]:
    """Hold the worker's peak, which Linux keeps, to its memory before and so many bytes."""
    idle = worker.memory_info().rss
    Path(f"/proc/{worker.pid}/clear_refs").write_text("5")  # the peak starts anew
    yield
    lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    assert peak - idle < growth, f"{idle >> 20} MB idle, {peak >> 20} MB under attack"


def test_a_server_under_attack(
    hostile: list[Hostile], outcomes: list[Outcome], site: tuple[str, psutil.Process, Path]
) -> None:
    url, worker, log = site
    good = picture()
    wanted = without_envelope(httpx.post(url + CLASSIFY, content=good).json())
    jobs = list(zip(hostile, outcomes, strict=True))

    def attack(number: int) -> int:
        """Send every fourth image alone; returns how many."""
        with httpx.Client(base_url=url, timeout=30) as client:
            mine = jobs[number::NUM_CLIENTS]
            for kind, (image, outcome) in enumerate(mine):
                headers = {"Content-Type": CONTENT_TYPES[kind % len(CONTENT_TYPES)]}
                answer = client.post(CLASSIFY, content=image.data, headers=headers)
                if isinstance(outcome, ImageError):
                    error_of(answer, status_of(outcome), outcome.code)
                else:
                    assert answer.status_code == 200, image.name
                    assert without_envelope(answer.json()) == plain(outcome), image.name
        return len(mine)

    small = [job for job in jobs if len(job[0].data) < MAX_BYTES_TOGETHER]
    with bounded_memory(worker):
        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            assert sum(pool.map(attack, range(NUM_CLIENTS))) == len(hostile)
        with httpx.Client(base_url=url, timeout=30) as client:
            for start in range(0, len(small), 14):
                group = small[start : start + 14]
                check_together(client, [job[0].data for job in group], [o for _, o in group], good)
    answer = httpx.post(url + CLASSIFY, content=good)
    assert without_envelope(answer.json()) == wanted
    assert httpx.get(f"{url}/readyz").status_code == 200
    assert worker.is_running()
    assert "Traceback" not in log.read_text(errors="replace")


def check_together(
    client: httpx.Client, images: list[bytes], outcomes: list[Outcome], good: bytes
) -> None:
    """Good pictures before and behind hostile ones get their answers, and those theirs."""
    sent = [good, *images, good]
    files = [("f", (f"{i}.svg", image, "text/html")) for i, image in enumerate(sent)]
    answer = client.post(CLASSIFY, files=files)
    assert answer.status_code == 200, answer.text
    first, *results, last = answer.json()["results"]
    assert without_envelope(first) == without_envelope(last)
    assert "probability" in first
    for result, outcome in zip(results, outcomes, strict=True):
        if isinstance(outcome, ImageError):
            assert result["error"]["code"] == outcome.code
        else:
            told: dict[str, Any] = without_envelope(result)
            assert told == plain(outcome)


def unfinished(url: str, path: str, *lines: str) -> socket.socket:
    """A connection on which a request has begun."""
    connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), PATIENCE_S)
    connection.sendall("\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *lines]).encode())
    return connection


def test_uploads_that_do_not_end_are_held_to_one_budget(
    site: tuple[str, psutil.Process, Path],
) -> None:
    url, worker, _ = site
    most = bytes(MAX_BYTES - 60_000)
    held: list[socket.socket] = []
    refused: list[socket.socket] = []
    with ExitStack() as stack, bounded_memory(worker, (NUM_CLIENTS + 2) * MAX_BYTES):
        for _ in range(3 * NUM_CLIENTS):
            line = f"Content-Length: {MAX_BYTES}"
            client = stack.enter_context(unfinished(url, CLASSIFY, line, "", ""))
            client.sendall(most)
            readable, _, _ = select.select([client], [], [], 0.5)
            (refused if readable else held).append(client)
        for client in refused:
            answer = client.recv(4096)
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert b"retry-after: 1" in answer.lower()
        assert (len(held), len(refused)) == (NUM_CLIENTS, 2 * NUM_CLIENTS)
        assert httpx.post(url + CLASSIFY, content=picture()).status_code == 200, "there is room"
    for _ in range(10 * PATIENCE_S):  # until the server has seen that they are gone
        response = httpx.post(url + CLASSIFY, content=most)
        if response.status_code != 429:
            break
        time.sleep(0.1)
    error_of(response, 415, "unsupported_image")


@pytest.mark.parametrize("path", [CLASSIFY, "/sdk/classify", INFER])
@pytest.mark.parametrize("item", [b"[],", b'{"":{}},'])
def test_json_does_not_grow_in_memory(
    site: tuple[str, psutil.Process, Path], path: str, item: bytes
) -> None:
    url, worker, log = site
    body = b'{"image":[' + item * (7_500_000 // len(item)) + b"0]}"
    headers = {"Content-Type": "application/json"}
    if path == INFER:
        body, headers = gzip.compress(body, 1), {"Content-Encoding": "gzip"}
    with bounded_memory(worker, 5 * MAX_BYTES):
        response = httpx.post(url + path, content=body, headers=headers, timeout=PATIENCE_S)
    assert response.status_code == 400
    assert "more than 1000000 values" in response.text
    assert "Traceback" not in log.read_text(errors="replace")


@pytest.mark.parametrize(
    ("lines", "piece"),
    [
        (("",), b"a: b\r\n" * 2000),  # headers without number
        (("X-Long: a",), b"b" * 12_000),  # a header without end
        (("Transfer-Encoding: chunked", "", "1", "a", "0", ""), b"a: b\r\n" * 2000),  # trailers
    ],
)
def test_headers_without_end_are_431(
    site: tuple[str, psutil.Process, Path], lines: tuple[str, ...], piece: bytes
) -> None:
    url, worker, _ = site
    with unfinished(url, CLASSIFY, *lines) as client, bounded_memory(worker, MAX_BYTES):
        for _ in range(100):
            client.sendall(piece)
            if select.select([client], [], [], 0.02)[0]:
                break
        response = client.recv(4096)
    assert response.startswith(b"HTTP/1.1 431 ")
    assert json.loads(response.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_request"
    assert httpx.post(url + CLASSIFY, content=picture()).status_code == 200


def test_what_is_not_http_has_the_one_error_body(site: tuple[str, psutil.Process, Path]) -> None:
    port = int(site[0].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client:
        client.sendall(b"hello\r\n\r\n")
        head, _, body = client.recv(4096).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "bad_request"


def test_pillows_warnings_are_not_collected() -> None:
    """A client could have any number of them logged and kept, as they name the size."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        with in_process() as client:
            for side in (9_001, 9_002):
                buffer = io.BytesIO()
                Image.new("1", (10_000, side)).save(buffer, "PNG")
                error_of(client.post(CLASSIFY, content=buffer.getvalue()), 413, "too_large")
    assert [each for each in caught if "DecompressionBomb" in each.category.__name__] == []
