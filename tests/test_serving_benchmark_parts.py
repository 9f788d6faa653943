"""What the serving benchmark is made of: client, processes, windows, claims; no server of ours."""

import asyncio
import json
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from deitlt.classifier import Classifier
from deitlt.errors import DataError, RuntimeUnavailable
from serving.benchmark import report, trees
from serving.benchmark.bare import Bare
from serving.benchmark.client import NO_ANSWER, Call, Calls, ask_once, closed_loop, open_loop
from serving.benchmark.loads import Load, Soak, spread_of_goodput
from serving.benchmark.photos import made_up_photos, read_photos
from serving.benchmark.trees import Tree
from serving.benchmark.windows import Round, Series, Spread, in_turns, take_round
from serving.benchmark.wire import Best, form, get, kserve, raw, read_logits, read_prediction
from serving.benchmark.wire import request as make_request

ANSWER = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 2\r\ncontent-length: 5\r\n\r\nhello"


@contextmanager
def answering(answer: Callable[[int, asyncio.StreamWriter], None]) -> Iterator[int]:
    """A server on a thread that answers the n-th request on any connection; its port."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    ports: list[int] = []
    stop = asyncio.Event()
    seen = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        while await reader.readline():
            length = 0
            while (line := await reader.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            await reader.readexactly(length)
            seen += 1
            answer(seen, writer)

    async def main() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    ready.wait()
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def calls(start: float, end: float, *times: tuple[float, float], cpu: float = 1.0) -> Calls:
    return Calls(start, end, [Call(a, b, 200) for a, b in times], 0.5, cpu)


def a_round(rate: float, cpu: float, steal: float | None = 0.0) -> Round:
    """A server at some images a second, between windows of bare calls at 10."""
    bare = [(i / 10, (i + 1) / 10) for i in range(10)]
    step = 1 / rate
    target = [(i * step, (i + 1) * step) for i in range(int(2 * rate))]
    return Round(calls(0, 1, *bare), calls(0, 2, *target, cpu=cpu), calls(0, 1, *bare), steal)


def test_an_answer_counts_by_its_share_of_the_window() -> None:
    window = calls(10, 12, (9, 11), (11, 11.5), (11.5, 13.5))
    window.calls.append(Call(10, 11, 429))
    assert window.images() == pytest.approx(0.5 + 1 + 0.25)
    assert (window.images(429), window.finished(), window.finished(429)) == (1, 2, 1)
    assert window.statuses() == {200: 3, 429: 1}
    assert window.milliseconds() == [2000, 500, 2000]


def test_ratios_of_a_round() -> None:
    found = a_round(rate=8, cpu=4)
    assert found.wall_ratio == pytest.approx(8 / 10)
    # Bare: 2 s for 20 images; the server: 4 s for 16.
    assert found.cpu_ratio == pytest.approx((2 / 20) / (4 / 16))
    assert found.overhead_ms == pytest.approx(125 - 100)


def test_a_series_drops_what_was_disturbed_and_counts_it() -> None:
    series = Series()
    for rate, steal in ((8, 0.0), (9, 0.029), (2, 0.031), (10, None)):
        series.add(a_round(rate, 2, steal), 0.03)
    series.add(Round(calls(0, 1), calls(0, 1), calls(0, 1), 0.0), 0.03)
    assert (len(series.kept), len(series.dropped), series.failed) == (3, 1, 1)
    assert series.wall == pytest.approx((0.9, 0.8, 1.0, 3))
    assert str(Series().wall) == "None"


def test_rounds_take_turns_and_stand_between_the_baseline() -> None:
    assert list(in_turns(["a", "b", "c"], 3)) == [*"abc", *"cba", *"abc"]
    taken: list[tuple[str, int, float]] = []

    def take(name: str) -> Callable[[int, float, float], Calls]:
        def window(concurrency: int, seconds: float, warm_up_s: float) -> Calls:
            taken.append((name, concurrency, seconds))
            return calls(0, 1, (0, 1))

        return window

    take_round(take("bare"), take("target"), 8, 6.0, 1.0)
    assert taken == [("bare", 8, 3.0), ("target", 8, 6.0), ("bare", 8, 3.0)]


def test_no_claim_where_intervals_overlap() -> None:
    low, high, across = (
        Series([a_round(rate, cpu=2) for rate in rates]) for rates in ([4, 5], [8, 9], [5, 8])
    )
    labels = {"a": "A", "b": "B"}
    lines = report.claims(8, {"ours": high, "a": low, "b": across}, labels)
    assert lines[0] == "  8 under way, ours by A: wall 1.89; processor 1.89"
    assert lines[1] == "  8 under way, ours by B: wall no claim; processor no claim"
    assert report.verdict(Spread(0.98, 0.97, 0.99, 5), 0.97).startswith("met (0.980 [")
    assert report.verdict(Spread(0.98, 0.96, 0.99, 5), 0.97).startswith("no claim")
    assert report.verdict(Spread(0.95, 0.94, 0.96, 5), 0.97).startswith("not met")
    assert report.verdict(None, 0.97) == "not measured"


def test_goodput_is_relative_to_the_closed_loops_beside_it() -> None:
    crowd = calls(0, 1, *((i / 9, (i + 1) / 9) for i in range(9)))
    crowd.calls += [Call(0, 0.002, 429), Call(0.1, 0.2, NO_ANSWER)]
    ten = calls(0, 1, *((i / 10, (i + 1) / 10) for i in range(10)))
    load = Load(4.0, ten, crowd, ten, 0.01)
    assert load.goodput == pytest.approx(0.9)
    assert load.refused == pytest.approx(1 / 11)
    assert load.num_failed == 1
    assert load.to_dict()["refusal_ms"]["p50"] == pytest.approx(2)
    disturbed = Load(4.0, ten, ten, ten, 0.5)
    assert spread_of_goodput([load, disturbed], 0.03) == pytest.approx((0.9, 0.9, 0.9, 1))
    assert spread_of_goodput([disturbed], 0.03) is None


def test_a_slope_of_memory_is_that_of_the_second_half() -> None:
    grows = [(100.0, 0.0)] * 30 + [(100.0 + i, 0.0) for i in range(30)]
    assert Soak(60, [], grows).slope_mib_per_hour == pytest.approx(60)
    assert Soak(60, [], [(5.0, 0.0)] * 60).slope_mib_per_hour == pytest.approx(0, abs=1e-6)


def test_the_client_reads_answers_in_pieces_and_by_the_right_length() -> None:
    def pieces(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(ANSWER[:30])
        asyncio.get_running_loop().call_later(0.02, writer.write, ANSWER[30:])

    with answering(pieces) as port:
        assert ask_once(port, get("/"))[::2] == (200, b"hello")


def test_a_connection_that_ends_is_no_answer() -> None:
    with answering(lambda number, writer: writer.close()) as port:
        assert ask_once(port, get("/"))[0] == NO_ANSWER
    assert ask_once(port, get("/"))[0] == NO_ANSWER  # nobody listens now


def test_a_closed_loop_keeps_so_many_under_way() -> None:
    def late(number: int, writer: asyncio.StreamWriter) -> None:
        asyncio.get_running_loop().call_later(0.05, writer.write, ANSWER)

    with answering(late) as port:
        found = closed_loop(
            port, [get("/")], concurrency=4, seconds=0.5, warm_up_s=0.1, server_cpu=lambda: 0.0
        )
    assert found.end - found.start == pytest.approx(0.5, abs=0.2)
    assert min(found.milliseconds()) >= 50
    assert 8 <= found.images() <= 40.5  # 4 in 50 ms at best
    assert set(found.statuses()) == {200}


def test_an_open_loop_does_not_wait_for_answers() -> None:
    held: list[asyncio.StreamWriter] = []

    def hold(number: int, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        if number == 5:
            asyncio.get_running_loop().call_later(0.3, release)

    def release() -> None:
        for writer in held:
            writer.write(ANSWER)
        held.clear()

    def hold_then_answer(number: int, writer: asyncio.StreamWriter) -> None:
        if number <= 5:
            hold(number, writer)
        else:
            writer.write(ANSWER)

    with answering(hold_then_answer) as port:
        found = open_loop(
            port, [get("/")], rate=100, seconds=1.0, warm_up_s=0.0, server_cpu=lambda: 0.0
        )
    assert max(found.milliseconds()) >= 290  # counted from when they were due
    assert 60 <= len(found.calls) <= 140
    assert set(found.statuses()) == {200}


def test_an_open_loop_leaves_connections_that_the_server_has_ended() -> None:
    def answer_and_end(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(ANSWER)
        writer.close()

    with answering(answer_and_end) as port:
        found = open_loop(
            port, [get("/")], rate=10, seconds=0.8, warm_up_s=0.0, server_cpu=lambda: 0.0,
            seed=34,  # no two of whose times are less than 80 ms apart
        )  # fmt: skip
    assert len(found.calls) >= 5
    assert set(found.statuses()) == {200}


def test_a_tree_is_found_whole_paused_and_ended(tmp_path: Path) -> None:
    child = "import time\nwhile True: sum(range(1000))"
    script = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {child!r}], start_new_session=True)
print("up", flush=True)
time.sleep(60)
"""
    log = tmp_path / "log"
    tree = Tree.start([sys.executable, "-c", script], {"PATH": ""}, tmp_path, log)
    try:
        assert tree.wait_until(lambda: "up" in log.read_text()) > 0
        wait_for(lambda: len(tree.find()) == 2)
        busy = tree.cpu_s()
        wait_for(lambda: tree.cpu_s() > busy + 0.05)
        resident, own = tree.memory_mib()
        assert resident > own > 1
        tree.pause()
        time.sleep(0.05)
        stopped = tree.cpu_s()
        time.sleep(0.2)
        assert tree.cpu_s() == stopped
        tree.resume()
        wait_for(lambda: tree.cpu_s() > stopped)
    finally:
        seconds, survivors = tree.stop()
    assert seconds is not None
    assert survivors == 1  # the child had a session of its own
    wait_for(lambda: tree.find() == [])


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_server_that_ends_is_said_with_its_last_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such port')"]
    tree = Tree.start(command, {}, tmp_path, tmp_path / "log")
    with pytest.raises(RuntimeUnavailable, match="it did not start: no such port"):
        tree.wait_until(lambda: False)


