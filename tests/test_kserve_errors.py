"""The Open Inference Protocol with hostile requests and an engine that cannot answer."""

import gzip
import json
import struct
import threading
import time
import zlib
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient as Client  # type: ignore[import-untyped]
from tritonclient.utils import InferenceServerException as Failed  # type: ignore[import-untyped]

from tests.kserve_support import (
    FILES,
    IMAGES,
    INFER,
    JSON_SIZE,
    MAX_IMAGES,
    SHAPE,
    SIDE,
    Server,
    as_input,
    as_objects,
    ask,
    binary,
    files,
    images,
    pixels_of,
)
from tests.service_support import MAX_BYTES, PATIENCE_S, picture, wide_picture


def refusal(response: httpx.Response) -> str:
    """The text of an error, which is all that its body holds."""
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    text = response.json()["error"]
    assert isinstance(text, str)
    assert "\n" not in text
    return f"{response.status_code} {text}"


PACKED = struct.pack("<I", 5) + b"12345"
FIRST = SHAPE[1:]
# What the answer says: the requests, those of two parts with the size of the first as a header.
# fmt: off
WRONG: dict[str, list[Any]] = {
    "is not JSON": [
        b"", b"{", b"\xff{}", b"[" * 50_000, b'{"inputs": [' + b'{"a":' * 9_000,
        b'{"inputs": ' + b"9" * 5_000 + b"}",
    ],
    JSON_SIZE: [
        (ask(), b"", size)
        for size in ("", "0", "1", "-1", "x", "9" * 5000, "1e3", "\u00b2", "99999")
    ],
    "object": [b"[]", b"NaN", b'{"inputs": [null]}', ask(outputs=["logits"])],
    "send one input": [
        b"{}", b'{"inputs": [1], "inputs": []}', json.dumps({"inputs": [IMAGES, FILES]}).encode(),
    ],
    "must be of the JSON type of": [
        b'{"inputs": {}}', ask(id=7), ask(parameters=[]), images(name=["images"]),
        ask(parameters={"binary_data_output": 1}), images(shape="1"), images(data="AAAA"),
        images(parameters={"binary_data_size": "9"}),
        *(ask(outputs=[{"name": "logits", "parameters": {"classification": count}}])
          for count in ("3", True, 1.5)),
    ],
    "there is no input": [images(name="pixels"), images(name="\ud800"), images(name=None)],
    "the datatype of": [images(datatype="FP32"), images(datatype=None), files(datatype="UINT8")],
    "the shape of images must be [B, 16, 16, 3] with B from 1 to 4": [
        *(images(shape=shape) for shape in ([], None, [1], FIRST, [1, *SHAPE], [2**62] * 4)),
        *(images(shape=[first, *FIRST])
          for first in (-1, 0, MAX_IMAGES + 1, 2**70, 1.0, True, "1", None, [1])),
    ],
    "the shape of encoded must be [B, 1] with B": [files(shape=[1, 2]), files(shape=[0])],
    "the data must be lists": [
        files(shape=[2]), images(data=[]), images(data=[0] * 767), images(data=[[0] * 768]),
        images(data=[[[[0, 0, 0]] * SIDE] * (SIDE - 1) + [[]]]),
    ],
    "whole numbers": [
        images(data=[0] * 767 + [last])
        for last in (256, -1, 2**70, 1.5, float("nan"), True, "1", None, [0])
    ],
    "must be texts": [files(data=[7])],
    "must have either data": [
        images(data=None), images(parameters={"binary_data_size": 0}),
        images(data=None, parameters={"shared_memory_region": "a"}),
        binary(IMAGES, 768, bytes(767)), binary(IMAGES, 768, bytes(769)),
        binary(IMAGES, None, bytes(768)), binary(IMAGES, -1, b""), binary(IMAGES, 2**70, b""),
    ],
    "767 bytes, not 768": [binary(IMAGES, 767, bytes(767))],
    "769 bytes, not 768": [binary(IMAGES, 769, bytes(769))],
    "is cut off in item 1": [
        binary(FILES, 0, b""), binary(FILES, 3, PACKED[:3]), binary(FILES, 8, PACKED[:8]),
        binary(FILES, 4, b"\xff" * 4),
    ],
    "9 bytes follow the last item": [binary(FILES, 18, PACKED * 2)],
    "there is no output": [
        ask(outputs=[{"name": "scores"}]), ask(outputs=[{"name": "logits"}, {"name": "logits"}]),
    ],
    "a number of classes": [
        ask(outputs=[{"name": "logits", "parameters": {"classification": -1}}])
    ],
}
# fmt: on


@pytest.mark.parametrize(("words", "body"), [(w, body) for w in WRONG for body in WRONG[w]])
def test_wrong_requests(words: str, body: Any, http: httpx.Client) -> None:
    head, data, *size = body if isinstance(body, tuple) else (body, b"", None)
    stated = size[0] if size else str(len(head))
    headers = [] if stated is None else [(JSON_SIZE.encode(), stated.encode("latin-1"))]
    text = refusal(http.post(INFER, content=head + data, headers=headers))
    assert text.startswith("400 bad_request: ")
    assert words in text


