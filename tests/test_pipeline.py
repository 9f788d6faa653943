"""The batch pipeline: in order, the service's numbers, bounded, and no process left behind."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count, cycle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deitlt.batch.pipeline import FEW_SOURCES, predict_iter
from deitlt.classifier import Classifier, load
from deitlt.engine import Engine
from deitlt.errors import DecodeFailed, ImageError, UsageError
from deitlt.prediction import Options, Prediction
from tests.pipeline_support import Given, Gone, Killer, children, counted

Png = Callable[[int], bytes]
ROOT = Path(__file__).parents[1]
TIMEOUT_S = 60  # only ever waited for where a test fails
# More than any of these runs has in work at once.
LOOK_AHEAD = 200

# A script as people write them, with nothing to keep a process from running it again.
SCRIPT = """
import os, signal, sys
from pathlib import Path
import deitlt
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
classifier = deitlt.load(device="cpu", num_threads=1)
image = Path(sys.argv[1]).read_bytes()
images = [image] * 5 if sys.argv[2] == "5" else iter(lambda: image, None)
for number, prediction in enumerate(classifier.predict_iter(images, num_workers=2)):
    if number in (0, 4):
        children = Path(f"/proc/self/task/{os.getpid()}/children").parent.parent
        found = {c for f in children.glob("*/children") for c in f.read_text().split()}
        print(prediction.label, *sorted(found), flush=True)
