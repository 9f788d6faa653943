"""The remote runtime against a real Triton server, over both protocols."""

import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deitlt import triton_runtime
from deitlt.bundle import OUTPUTS, Bundle
from deitlt.classifier import Classifier
from deitlt.engine import Engine
from deitlt.errors import DeitLTError, RuntimeUnavailable, UsageError
from deitlt.prediction import Options
from deitlt.preprocess import Pixels
from deitlt.runtimes import Outputs
from deitlt.triton_runtime import PAUSE_S, TritonRuntime
from export.to_triton import export_triton
from tests.triton_remote_support import DELAY_S, MAX_BATCH, Site, make_site
from tests.triton_support import PYTHON, Environment, Protocol, Server, photos

PROTOCOLS: tuple[Protocol, ...] = ("http", "grpc")
both_protocols = pytest.mark.parametrize("protocol", PROTOCOLS)
Open = Callable[..., TritonRuntime]


@pytest.fixture(scope="module")
def bundle(classifier: Classifier) -> Bundle:
    return classifier.bundle


@pytest.fixture(scope="module")
def golden(bundle: Bundle) -> Pixels:
    with np.load(bundle.path / "golden.npz") as arrays:
        return np.asarray(arrays["pixels"])


@pytest.fixture(scope="module")
def site(
    bundle: Bundle, triton_environment: Environment, tmp_path_factory: pytest.TempPathFactory
) -> Site:
    return make_site(tmp_path_factory.mktemp("triton"), bundle, triton_environment)


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[Server]:
    with site.serve() as server:
        yield server


@pytest.fixture
def connect(site: Site, bundle: Bundle, server: Server) -> Iterator[Open]:
    """Opens a runtime of the running server: `connect(protocol, **options)`."""
    opened: list[TritonRuntime] = []

    def make(protocol: Protocol, **options: Any) -> TritonRuntime:
        opened.append(TritonRuntime(site.url(protocol), options.pop("of", bundle), **options))
        return opened[-1]

    yield make
    for runtime in opened:
        runtime.close()


def assert_same(outputs: Outputs, expected: Outputs) -> None:
    assert outputs.heads().keys() == expected.heads().keys() == set(OUTPUTS)
    for name, logits in expected.heads().items():
        np.testing.assert_allclose(outputs.heads()[name], logits, rtol=0, atol=1e-4)
        assert outputs.heads()[name].dtype == np.float32


def failure(call: Callable[[], object]) -> DeitLTError | None:
    try:
        call()
    except DeitLTError as error:
        return error
    return None


def refusal(kind: type[DeitLTError], call: Callable[[], object]) -> str:
    """The one line of the error."""
    with pytest.raises(kind) as caught:
        call()
    line = str(caught.value)
    assert line.isprintable()
    assert 20 < len(line) < 400
    return line


@pytest.mark.parametrize(("protocol", "binary"), [("grpc", True), ("http", True), ("http", False)])
def test_answers_are_those_of_the_runtime_in_this_process(
    protocol: Protocol, binary: bool, connect: Open, golden: Pixels, classifier: Classifier
) -> None:
    runtime = connect(protocol, binary=binary)
    assert len(golden) > MAX_BATCH  # more than the model takes: it is sent in parts
    for pixels in (golden, golden[:1], golden[: MAX_BATCH + 1], golden[::-1]):
        assert_same(runtime.run(pixels), classifier.runtime.run(pixels))
    assert [o.shape for o in runtime.run(golden[:0]).heads().values()] == [(0, 10)] * 3
    assert runtime.provider == f"Triton {protocol}"
    assert runtime.ready()


@both_protocols
def test_a_classifier_and_an_engine_work_on_it(
    protocol: Protocol, connect: Open, bundle: Bundle, golden: Pixels, classifier: Classifier
) -> None:
    files, options = photos(golden), Options(top_k=3, experts=True, blend=0.3)
    remote = Classifier(bundle, connect(protocol))
    expected = classifier.predict_each(files, options)
    with Engine(remote, num_workers=4) as engine:
        futures = [engine.submit(file, options, wait=True) for file in files]
        results = [future.result() for future in futures]
    for answers in (results, remote.predict_each(files, options)):
        for answer, right in zip(answers, expected, strict=True):
            assert not isinstance(answer, Exception)
            assert not isinstance(right, Exception)
            assert (answer.label, answer.group) == (right.label, right.group)
            assert answer.probability == pytest.approx(right.probability, abs=1e-4)
            assert answer.experts is not None
            assert right.experts is not None
            assert answer.experts.dist[0].label == right.experts.dist[0].label


