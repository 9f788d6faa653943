"""The HTTP routes when the engine is full, slow, closed or broken, and when bodies never end."""

import asyncio
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext

import pytest
from starlette.testclient import TestClient
from starlette.types import Message

from deitlt.classifier import Classifier
from deitlt.engine import Engine
from deitlt.errors import Overloaded
from deitlt.prediction import Options, Prediction, Timing
from deitlt.preprocess import ImageLike
from serving.backend import Backend
from serving.bodies import Bodies, inflated
from serving.frontend import Frontend
from serving.metrics import Metrics
from serving.models import Models
from serving.settings import Settings
from tests.service_support import (
    CLASSIFY,
    LIMITS,
    MAX_BYTES,
    PATIENCE_S,
    as_files,
    error_of,
    picture,
)


class HeldClassifier(Classifier):
    """Begins on an image at once, but finishes none before `release` is set."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__(classifier.bundle, classifier.runtime)
        self.begun = threading.Event()
        self.release = threading.Event()
        self.reset()

    def reset(self) -> None:
        self.begun.clear()
        self.release.clear()
        self.num_begun = 0

    def predict_one(
        self, image: ImageLike, options: Options = Options(), timing: Timing | None = None
    ) -> Prediction:
        self.num_begun += 1
        self.begun.set()
        assert self.release.wait(PATIENCE_S)
        return super().predict_one(image, options, timing)


class Held:
    """The routes in front of a `HeldClassifier`."""

    def __init__(self, classifier: Classifier, queue_size: int, timeout_s: float) -> None:
        self.classifier = HeldClassifier(classifier)
        self.classifier.release.set()  # for the warm-up
        models = Models([classifier.bundle.path], lambda _: self.classifier)
        self.classifier.reset()
        self.engine = Engine(self.classifier, num_workers=1, queue_size=queue_size)
        self.frontend = Frontend()
        settings = Settings.from_environ({**LIMITS, "DEITLT_TIMEOUT_S": str(timeout_s)})
        metrics = Metrics()
        metrics.follow(self.engine, models)
        self.frontend.attach(
            Backend(settings, models, self.engine, metrics, None, Bodies(settings.max_held_bytes))
        )
        self.client = TestClient(self.frontend, raise_server_exceptions=False)


@pytest.fixture
def hold(classifier: Classifier) -> Iterator[Callable[..., Held]]:
    """Makes a `Held`, and lets go of it after the test."""
    with ExitStack() as stack:

        def make(queue_size: int = 0, timeout_s: float = PATIENCE_S) -> Held:
            held = Held(classifier, queue_size, timeout_s)
            stack.callback(held.engine.close)
            stack.callback(held.classifier.release.set)
            stack.enter_context(held.client)
            return held

        yield make


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

    monkeypatch.setattr(held.classifier, "predict_one", fail)
    response = held.client.post(CLASSIFY, content=picture())
    assert "secret" not in error_of(response, 500, "internal_error")


def exchange(
    frontend: Frontend,
    receive: Callable[[], Message | None],
    path: str = CLASSIFY,
    **headers: str,
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
        "path": path,
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


def test_what_a_body_unpacks_to_is_held_too() -> None:
    body = zlib.compress(bytes(1000))
    for room, fits in ((1000, True), (999, False)):
        with Bodies(room).hold() as take, nullcontext() if fits else pytest.raises(Overloaded):
            assert asyncio.run(inflated(body, 10_000, take)) == bytes(1000)


def test_an_announced_oversize_body_is_not_read_at_all(hold: Callable[..., Held]) -> None:
    def unread() -> Message:
        raise AssertionError("the body was read")

    sent = exchange(hold().frontend, unread, content_length=str(MAX_BYTES + 1))
    assert sent[0]["status"] == 413


@pytest.mark.parametrize("path", [CLASSIFY, "/v2/models/digits/infer"])
@pytest.mark.parametrize(("closed", "status"), [(False, 429), (True, 503)])
def test_a_body_is_not_read_where_there_is_no_room_for_it(
    closed: bool, status: int, path: str, hold: Callable[..., Held]
) -> None:
    held = hold(queue_size=0)
    if closed:
        held.engine.close()
    else:
        held.engine.submit(picture())

    def unread() -> Message:
        raise AssertionError("the body was read")

    assert exchange(held.frontend, unread, path)[0]["status"] == status


def test_a_body_that_never_ends_is_504(hold: Callable[..., Held]) -> None:
    assert exchange(hold(timeout_s=0.05).frontend, lambda: None)[0]["status"] == 504


def test_a_client_that_leaves_is_no_fault_of_ours(hold: Callable[..., Held]) -> None:
    sent = exchange(hold().frontend, lambda: {"type": "http.disconnect"})
    assert sent[0]["status"] == 400


def test_a_client_that_leaves_gives_up_what_waits(hold: Callable[..., Held]) -> None:
    held = hold(queue_size=2)
    held.engine.submit(picture())
    assert held.classifier.begun.wait(PATIENCE_S)
    messages: list[Message] = [
        {"type": "http.request", "body": picture(), "more_body": False},
        {"type": "http.disconnect"},
    ]
    late = threading.Timer(5, held.classifier.release.set)  # ends the test where it fails
    late.start()
    sent = exchange(held.frontend, lambda: messages.pop(0))
    late.cancel()
    assert sent[0]["status"] == 400
    assert held.engine.num_waiting == 0
    assert held.classifier.num_begun == 1