"""


def plain(results: list[object]) -> list[object]:
    """Predictions as they are, errors as what can be compared."""
    return [(type(r), str(r)) if isinstance(r, ImageError) else r for r in results]


def test_every_way_gives_the_answers_of_the_service_in_order(
    png: Png, classifier: Classifier
) -> None:
    """Among them a damaged, an absent and an empty image; to the last bit."""
    data = [png(seed) for seed in range(90)]
    data[3], data[50] = b"", data[50][:-40]
    sources: list[Given | Gone] = [Given(item) for item in data]
    sources[70] = Gone()
    options = Options(top_k=3, experts=True, logits=True)
    with Engine(classifier, num_workers=2, queue_size=99) as engine:
        futures = engine.submit_all(data, options)
    expected: list[object] = [f.exception() or f.result() for f in futures]
    expected[70] = classifier.predict_each(["gone"])[0]
    kinds = [type(item).__name__ for item in expected]
    assert [kinds[i] for i in (3, 50, 70)] == ["DecodeFailed", "DecodeFailed", "OpenFailed"]
    for num_workers in (None, 0, 1, 3):
        found = list(predict_iter(classifier, iter(sources), options, num_workers=num_workers))
        assert [source for source, _ in found] == sources
        results: list[object] = [result for _, result in found]
        assert isinstance(results[70], ImageError)
        expected[70] = results[70]  # of another text
        assert plain(results) == plain(expected)
    assert not children(os.getpid())


def test_images_of_every_kind_are_taken(
    png: Png, tmp_path: Path, classifier: Classifier, pixels: Callable[..., object]
) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    image = pixels(seed=1)
    images = [png(1), tmp_path / "a.png", str(tmp_path / "a.png"), image]
    for num_workers in (0, 1):
        found = list(classifier.predict_iter(images, num_workers=num_workers))  # type: ignore[arg-type]
        assert found == classifier.predict([png(1)]) * 4


def test_a_short_input_starts_no_process_and_a_long_one_does(
    png: Png, classifier: Classifier
) -> None:
    for length, expected in ((FEW_SOURCES - 1, 0), (FEW_SOURCES + 1, 1)):
        running = predict_iter(classifier, [Given(png(0))] * length)
        next(running)
        assert min(1, len(children(os.getpid()))) == expected
        running.close()
        assert not children(os.getpid())


@pytest.mark.parametrize("num_workers", [None, 0, 2])
def test_an_endless_input_is_taken_no_further_than_needed(
    num_workers: int | None, png: Png, classifier: Classifier
) -> None:
    taken, data = [0], [png(seed) for seed in range(5)]
    endless = (Given(data[i % 5], str(i)) for i in count())
    running = predict_iter(classifier, counted(endless, taken), num_workers=num_workers)
    assert taken == [0]
    for number in range(400):
        source, _ = next(running)
        assert source.filename == str(number)
        assert number < taken[0] <= number + LOOK_AHEAD
    running.close()
    assert not children(os.getpid())


@pytest.mark.parametrize("num_workers", [None, 0, 1])
def test_an_error_of_the_input_comes_after_what_was_before_it(
    num_workers: int | None, png: Png, classifier: Classifier
) -> None:
    def broken() -> Iterator[Given]:
        yield from [Given(png(0))] * 9
        raise OSError("the archive ends here")

    running = predict_iter(classifier, broken(), num_workers=num_workers)
    for _ in range(9):
        next(running)
    with pytest.raises(OSError, match="ends here"):
        next(running)


def test_who_kills_a_decoder_gets_an_error_and_nobody_else(
    png: Png, tmp_path: Path, classifier: Classifier
) -> None:
    """One image kills it always, another the first time only, as a kill from outside would."""
    sources: list[Given | Killer] = [Given(png(seed)) for seed in range(80)]
    sources[5], sources[33] = Killer(png(5)), Killer(png(33), tmp_path / "killed")
    results = [result for _, result in predict_iter(classifier, sources, num_workers=2)]
    error = results.pop(5)
    assert isinstance(error, DecodeFailed)
    assert "died" in str(error)
    assert results == classifier.predict([png(seed) for seed in range(80) if seed != 5])
    assert (tmp_path / "killed").exists()
    assert not children(os.getpid())


def test_decoders_killed_from_outside_are_replaced(png: Png, classifier: Classifier) -> None:
    data = [png(seed) for seed in range(3)]
    running = predict_iter(classifier, map(Given, cycle(data)), num_workers=2)
    results = [next(running)[1]]
    for worker in children(os.getpid()):
        os.kill(worker, signal.SIGKILL)
    results += [next(running)[1] for _ in range(299)]
    running.close()
    assert results == classifier.predict(data) * 100


def test_a_consumer_that_fails_leaves_no_process(png: Png, classifier: Classifier) -> None:
    def consume() -> None:
        for number, _ in enumerate(predict_iter(classifier, endless, num_workers=2)):
            if number == 20:
                assert children(os.getpid())
                raise ZeroDivisionError

    endless = map(Given, cycle([png(0)]))
    with pytest.raises(ZeroDivisionError):
        consume()
    assert not children(os.getpid())


@pytest.mark.parametrize("where", ["here", "main"])
def test_a_source_that_no_other_process_can_have_is_a_users_mistake(
    where: str, png: Png, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Local(Given):
        pass

    if where == "main":  # it can be sent, but not be found there
        Local.__module__, Local.__qualname__ = "__main__", "Local"
        monkeypatch.setattr(sys.modules["__main__"], "Local", Local, raising=False)
    with pytest.raises(UsageError, match="0 workers"):
        list(predict_iter(classifier, [Local(png(0))], num_workers=1))
    assert len(list(predict_iter(classifier, [Local(png(0))], num_workers=0))) == 1
    assert not children(os.getpid())


@pytest.mark.parametrize("wrong", [{"num_workers": -1}, {"batch_size": 0}, {"first": -1}])
def test_wrong_numbers_are_refused_before_anything_starts(
    wrong: dict[str, int], classifier: Classifier
) -> None:
    with pytest.raises(UsageError, match="at least"):
        predict_iter(classifier, [], **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("many", [6, FEW_SOURCES + 6])  # in this process, and in others
def test_what_is_no_image_fails_alone(
    many: int, tmp_path: Path, png: Png, classifier: Classifier
) -> None:
    (tmp_path / "cut.png").write_bytes(png(0)[:-40])
    images: list[Any] = [png(0)] * many
    images[1:4] = Image.open(tmp_path / "cut.png"), None, io.BytesIO(png(0))
    large = Image.new("1", (9000, 9000))
    results = list(classifier.predict_iter([*images, large], num_workers=2))
    wrong = {n: r.code for n, r in enumerate(results) if isinstance(r, ImageError)}
    unsupported = {2: "unsupported_image", 3: "unsupported_image"}
    assert wrong == {1: "decode_failed", **unsupported, many: "too_large"}


def test_nothing_gives_nothing(classifier: Classifier) -> None:
    for num_workers in (None, 0, 1):
        assert list(predict_iter(classifier, [], num_workers=num_workers)) == []


def start(tmp_path: Path, png: Png, number: str) -> "subprocess.Popen[str]":
    (tmp_path / "image.png").write_bytes(png(0))
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-P", str(tmp_path / "script.py"), "image.png", number]
    return subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_script_needs_no_guard(tmp_path: Path, png: Png) -> None:
    with start(tmp_path, png, "5") as process:
        output, errors = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, errors) == (0, "")
    assert [line.split()[0] for line in output.splitlines()] == [
        load(device="cpu", num_threads=1).predict([png(0)])[0].label
    ] * 2


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_no_process(
    signal_number: signal.Signals, tmp_path: Path, png: Png
) -> None:
    with start(tmp_path, png, "endless") as process:
        try:
            assert process.stdout is not None
            workers = [int(word) for word in process.stdout.readline().split()[1:]]
            assert len(workers) >= 1
            process.send_signal(signal_number)
            _, errors = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    assert process.returncode == -signal_number or "KeyboardInterrupt" in errors
    deadline = time.monotonic() + TIMEOUT_S
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_answers_say_something(png: Png, classifier: Classifier) -> None:
    """Equal answers for unlike images would prove little about their order."""
    answers = classifier.predict([png(seed) for seed in range(20)])
    assert len({answer.probability for answer in answers}) == 20
    assert all(isinstance(answer, Prediction) for answer in answers)
