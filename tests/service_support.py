"""What the tests of the HTTP service share: limits, pictures to send, checks of an answer."""

import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from deitlt.prediction import Prediction
from serving.service import LongTailClassifier
from tests.bundle_support import DIGITS

MAX_BYTES = 100_000
LIMITS = {
    "DEITLT_MODEL": str(DIGITS),
    "DEITLT_DEVICE": "cpu",
    "DEITLT_WORKERS": "2",
    "DEITLT_MAX_BYTES": str(MAX_BYTES),
    "DEITLT_MAX_PIXELS": "1000000",
    "DEITLT_MAX_IMAGES": "4",
    "DEITLT_DRAIN_S": "0",  # servers of tests end at once
}
CLASSIFY = "/v1/classify"
EXPLAIN = "/v1/explain"
PATIENCE_S = 30


def picture(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = (24, 20)) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


def wide_picture() -> bytes:
    """More pixels than `LIMITS` allows in few bytes."""
    buffer = io.BytesIO()
    Image.new("1", (2000, 1000)).save(buffer, "PNG")
    return buffer.getvalue()


def as_files(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [(f"field{i}", (f"{i}.png", image)) for i, image in enumerate(images)]


class Answer(Protocol):
    """A response of `httpx` or of Starlette's test client."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def text(self) -> str: ...
    def json(self) -> Any: ...


def error_of(response: Answer, status: int, code: str) -> str:
    """The message of an error answer, after checking everything else about it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (error,) = response.json().values()
    assert error["code"] == code
    assert error["request_id"] == response.headers["x-request-id"]
    assert set(error) == {"code", "message", "request_id"}
    message: str = error["message"]
    assert message
    assert "\n" not in message
    return message


def plain(prediction: Prediction) -> Any:
    return json.loads(json.dumps(prediction.to_dict()))


def without_envelope(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in ("model", "request_id")}


@contextmanager
def in_process(**settings: str) -> Iterator[TestClient]:
    """The BentoML service with `LIMITS` and these variables, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("DEITLT_")]:
            patch.delenv(name)
        for name, value in {**LIMITS, **settings}.items():
            patch.setenv(name, value)
        service: Any = LongTailClassifier  # BentoML's decorator has no types
        with TestClient(service.to_asgi()) as client:
            yield client