@both_protocols
def test_many_threads_get_their_own_answers(
    protocol: Protocol, connect: Open, golden: Pixels, classifier: Classifier
) -> None:
    runtime, expected = connect(protocol, timeout_s=30), classifier.runtime.run(golden).logits

    def ask(number: int) -> None:
        rows = np.random.default_rng(number).integers(0, len(golden), 1 + number % 6)
        np.testing.assert_allclose(runtime.run(golden[rows]).logits, expected[rows], atol=1e-4)

    for start in (0, 100):  # the threads of the first pool end; others use what they have opened
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(ask, range(start, start + 60)))


@both_protocols
def test_a_model_that_is_not_the_bundles_is_refused(
    protocol: Protocol, connect: Open, bundle: Bundle, server: Server
) -> None:
    turned = replace(bundle, classes=bundle.classes[::-1])
    larger = replace(bundle, preprocess=replace(bundle.preprocess, img_size=32))
    cropped = replace(bundle, preprocess=replace(bundle.preprocess, crop_pct=0.5))
    more = replace(bundle, classes=[*bundle.classes, "more"])
    wrong: list[tuple[Callable[[], object], str]] = [
        (partial(connect, protocol, of=turned), "'digits' has other classes than the bundle"),
        (partial(connect, protocol, of=more), "'digits' has other classes than the bundle"),
        (partial(connect, protocol, of=cropped), "prepares images otherwise than the bundle"),
        (partial(connect, protocol, of=larger), "prepares images otherwise than the bundle"),
        (partial(connect, protocol, model="nobody"), "unknown model.*nobody"),
        (partial(connect, protocol, version="7"), "unknown (model|version)|not found"),
    ]
    for call, reason in wrong:
        assert re.search(reason, refusal(RuntimeUnavailable, call))
    assert connect(protocol, version="1").ready()


@both_protocols
def test_tensors_are_compared_where_a_server_states_no_parameters(
    protocol: Protocol, connect: Open, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_runtime, "check_parameters", lambda *_: None)
    larger = replace(bundle, preprocess=replace(bundle.preprocess, img_size=32))
    line = refusal(RuntimeUnavailable, partial(connect, protocol, of=larger))
    assert "takes images UINT8 [-1, 16, 16, 3], encoded" in line
    assert line.endswith("has images UINT8 [-1, 32, 32, 3]")
    more = replace(bundle, classes=[*bundle.classes, "more"])
    line = refusal(RuntimeUnavailable, partial(connect, protocol, of=more))
    assert "gives logits FP32 [-1, 10]" in line
    assert line.endswith("has logits FP32 [-1, 11]")


@both_protocols
def test_a_refused_request_is_not_repeated(
    protocol: Protocol, connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, pauses = connect(protocol), list[float]()
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=pauses.append)
    monkeypatch.setattr(triton_runtime, "time", clock)
    line = refusal(RuntimeUnavailable, lambda: runtime.run(np.zeros((1, 9, 9, 3), np.uint8)))
    assert "unexpected shape" in line
    assert pauses == []


def test_a_model_that_is_not_ready(connect: Open, server: Server, golden: Pixels) -> None:
    runtimes = {protocol: connect(protocol) for protocol in PROTOCOLS}
    with server.client() as client:
        client.unload_model("digits")
        try:
            for protocol, runtime in runtimes.items():
                assert not runtime.ready()
                for call in (partial(connect, protocol), partial(runtime.run, golden)):
                    assert "'digits' has no available versions" in refusal(RuntimeUnavailable, call)
                # To Triton the whole server is not ready then.
                line = refusal(RuntimeUnavailable, partial(connect, protocol, model="slow"))
                assert line.endswith("the server is not ready")
        finally:
            client.load_model("digits")
    for runtime in runtimes.values():
        assert runtime.ready()
        assert len(runtime.run(golden).logits) == len(golden)


@both_protocols
def test_a_deadline_and_a_full_queue(protocol: Protocol, connect: Open, golden: Pixels) -> None:
    runtime = connect(protocol, model="slow", timeout_s=DELAY_S / 2)
    time.sleep(DELAY_S / 2)  # one that was given up over the other protocol may still wait there
    with ThreadPoolExecutor(6) as pool:
        began = time.monotonic()
        errors = list(pool.map(lambda _: failure(lambda: runtime.run(golden[:1])), range(6)))
    # One waits for company that does not come; the others find the one place taken.
    kinds = [type(error) for error in errors]
    assert sorted(kind.__name__ for kind in kinds) == ["DeadlineExceeded"] + 5 * ["Overloaded"]
    assert all(str(error).isprintable() for error in errors)
    assert time.monotonic() - began >= DELAY_S / 2