def test_busy_processes_are_named() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            assert any(line.startswith("python") for line in trees.busy_processes(1.0, 0.02))
        finally:
            process.send_signal(signal.SIGKILL)


def test_bare_answers_and_windows(classifier: Classifier) -> None:
    photos = made_up_photos()
    bare = Bare(classifier, photos)
    predictions = [classifier.predict_one(photo) for photo in photos]
    assert bare.answers() == [(p.index, p.probability) for p in predictions]
    window, pure = bare.classify(2, 0.3, 0.05), bare.pure(2, 0.3, 0.05)
    assert 0 < window.images() < pure.images()
    assert window.server_cpu_s > 0
    many = Bare(classifier, photos, together=3)
    assert many.together_label == "bare, up to 3 a run"
    found = many.classify_together(2 * many.max_threads, 0.3, 0.05)
    assert found.images() > 0
    assert len(found.calls) % 2 == 0, "two for each thread"


def test_an_interrupted_window_leaves_no_thread(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Bare(classifier, made_up_photos())
    before = set(threading.enumerate())

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    clock = SimpleNamespace(**vars(time) | {"sleep": interrupted})
    monkeypatch.setattr("serving.benchmark.bare.time", clock)
    with pytest.raises(KeyboardInterrupt):
        bare.classify(2, 0.3, 0.05)
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive()


def test_photos_are_the_same_every_time(tmp_path: Path) -> None:
    photos = made_up_photos()
    assert photos == made_up_photos()
    assert len(set(photos)) == len(photos)
    for number, photo in enumerate(photos):
        (tmp_path / f"{number}.jpg").write_bytes(photo)
    assert read_photos(tmp_path, 3) == [photos[0], photos[3], photos[7]]
    with pytest.raises(DataError, match="no image file"):
        read_photos(tmp_path / "none", 3)


def test_requests_and_answers() -> None:
    text = make_request("/here", raw, b"\xffimage")
    assert text.startswith(b"POST /here HTTP/1.1\r\n")
    assert text.endswith(b"\r\nContent-Length: 6\r\n\r\n\xffimage")
    headers, body = form("image")(b"\r\n--bytes")
    assert headers["Content-Type"].startswith("multipart/form-data; boundary=")
    assert b'name="image"; filename=' in body

    headers, body = kserve(b"picture")
    length = int(headers["Inference-Header-Content-Length"])
    tensor = json.loads(body[:length])["inputs"][0]
    assert tensor["parameters"]["binary_data_size"] == len(body) - length
    assert struct.unpack("<I7s", body[length:]) == (7, b"picture")

    logits = np.array([0, np.log(3)], dtype="<f4").tobytes()
    head = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 2"
    best = read_logits(head, b"{}" + logits)
    assert best.class_index == 1
    assert best.probability == pytest.approx(0.75)
    fields = {"index": 3, "probability": 0.5}
    for answer in (fields, [fields]):
        assert read_prediction(b"", json.dumps(answer).encode()) == Best(3, 0.5)