@pytest.mark.parametrize(
    ("file", "start"),
    [
        (picture()[:200], "[422] decode_failed"),
        (b"", "[422] decode_failed"),
        (b"no picture", "[415] unsupported_image"),
        (wide_picture(), "[413] too_large"),
    ],
)
def test_one_bad_image_refuses_them_all(file: bytes, start: str, triton: Client) -> None:
    with pytest.raises(Failed) as caught:
        triton.infer("digits", [as_input(as_objects(picture(), file, picture()))])
    assert str(caught.value).startswith(f"{start}: image 2: ")


# fmt: off
BODIES = {
    "415 unsupported_image": [("br", ask()), ("gzip, gzip", ask())],
    "400 bad_request": [
        ("gzip", ask()), ("gzip", gzip.compress(ask())[:-9]), ("gzip", gzip.compress(ask()) * 2),
        ("deflate", zlib.compress(ask())[2:]), ("deflate", b""),
    ],
    "413 too_large": [
        ("gzip", gzip.compress(bytes(MAX_BYTES + 1))), ("gzip", gzip.compress(bytes(50_000_000))),
        ("identity", bytes(MAX_BYTES + 1)),
    ],
}
# fmt: on


@pytest.mark.parametrize(("start", "body"), [(start, b) for start in BODIES for b in BODIES[start]])
def test_bodies_compressed_or_too_large(
    start: str, body: tuple[str, bytes], http: httpx.Client
) -> None:
    headers, content = {"Content-Encoding": body[0]}, body[1]
    assert refusal(http.post(INFER, content=content, headers=headers)).startswith(start)
    pieces = (content[i : i + 9000] for i in range(0, len(content), 9000))
    assert refusal(http.post(INFER, content=pieces, headers=headers)).startswith(start)


def test_no_damage_to_a_request_is_a_fault_of_the_server(http: httpx.Client) -> None:
    data = struct.pack("<I", len(picture())) + picture()
    head, _ = binary(FILES, len(data), data)
    random = np.random.default_rng(0)
    for _ in range(300):
        body = bytearray(head + data)
        for place in random.integers(0, len(head) + 8, random.integers(1, 4)):
            body[place : place + random.integers(0, 3)] = random.bytes(int(random.integers(0, 3)))
        answer = http.post(INFER, content=bytes(body), headers={JSON_SIZE: str(len(head))})
        assert answer.status_code in (200, 400, 413, 415, 422), body


def test_paths_that_are_not_there(triton: Client, http: httpx.Client) -> None:
    with pytest.raises(Failed) as caught:
        triton.load_model("digits")
    assert str(caught.value).startswith("[404] not_found: ")
    answer = http.get(INFER)
    assert refusal(answer).startswith("405 method_not_allowed: ")
    assert answer.headers["allow"] == "POST"
    assert refusal(http.get("/v2/models/a/versions/b/config")).startswith("404 unknown_model: ")


def test_a_key_is_asked_for_in_a_text() -> None:
    with Server(DEITLT_API_KEY="sesame") as locked, Client(locked.address) as client:
        with pytest.raises(Failed, match=r"^\[401\] unauthorized: "):
            client.get_model_metadata("digits")
        assert client.get_model_metadata("digits", headers={"X-API-Key": "sesame"})
        assert client.is_server_ready()


def test_a_fault_of_ours_is_500_and_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as broken, Client(broken.address) as client:
        classifier = broken.backend.models.default.classifier

        def fail(*_: object) -> None:
            raise RuntimeError("/secret/path")

        monkeypatch.setattr(classifier.runtime, "run", fail)
        with pytest.raises(Failed, match=r"^\[500\] internal_error: ") as caught:
            client.infer("digits", [as_input(pixels_of(1))])
        assert "secret" not in str(caught.value)


def test_a_full_slow_or_closed_engine() -> None:
    with Server(DEITLT_TIMEOUT_S="0.5") as slow, Client(slow.address) as client:

        def refused(status: str, code: str) -> None:
            with pytest.raises(Failed, match=code) as caught:
                client.infer("digits", [as_input(pixels_of(MAX_IMAGES))])
            assert caught.value.status() == status

        def left_the_queue(within_s: float) -> bool:
            until = time.monotonic() + within_s
            while engine.num_waiting and time.monotonic() < until:
                time.sleep(0.01)
            return engine.num_waiting == 0

        engine, go_on = slow.backend.engine, threading.Event()
        work = [lambda timing: go_on.wait(PATIENCE_S)]
        busy = engine.submit_tasks(work * engine.num_workers)
        refused("504", "deadline_exceeded")
        assert left_the_queue(within_s=PATIENCE_S)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"http://{slow.address}{INFER}", content=ask(), timeout=0.1)
        assert left_the_queue(within_s=0.3)  # before its deadline, which is at 0.5
        busy += engine.submit_tasks(work * (engine.capacity - len(busy) - MAX_IMAGES + 1))
        refused("429", "overloaded")
        go_on.set()
        assert all(future.result() for future in busy)
        assert client.infer("digits", [as_input(pixels_of(MAX_IMAGES))])
        engine.close()
        refused("503", "shutting_down")
