"""The engine with a classifier that waits on command: nothing here depends on how fast it runs."""

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

from deitlt.classifier import Classifier
from deitlt.cores import usable_cores
from deitlt.engine import Engine
from deitlt.errors import (
    DeadlineExceeded,
    DecodeFailed,
    EngineClosed,
    Overloaded,
    UsageError,
)
from deitlt.prediction import Options, Prediction, Timing
from deitlt.preprocess import ImageLike
from tests.engine_support import TIMEOUT_S, Gated, label


@pytest.fixture
def gated() -> Iterator[Gated]:
    fake = Gated()
    yield fake
    fake.gate.set()


def settled(future: Future[Prediction], gated: Gated) -> None:
    """Let this image end; its slot is free as soon as that can be seen."""
    gated.gate.set()
    future.exception(TIMEOUT_S)
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
    with pytest.raises(EngineClosed):
        engine.submit_all(["after", "after"])
    engine.close()  # closing twice is allowed


def test_close_leaves_no_caller_waiting_for_room(gated: Gated) -> None:
    engine = Engine(gated, num_workers=1, queue_size=0)
    first = engine.submit("first")
    refused: SimpleQueue[EngineClosed] = SimpleQueue()

    def wait_for_room() -> None:
        try:
            engine.submit("no room", wait=True)
        except EngineClosed as error:
            refused.put(error)

    callers = [*[wait_for_room] * 3, engine.close]
    threads = [threading.Thread(target=caller, daemon=True) for caller in callers]
    for thread in threads:
        thread.start()
    for _ in range(3):  # while the image in work still holds the only slot
        refused.get(timeout=TIMEOUT_S)
    assert threads[-1].is_alive()
    gated.gate.set()
    threads[-1].join(TIMEOUT_S)
    assert label(first) == "first"


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


