"""Workers that take several images at once; nothing here depends on how fast it runs."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import Any

import pytest

from deitlt.engine import Engine
from deitlt.errors import DeadlineExceeded, DecodeFailed, UsageError
from deitlt.prediction import Options, Prediction, Timing
from deitlt.preprocess import ImageLike
from tests.engine_support import TIMEOUT_S, Gated, label


class Batched(Gated):
    """Says what it was given together, too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def predict_together(
        self,
        images: Sequence[ImageLike],
        options: Sequence[Options],
        timings: Sequence[Timing],
        begin: Callable[[int], bool] = lambda number: True,
    ) -> list[Prediction | Exception | None]:
        if b"crash" in images:
            raise ZeroDivisionError
        assert self.gate.wait(TIMEOUT_S)
        assert len(images) == len(options) == len(timings) > 1
        found: list[Prediction | Exception | None] = []
        for number, (image, option) in enumerate(zip(images, options, strict=True)):
            answer = Prediction(str(image), option.top_k, 1.0, "head", None, ())
            wrong = DecodeFailed("the image is damaged")
            if not begin(number):
                found.append(None)
            else:
                found.append(wrong if image == b"bad" else answer)
                self.between(number)
        self.calls.append(sum(outcome is not None for outcome in found))
        return found

    def between(self, number: int) -> None:
        """Something that happens while an image is decoded."""


@pytest.fixture
def batched() -> Iterator[Batched]:
    fake = Batched()
    yield fake
    fake.gate.set()


def held(batched: Batched, engine: Engine) -> list[Future[Prediction]]:
    """Every worker has an image in work, and none can finish."""
    futures = [engine.submit("held") for _ in range(engine.num_workers)]
    for _ in futures:
        assert batched.started.acquire(timeout=TIMEOUT_S)
    return futures


@pytest.mark.parametrize(
    ("waiting", "workers", "calls"),
    [(1, 1, []), (2, 1, [2]), (7, 1, [3, 3]), (2, 2, []), (6, 2, [3])],
)
def test_a_worker_takes_its_share_of_what_waits(
    waiting: int, workers: int, calls: list[int], batched: Batched
) -> None:
    with Engine(batched, num_workers=workers, max_batch=3) as engine:
        held(batched, engine)
        futures = engine.submit_all([str(number) for number in range(waiting)])
        assert engine.num_waiting == waiting
        batched.gate.set()
        assert [label(future) for future in futures] == [str(n) for n in range(waiting)]
        assert engine.num_waiting == 0
    # What two workers find depends on who is first; the first of them takes half.
    assert batched.calls[: len(calls)] == calls
    assert max(batched.calls, default=1) <= 3
    if workers == 1:
        assert batched.calls == calls


def test_each_classifier_has_its_own_largest_batch() -> None:
    few, many = Batched(), Batched()
    sizes = {few: 2, many: 5}
    with Engine(None, num_workers=1, max_batch=lambda asked: sizes[asked]) as engine:  # type: ignore[index]
        with pytest.raises(UsageError, match="no classifier of its own"):
            engine.submit("whose")
        engine.submit_all(["held"], classifier=few)
        assert few.started.acquire(timeout=TIMEOUT_S)
        futures = engine.submit_all([*"abcdefg"], classifier=few)
        futures += engine.submit_all([*"abcdefg"], classifier=many)
        few.gate.set()
        many.gate.set()
        assert "".join(map(label, futures)) == 2 * "abcdefg"
    assert (few.calls, many.calls) == ([2, 2, 2], [5, 2])


def test_each_has_its_own_options_and_error(batched: Batched) -> None:
    with Engine(batched, num_workers=1, max_batch=8) as engine:
        held(batched, engine)
        one = engine.submit("one", Options(top_k=1))
        bad = engine.submit(b"bad")
        late = engine.submit("late", deadline=0.0)
        gone = engine.submit("gone")
        two = engine.submit("two", Options(top_k=2))
        assert gone.cancel()
        batched.gate.set()
        assert [one.result(TIMEOUT_S).index, two.result(TIMEOUT_S).index] == [1, 2]
        with pytest.raises(DecodeFailed):
            bad.result(TIMEOUT_S)
        with pytest.raises(DeadlineExceeded):
            late.result(TIMEOUT_S)
    assert batched.calls == [3]


def test_who_leaves_or_is_late_in_the_midst_of_a_batch_is_left_out(
    batched: Batched, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(batched, num_workers=1, queue_size=4, max_batch=8) as engine:
        held(batched, engine)
        soon = time.monotonic() + TIMEOUT_S
        futures = [engine.submit(str(number), deadline=soon) for number in range(4)]

        def leave_and_wait(number: int) -> None:
            if number == 0:
                assert futures[1].cancel()
                monkeypatch.setattr(engine, "_begin", late_for(futures[2], engine._begin))

        batched.between = leave_and_wait  # type: ignore[method-assign]
        batched.gate.set()
        done, _ = wait(futures, TIMEOUT_S)
        assert len(done) == 4
        assert [label(futures[number]) for number in (0, 3)] == ["0", "3"]
        assert futures[1].cancelled()
        with pytest.raises(DeadlineExceeded):
            futures[2].result(TIMEOUT_S)
        assert len(engine.submit_all(["again"] * engine.capacity)) == 5
    assert batched.calls[0] == 2


def late_for(future: Future[Any], begin: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """As `begin`, where the deadline of one item has come."""

    def begin_late(item: Any) -> bool:
        if item.future is future:
            item.deadline = 0.0
        return begin(item)

    return begin_late


def test_only_images_of_one_classifier_are_taken_together(batched: Batched) -> None:
    other = Batched()
    other.gate.set()
    with Engine(batched, num_workers=1, max_batch=8) as engine:
        held(batched, engine)
        futures = engine.submit_all(["1", "2"])
        futures += engine.submit_all(["3", "4", "5"], classifier=other)
        work = [lambda timing: Prediction("6", 0, 1.0, "head", None, ())] * 2
        futures += engine.submit_tasks(work)
        futures += engine.submit_all(["7", "8"])
        batched.gate.set()
        assert [label(future) for future in futures] == [
            "1",
            "2",
            "3",
            "4",
            "5",
            "6",
            "6",
            "7",
            "8",
        ]
    assert batched.calls == [2, 2]
    assert other.calls == [3]


def test_whatever_goes_wrong_together_reaches_each_of_them(batched: Batched) -> None:
    with Engine(batched, num_workers=1, queue_size=3, max_batch=4) as engine:
        held(batched, engine)
        futures = engine.submit_all(["1", b"crash", "2"])
        batched.gate.set()
        for future in futures:
            with pytest.raises(ZeroDivisionError):
                future.result(TIMEOUT_S)
        assert len(engine.submit_all(["again"] * engine.capacity)) == 4


def test_what_is_no_error_of_work_reaches_who_waits_too(batched: Batched) -> None:
    def end(timing: Timing) -> None:
        raise SystemExit(3)

    with Engine(batched, num_workers=1, queue_size=0) as engine:
        (future,) = engine.submit_tasks([end])
        with pytest.raises(SystemExit):
            future.result(TIMEOUT_S)
        engine.refuse_if_full()