def test_the_server_stops_and_comes_back(
    site: Site, bundle: Bundle, golden: Pixels, tmp_path: Path
) -> None:
    export_triton(bundle, tmp_path / "models", PYTHON)
    place = Site(site.environment, tmp_path / "models", tmp_path)
    for protocol in PROTOCOLS:
        line = refusal(RuntimeUnavailable, lambda p=protocol: TritonRuntime(place.url(p), bundle))  # type: ignore[misc]
        assert line.startswith(f"{place.url(protocol)}: ")
    seen: list[DeitLTError | None] = []
    enough = threading.Event()

    def ask(runtime: TritonRuntime) -> None:
        while not enough.is_set():
            seen.append(failure(lambda: runtime.run(golden[:1])))

    with ThreadPoolExecutor(4) as pool:
        with place.serve():
            opened = [TritonRuntime(place.url(p), bundle, timeout_s=20) for p in PROTOCOLS]
            expected = opened[0].run(golden)
            asking = [pool.submit(ask, runtime) for runtime in opened * 2]
            time.sleep(0.5)
            assert len(seen) > 4
            assert set(seen) == {None}
        try:  # Now it is gone, in the middle of their requests.
            for runtime in opened:
                began = time.monotonic()
                line = refusal(RuntimeUnavailable, partial(runtime.run, golden))
                assert line.startswith(f"{runtime.url}: ")
                assert 3 * PAUSE_S <= time.monotonic() - began < 20  # its deadline
                assert not runtime.ready()
            with place.serve():
                for runtime in opened:
                    assert_same(runtime.run(golden), expected)
                    assert runtime.ready()
                del seen[:-1]
                time.sleep(1.0)
                assert seen[-1] is None
        finally:
            enough.set()
    for thread in asking:
        thread.result()
    for runtime in opened:
        runtime.close()


@both_protocols
def test_closed_is_closed(protocol: Protocol, connect: Open, golden: Pixels) -> None:
    runtime = connect(protocol)
    runtime.run(golden)
    runtime.close()
    assert "closed" in refusal(RuntimeUnavailable, lambda: runtime.run(golden))
    assert not runtime.ready()
    runtime.close()


@both_protocols
def test_a_port_where_nobody_answers(protocol: Protocol, bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        url, began = f"{protocol}://127.0.0.1:{silent.getsockname()[1]}", time.monotonic()
        refusal(RuntimeUnavailable, lambda: TritonRuntime(url, bundle, timeout_s=0.5))
        assert time.monotonic() - began < 20  # the system gives up after minutes


class OtherProgram(BaseHTTPRequestHandler):
    """Gives the same answer to whatever is asked."""

    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.body)


def test_a_port_where_another_program_answers(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), OtherProgram) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        for body in ("<p>Hello</p>", "[1]", "{}", '{"inputs": [{}]}', '{"outputs": 3}'):
            monkeypatch.setattr(OtherProgram, "body", body.encode())
            url = f"http://127.0.0.1:{other.server_port}"
            line = refusal(RuntimeUnavailable, partial(TritonRuntime, url, bundle))
            assert re.search("not the answer expected|takes nothing|gives nothing", line)
        with pytest.raises(RuntimeUnavailable):
            TritonRuntime(url.replace("http", "grpc"), bundle, timeout_s=3)
        other.shutdown()
        thread.join()


def test_wrong_arguments(bundle: Bundle) -> None:
    for url in (
        *(
            "",
            "localhost:8001",
            "grpc://localhost",
            "ftp://a:1",
            "http://a:1/path",
            "http://a:99999",
        ),
        *("http://u:p@a:1", "http://a:1?q", "grpc://a b:1", "http://:1", "http://a:1\n"),
    ):
        assert "grpc://host:port" in refusal(UsageError, partial(TritonRuntime, url, bundle))
    url = "grpc://127.0.0.1:1"
    for timeout_s in (0, -1, float("nan"), float("inf")):
        assert "timeout" in refusal(
            UsageError, partial(TritonRuntime, url, bundle, timeout_s=timeout_s)
        )
    assert "retries" in refusal(UsageError, partial(TritonRuntime, url, bundle, retries=-1))


@both_protocols
def test_without_the_client_the_remedy_is_named(
    protocol: Protocol, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, f"tritonclient.{protocol}", None)
    url = f"{protocol}://127.0.0.1:1"
    line = refusal(RuntimeUnavailable, lambda: TritonRuntime(url, bundle))
    assert "pip install 'deitlt[triton]'" in line
