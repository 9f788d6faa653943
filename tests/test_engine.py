"""The engine with a classifier that waits on command: nothing here depends on how fast it runs."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from deitlt.classifier import Classifier, ImageLike, Options, Prediction
from deitlt.engine import Engine, usable_cores
from deitlt.errors import (
    DeadlineExceeded,
    DecodeFailed,
    EngineClosed,
    ImageError,
    Overloaded,
    UsageError,
)

TIMEOUT_S = 20  # only ever waited for where a test fails


class Gated(Classifier):
    """Answers what it is told to, once its gate is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.started = threading.Semaphore(0)
        self.seen: list[ImageLike] = []

    def predict_each(
        self, images: Sequence[ImageLike], options: Options = Options()
    ) -> list[Prediction | ImageError]:
        self.seen.extend(images)
        self.started.release()
        assert self.gate.wait(TIMEOUT_S)
        if images[0] == b"bad":
            return [DecodeFailed("the image is damaged")]
        if images[0] == b"crash":
            raise ZeroDivisionError
        return [Prediction(str(images[0]), 0, 1.0, "head", ())]


@pytest.fixture
def gated() -> Iterator[Gated]:
    fake = Gated()
    yield fake
    fake.gate.set()


def label(future: Future[Prediction]) -> str:
    return future.result(TIMEOUT_S).label


def settled(future: Future[Prediction], gated: Gated) -> None:
    """Open the gate and return once the engine has taken back the slot of this image.

    Callbacks run in the order they were added, and the engine's was first.
    """
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    gated.gate.set()
    assert done.wait(TIMEOUT_S)
    gated.gate.clear()


def test_a_full_queue_refuses_and_loses_nothing(gated: Gated) -> None:
    with Engine(gated, num_workers=1, queue_size=2) as engine:
        assert engine.capacity == 3
        futures = [engine.submit(str(number)) for number in range(3)]
        for _ in range(3):
            with pytest.raises(Overloaded, match="3 images") as caught:
                engine.submit("one too many")
        assert caught.value.code == "overloaded"
        gated.gate.set()
        assert [label(future) for future in futures] == ["0", "1", "2"]
    assert gated.seen == ["0", "1", "2"]


def test_waiting_for_room_blocks_and_then_proceeds(gated: Gated) -> None:
    with ThreadPoolExecutor(1) as caller, Engine(gated, num_workers=1, queue_size=0) as engine:
        first = engine.submit("first")
        second = caller.submit(engine.submit, "second", wait=True)
        assert gated.started.acquire(timeout=TIMEOUT_S)
        assert not second.done()
        gated.gate.set()
        assert label(second.result(TIMEOUT_S)) == "second"
        assert label(first) == "first"


def test_workers_run_side_by_side(gated: Gated) -> None:
    with Engine(gated, num_workers=3, queue_size=0) as engine:
        futures = [engine.submit(str(number)) for number in range(3)]
        for _ in range(3):  # all three are in work although none can finish
            assert gated.started.acquire(timeout=TIMEOUT_S)
        gated.gate.set()
        assert [label(future) for future in futures] == ["0", "1", "2"]


def test_an_image_past_its_deadline_is_not_started(gated: Gated) -> None:
    gated.gate.set()
    with Engine(gated, num_workers=1) as engine:
        late = engine.submit("late", deadline=time.monotonic() - 1)
        early = engine.submit("early", deadline=time.monotonic() + 1000)
        with pytest.raises(DeadlineExceeded):
            late.result(TIMEOUT_S)
        assert label(early) == "early"
    assert gated.seen == ["early"]


def test_close_finishes_what_was_taken_and_then_refuses(gated: Gated) -> None:
    engine = Engine(gated, num_workers=1, queue_size=5)
    futures = [engine.submit(str(number)) for number in range(4)]
    closer = threading.Thread(target=engine.close)
    closer.start()
    gated.gate.set()
    closer.join(TIMEOUT_S)
    assert not closer.is_alive()
    assert all(future.done() for future in futures)
    assert [label(future) for future in futures] == ["0", "1", "2", "3"]
    for wait in (False, True):
        with pytest.raises(EngineClosed, match="shutting down"):
            engine.submit("after", wait=wait)
    engine.close()  # closing twice is allowed


def test_close_leaves_no_caller_waiting_for_room(gated: Gated) -> None:
    engine = Engine(gated, num_workers=1, queue_size=0)
    engine.submit("first")
    with ThreadPoolExecutor(2) as callers:
        waiting = callers.submit(engine.submit, "second", wait=True)
        closing = callers.submit(engine.close)
        gated.gate.set()
        closing.result(TIMEOUT_S)
        # Which of the two came first is chance; either answer is right, hanging is not.
        error = waiting.exception(TIMEOUT_S)
        assert isinstance(error, EngineClosed) or label(waiting.result()) == "second"


def test_a_bad_image_raises_its_own_error(gated: Gated) -> None:
    gated.gate.set()
    with Engine(gated, num_workers=1) as engine:
        bad, good = engine.submit(b"bad"), engine.submit("good")
        with pytest.raises(DecodeFailed):
            bad.result(TIMEOUT_S)
        assert label(good) == "good"


@pytest.mark.parametrize("image", ["good", b"bad", b"crash"])
def test_a_slot_comes_back_however_an_image_ends(image: str | bytes, gated: Gated) -> None:
    with Engine(gated, num_workers=1, queue_size=0) as engine:
        for _ in range(5):
            future = engine.submit(image)
            with pytest.raises(Overloaded):
                engine.submit("no room")
            settled(future, gated)
        gated.gate.set()
        assert label(engine.submit("last")) == "last"


def test_a_slot_comes_back_after_deadline_and_cancellation(gated: Gated) -> None:
    with Engine(gated, num_workers=1, queue_size=1) as engine:
        first = engine.submit("first")
        assert gated.started.acquire(timeout=TIMEOUT_S)
        for _ in range(5):
            assert engine.submit("dropped").cancel()
        late = engine.submit("late", deadline=0.0)
        with pytest.raises(Overloaded):
            engine.submit("no room")
        settled(late, gated)
        assert label(first) == "first"
        gated.gate.set()
        futures = [engine.submit("last", wait=True) for _ in range(2)]
        assert [label(future) for future in futures] == ["last", "last"]
    assert "dropped" not in gated.seen


@pytest.mark.parametrize(("workers", "queue"), [(0, 1), (-1, 64), (1, -1)])
def test_impossible_sizes_are_refused(workers: int, queue: int, gated: Gated) -> None:
    with pytest.raises(UsageError):
        Engine(gated, num_workers=workers, queue_size=queue)


def test_as_many_workers_as_cores(gated: Gated) -> None:
    with Engine(gated) as engine:
        assert engine.num_workers == usable_cores() >= 1


def test_answers_are_the_classifiers_to_the_last_bit(
    classifier: Classifier, png: Callable[[int], bytes]
) -> None:
    options = Options(top_k=10, experts=True, blend=0.3)
    images: list[ImageLike] = [png(seed) for seed in range(24)]
    with Engine(classifier, num_workers=4, queue_size=len(images)) as engine:
        futures = [engine.submit(image, options) for image in images]
        for image, future in zip(images, futures, strict=True):
            assert future.result(TIMEOUT_S) == classifier.predict_each([image], options)[0]