@pytest.mark.parametrize("image", ["good", b"bad", b"crash"])
def test_a_slot_is_free_before_the_end_can_be_seen(
    image: str | bytes, gated: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated.gate.set()
    again: list[Future[Prediction]] = []
    name = "set_result" if image == "good" else "set_exception"
    publish = getattr(Future, name)
    with Engine(gated, num_workers=1, queue_size=0) as engine:

        def resubmit_then_publish(future: Future[Prediction], outcome: object) -> None:
            if not again:
                again.append(engine.submit("again"))
            publish(future, outcome)

        monkeypatch.setattr(Future, name, resubmit_then_publish)
        first = engine.submit(image)
        assert (first.exception(TIMEOUT_S) is None) == (image == "good")
        assert label(again[0]) == "again"


def test_an_image_is_let_go_of_when_its_future_is_cancelled(gated: Gated) -> None:
    with Engine(gated, num_workers=1) as engine:
        engine.submit("first")
        assert gated.started.acquire(timeout=TIMEOUT_S)
        image = np.zeros((1, 1, 3), np.uint8)
        alive = weakref.ref(image)
        future = engine.submit(image)
        del image
        assert alive() is not None
        assert future.cancel()
        assert alive() is None  # although the worker has not come to it yet
        gated.gate.set()
    assert gated.seen == ["first"]


def test_several_are_admitted_in_order_or_not_at_all(gated: Gated) -> None:
    with Engine(gated, num_workers=1, queue_size=3) as engine:
        first = engine.submit("first")
        for _ in range(3):
            with pytest.raises(Overloaded, match="4 images"):
                engine.submit_all(["no"] * 4)
        futures = engine.submit_all(["1", "2", "3"])  # the refused left no trace
        with pytest.raises(Overloaded):
            engine.submit("no room")
        assert engine.submit_all([]) == []
        gated.gate.set()
        assert [label(future) for future in [first, *futures]] == ["first", "1", "2", "3"]
    assert gated.seen == ["first", "1", "2", "3"]


def test_several_share_options_and_deadline(
    classifier: Classifier, png: Callable[[int], bytes]
) -> None:
    options = Options(top_k=3, experts=True)
    images = [png(seed) for seed in range(3)]
    with Engine(classifier, num_workers=1) as engine:
        futures = engine.submit_all(images, options, deadline=time.monotonic() + 1000)
        for image, future in zip(images, futures, strict=True):
            assert future.result(TIMEOUT_S) == classifier.predict_each([image], options)[0]
        for future in engine.submit_all(images, options, deadline=0.0):
            with pytest.raises(DeadlineExceeded):
                future.result(TIMEOUT_S)


def test_more_than_the_engine_ever_holds_are_not_told_to_try_again(gated: Gated) -> None:
    with Engine(gated, num_workers=1, queue_size=1) as engine:
        with pytest.raises(UsageError, match="at most 2"):
            engine.submit_all(["no"] * 3)
        gated.gate.set()
        assert [label(future) for future in engine.submit_all(["1", "2"])] == ["1", "2"]


def test_of_two_that_cannot_both_have_room_one_is_admitted(gated: Gated) -> None:
    barrier = threading.Barrier(2)
    with ThreadPoolExecutor(2) as callers, Engine(gated, num_workers=1, queue_size=2) as engine:

        def submit_two() -> list[Future[Prediction]]:
            barrier.wait(TIMEOUT_S)
            try:
                return engine.submit_all(["a", "b"])
            except Overloaded:
                return []

        for _ in range(100):
            gated.gate.clear()
            both = [callers.submit(submit_two) for _ in range(2)]
            admitted = [caller.result(TIMEOUT_S) for caller in both]
            gated.gate.set()
            assert sorted(map(len, admitted)) == [0, 2]
            assert [label(future) for future in admitted[0] + admitted[1]] == ["a", "b"]


def test_an_exception_leaves_what_is_not_begun(gated: Gated) -> None:
    futures: list[Future[Prediction]] = []

    def leave() -> None:
        with Engine(gated, num_workers=1, queue_size=5) as engine:
            futures.extend(engine.submit_all(["begun", "waiting", "waiting"]))
            assert gated.started.acquire(timeout=TIMEOUT_S)
            # What is begun ends only after the others were given up.
            futures[-1].add_done_callback(lambda _: gated.gate.set())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert label(futures[0]) == "begun"
    assert [future.cancelled() for future in futures] == [False, True, True]
    assert gated.seen == ["begun"]


@pytest.mark.parametrize(
    ("workers", "queue", "batch"), [(0, 1, 1), (-1, 64, 1), (1, -1, 1), (1, 1, 0)]
)
def test_impossible_sizes_are_refused(workers: int, queue: int, batch: int, gated: Gated) -> None:
    with pytest.raises(UsageError):
        Engine(gated, num_workers=workers, queue_size=queue, max_batch=batch)


def test_as_many_workers_as_cores(gated: Gated) -> None:
    with Engine(gated) as engine:
        assert engine.num_workers == usable_cores() >= 1


@pytest.mark.parametrize(
    ("limit", "wanted"),
    [("max 100000", 8), ("150000 100000", 2), ("20000 100000", 1), ("1600000 100000", 8), ("", 8)],
)
def test_a_containers_limit_counts(
    limit: str, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("deitlt.cores.CPU_LIMIT", tmp_path / "cpu.max")
    assert usable_cores() == 8
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert usable_cores() == wanted


@pytest.mark.parametrize("max_batch", [1, 5])
def test_answers_are_the_classifiers_to_the_last_bit(
    max_batch: int, classifier: Classifier, png: Callable[[int], bytes]
) -> None:
    options = Options(top_k=10, experts=True, blend=0.3)
    images: list[ImageLike] = [png(seed) for seed in range(24)]
    queue = len(images)
    with Engine(classifier, num_workers=4, queue_size=queue, max_batch=max_batch) as engine:
        futures = [engine.submit(image, options) for image in images]
        for image, future in zip(images, futures, strict=True):
            assert future.result(TIMEOUT_S) == classifier.predict_each([image], options)[0]


def test_a_timing_says_how_long_an_image_waited(gated: Gated) -> None:
    timings = [Timing(), Timing()]
    with Engine(gated, num_workers=1) as engine:
        futures = engine.submit_all(["first", "second"], timings=timings)
        assert gated.started.acquire(timeout=TIMEOUT_S)
        time.sleep(0.05)
        gated.gate.set()
        assert [label(future) for future in futures] == ["first", "second"]
    assert timings[1].wait_s >= 0.05
    assert timings[1].wait_s > timings[0].wait_s


def test_who_waits_for_several_learns_that_one_was_cancelled(gated: Gated) -> None:
    with Engine(gated, num_workers=1) as engine:
        engine.submit("first")
        assert gated.started.acquire(timeout=TIMEOUT_S)
        waiting = engine.submit("second")
        assert waiting.cancel()
        assert [*as_completed([waiting], timeout=0)] == [waiting]
        gated.gate.set()


def test_what_is_done_is_let_go_of(gated: Gated) -> None:
    class Work:
        def __call__(self, timing: Timing) -> int:
            return 1

    work = Work()
    kept = weakref.ref(work)
    with Engine(gated, num_workers=1) as engine:
        (future,) = engine.submit_tasks([work])
        del work
    assert future.result() == 1
    assert kept() is None
