"""Hundreds of hostile images against the decoder, the classifier and a real server."""

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

from deitlt.classifier import Classifier, load
from deitlt.errors import ImageError
from deitlt.prediction import Prediction
from deitlt.preprocess import decode
from serving.answers import status_of
from tests.hostile_pictures import Hostile
from tests.hostile_support import hostile_images
from tests.service_support import CLASSIFY, error_of, picture, plain, without_envelope
from tests.test_serve import serving

MAX_PIXELS = 4_000_000
LIMITS: dict[str, Any] = {
    "DEITLT_MAX_BYTES": str(8 * 2**20),
    "DEITLT_MAX_PIXELS": str(MAX_PIXELS),
    "DEITLT_MAX_IMAGES": "16",
    "DEITLT_TIMEOUT_S": "15",  # an image that takes longer is a 504, and fails the test
}
NUM_CLIENTS = 4
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
    return load(device="cpu", num_threads=1, max_pixels=MAX_PIXELS)


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
def bounded_memory(worker: psutil.Process) -> Iterator[None]:
    """Hold the worker's peak, which Linux keeps, to its memory before and `MAX_GROWTH`."""
    idle = worker.memory_info().rss
    Path(f"/proc/{worker.pid}/clear_refs").write_text("5")  # the peak starts anew
    yield
    lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    assert peak - idle < MAX_GROWTH, f"{idle >> 20} MB idle, {peak >> 20} MB under attack"


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
