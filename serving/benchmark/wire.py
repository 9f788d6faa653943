"""Requests as bytes made beforehand, and what an answer says: the best class, how probable."""

import json
import re
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from deitlt.metrics import softmax

BOUNDARY = "benchmark-7d1b0c"
OUTPUT = "logits"
_JSON_LENGTH = re.compile(rb"\r\ninference-header-content-length: *(\d+)", re.IGNORECASE)


class Best(NamedTuple):
    """The best class of an answer."""

    class_index: int
    probability: float


# From an image to what follows the request line: headers and body.
Encode = Callable[[bytes], tuple[dict[str, str], bytes]]
# From the head and the body of an answer.
Read = Callable[[bytes, bytes], Best]


def request(path: str, encode: Encode, image: bytes) -> bytes:
    """A whole POST request on a connection that is kept."""
    headers, body = encode(image)
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def get(path: str) -> bytes:
    """A whole GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def raw(image: bytes) -> tuple[dict[str, str], bytes]:
    """The file is the body."""
    return {"Content-Type": "application/octet-stream"}, image


def form(field: str) -> Encode:
    """The file is a part of a form."""

    def encode(image: bytes) -> tuple[dict[str, str], bytes]:
        # BentoML hands the part's type on to Pillow, which then takes no other format.
        head = (
            f"--{BOUNDARY}\r\nContent-Disposition: form-data; "
            f'name="{field}"; filename="image"\r\nContent-Type: application/octet-stream\r\n\r\n'
        )
        body = head.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
        return {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, body

    return encode


def kserve(image: bytes) -> tuple[dict[str, str], bytes]:
    """The Open Inference Protocol with its binary extension: a BYTES tensor, the logits back."""
    data = struct.pack("<I", len(image)) + image
    tensor = {
        "name": "encoded",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(data)},
    }
    wanted = {"name": OUTPUT, "parameters": {"binary_data": True}}
    text = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(text)),
    }
    return headers, text + data


def read_prediction(head: bytes, body: bytes) -> Best:
    """`Prediction.to_dict` as JSON, or a list of one."""
    answer = json.loads(body)
    fields = answer[0] if isinstance(answer, list) else answer
    return Best(fields["index"], fields["probability"])


def read_logits(head: bytes, body: bytes) -> Best:
    """Binary float32 logits behind a JSON text whose length the head gives."""
    length = _JSON_LENGTH.search(head)
    assert length is not None, head
    logits = np.frombuffer(body[int(length[1]) :], dtype="<f4")
    probabilities = softmax(logits[None])[0]
    index = int(probabilities.argmax())
    return Best(index, float(probabilities[index]))
