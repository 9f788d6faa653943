"""What the tests of the Open Inference Protocol share: a real server, clients, requests."""

import json
import socket
import threading
import time
from typing import Any

import numpy as np
import uvicorn
from numpy.typing import NDArray
from tritonclient.http import InferInput  # type: ignore[import-untyped]

from serving.backend import Backend
from serving.frontend import Frontend
from serving.settings import Settings
from tests.service_support import LIMITS

MAX_IMAGES = 4
SIDE = 16
PIXELS_BYTES = SIDE * SIDE * 3
INFER = "/v2/models/digits/infer"
GIF = b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"  # a UTF-8 text, as few images are
JSON_SIZE = "Inference-Header-Content-Length"


class Server:
    """The service's routes behind a real socket."""

    def __init__(self, **environ: str) -> None:
        frontend = Frontend()
        self.backend = Backend.start(Settings.from_environ({**LIMITS, **environ}))
        frontend.attach(self.backend)
        # With its protocol named, asyncio sends small packets at once.
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self.socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(frontend, log_level="critical"))
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],))
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *reason: object) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.backend.close()
        self.socket.close()


def pixels_of(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def as_input(array: NDArray[Any], *, binary: bool = True) -> InferInput:
    name, datatype = ("images", "UINT8") if array.dtype == np.uint8 else ("encoded", "BYTES")
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def as_objects(*items: bytes | str) -> NDArray[Any]:
    array = np.empty((len(items), 1), np.object_)
    array[:, 0] = items
    return array


SHAPE = [1, SIDE, SIDE, 3]
IMAGES = {"name": "images", "datatype": "UINT8", "shape": SHAPE, "data": [0] * PIXELS_BYTES}
FILES = {"name": "encoded", "datatype": "BYTES", "shape": [1], "data": ["AAAA"]}


def ask(*, tensor: Any = IMAGES, **fields: Any) -> bytes:
    return json.dumps({"inputs": [tensor], **fields}).encode()


def images(**fields: Any) -> bytes:
    return ask(tensor={**IMAGES, **fields})


def files(**fields: Any) -> bytes:
    return ask(tensor={**FILES, **fields})


def binary(tensor: Any, size: Any, data: bytes) -> tuple[bytes, bytes]:
    return ask(tensor={**tensor, "data": None, "parameters": {"binary_data_size": size}}), data
