"""A model of `export.to_triton` on a Triton server, or on another KServe v2 server, as a runtime.

Images are decoded and resized here and travel as uint8 pixels. gRPC goes through NVIDIA's client;
over HTTP only its encoding does, as its HTTP client works in no thread but the one that made it.

Legend: `B` images, `S` image side, `C` classes.
"""

import json
import math
import re
import time
from collections.abc import Callable
from functools import partial
from http.client import responses
from importlib import import_module
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import uuid4

import numpy as np

from deitlt.bundle import INPUT, Bundle
from deitlt.errors import DeadlineExceeded, EngineError, Overloaded, RuntimeUnavailable, UsageError
from deitlt.preprocess import Pixels
from deitlt.runtimes import Logits, Outputs
from deitlt.served_bundle import check_parameters, check_tensors

T = TypeVar("T")
URL = re.compile(r"(?:grpcs?|https?)://([\w.-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")
JSON, JSON_LENGTH = "application/json", "Inference-Header-Content-Length"
# The first pause before a lost request is sent again; each further one is twice as long. Two of
# them outlast gRPC's own pause between attempts to connect, so they do meet a server that is back.
PAUSE_S = 0.2
# By default gRPC looks only every two minutes for a server that was away for long. The lengths are
# those of NVIDIA's client, whose options these replace.
GRPC_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
]
# What HTTP and gRPC call the same failures, and Triton's words where it has no status of its own.
# Of what is RESOURCE_EXHAUSTED, a message that is too large is not for lack of time.
BUSY, BUSY_TEXT = ("429", "RESOURCE_EXHAUSTED"), "Exceeds maximum queue size"
LATE, LATE_TEXT = ("504", "DEADLINE_EXCEEDED"), "Request timeout expired"
LOST, TOO_LARGE_TEXT = ("502", "503", "UNAVAILABLE"), "larger than max"


class TritonRuntime:
    """A served model. Safe to call from many threads; it outlives a restart of the server.

    That the server's model is the bundle's is checked once, when this object is made; one of
    another export of the same classes is taken, and the log says so.
    """

    def __init__(
        self,
        url: str,
        bundle: Bundle,
        *,
        model: str | None = None,
        version: str = "",
        timeout_s: float = 10.0,
        retries: int = 2,
        binary: bool = True,
    ) -> None:
        """Connect, and check that the model is ready and is the bundle's.

        Args:
            url: `grpc://host:port` or `http://host:port`; `grpcs` and `https` with TLS.
            bundle: what the model was exported from.
            model: the model's name; the bundle's by default.
            version: the model's version; the server's choice by default.
            timeout_s: most seconds for one `run` with its retries, and for making this object.
            retries: how often a request is sent again after the connection was lost.
            binary: send tensors over HTTP as bytes; off, as JSON, for servers that know no other.

        Raises:
            UsageError: an argument is out of range.
            RuntimeUnavailable: no server, no such model, it is not ready or not the bundle's.
        """
        if not 0 < timeout_s < math.inf:
            raise UsageError(f"timeout is {timeout_s:g} s; it must be above 0 and finite")
        if retries < 0:
            raise UsageError(f"retries is {retries}; it must be at least 0")
        self.url = url
        self._model = bundle.name if model is None else model
        self._num_classes = len(bundle.classes)
        self._timeout_s, self._retries = timeout_s, retries
        self._wire = _open_wire(url, self._model, version, binary)
        try:
            deadline = time.monotonic() + timeout_s
            self._outputs, self._max_batch = self._check(bundle, version, deadline)
        except EngineError as error:  # too late or too busy even to say what it serves
            raise RuntimeUnavailable(str(error)) from error

    @property
    def provider(self) -> str:
        """`Triton grpc` or the like; where the server stands is not for everyone who may ask."""
        return f"Triton {self.url.partition(':')[0]}"

    def run(self, pixels: Pixels) -> Outputs:
        """Logits of `(B, S, S, 3)` uint8 pixels; more than the model takes at once go in parts.

        Raises:
            Overloaded: the server's queue is full.
            DeadlineExceeded: no answer in time.
            RuntimeUnavailable: the server is gone, or refuses the request.
        """
        deadline = time.monotonic() + self._timeout_s
        step = self._max_batch or max(len(pixels), 1)
        # An empty part in front, so that no images give no rows.
        parts = {name: [np.empty((0, self._num_classes), np.float32)] for name in self._outputs}
        for start in range(0, len(pixels), step):
            part = pixels[start : start + step]
            answer = self._call(partial(self._wire.infer, part, self._outputs), deadline)
            for name, logits in parts.items():
                read = partial(_read_logits, answer, name, (len(part), self._num_classes))
                logits.append(_understood(self.url, read))
        return Outputs(**{name: np.concatenate(arrays) for name, arrays in parts.items()})

    def ready(self, *, timeout_s: float = 2.0) -> bool:
        """Whether the server says now that the model is ready; never raises."""
        try:
            return self._wire.is_well("model_ready", timeout_s)
        except (_Lost, EngineError, RuntimeUnavailable):
            return False

    def close(self) -> None:
        """Drop the connections; `run` raises `RuntimeUnavailable` from here on."""
        self._wire.close()

    def _check(self, bundle: Bundle, version: str, deadline: float) -> tuple[list[str], int | None]:
        """The outputs there are, and the largest batch if there is a limit."""
        place, metadata = f"{self.url}: model {self._model!r}", {}
        for what in ("server_live", "model_ready", "server_ready"):
            is_well = self._call(partial(self._wire.is_well, what), deadline)
            if what == "model_ready":  # of one that is not there this says why
                metadata = self._call(partial(self._wire.describe, "metadata"), deadline)
            if not is_well:
                raise RuntimeUnavailable(f"{self.url}: the {what.replace('_', ' is not ')}")
        try:
            config = self._call(partial(self._wire.describe, "config"), deadline)
        except _Refused:  # an extension of Triton's, which another server need not have
            config = {}
        parameters = config.get("parameters") or {}
        _understood(self.url, partial(check_parameters, place, bundle, parameters, version))
        names = _understood(self.url, partial(check_tensors, place, bundle, metadata))
        return names, config.get("max_batch_size") or None

    def _call(self, ask: Callable[[float], T], deadline: float) -> T:
        """What `ask` returns, given the seconds it may take; again where the connection broke."""
        attempt = 0
        while (remaining_s := deadline - time.monotonic()) > 0:
            try:
                return ask(remaining_s)
            except _Lost as error:
                pause_s = PAUSE_S * 2**attempt
                if attempt == self._retries or time.monotonic() + pause_s >= deadline:
                    raise RuntimeUnavailable(f"{self.url}: {error}") from error
            attempt += 1
            time.sleep(pause_s)
        raise DeadlineExceeded(f"{self.url}: no answer in time")


class _Lost(Exception):
    """The connection broke or the server cannot be reached; another try may succeed."""


class _Refused(RuntimeUnavailable):
    """The server answered, and said no."""


class _HttpWire:
    """KServe's protocol over HTTP; urllib3's pool and its connections serve all threads."""

    def __init__(self, url: str, model: str, version: str, binary: bool) -> None:
        self._library = _library("tritonclient.http")
        urllib3 = _library("urllib3")  # comes with it
        self._timeout, self._errors = urllib3.Timeout, urllib3.exceptions
        # More connections than these are opened where more threads ask, but not kept.
        self._pool = urllib3.connection_from_url(url, maxsize=128, retries=False)
        path = f"/v2/models/{quote(model, safe='')}"
        self._model = f"{path}/versions/{quote(version, safe='')}" if version else path
        self._url, self._binary = url, binary

    def is_well(self, what: str, timeout_s: float) -> bool:
        path = self._model if what == "model_ready" else "/v2/health"
        return bool(self._ask("GET", f"{path}/{what.partition('_')[2]}", timeout_s).status == 200)

    def describe(self, what: str, timeout_s: float) -> dict[str, Any]:
        path = self._model + ("/config" if what == "config" else "")
        data = self._answer("GET", path, timeout_s).data
        return _understood(self._url, lambda: dict(json.loads(data)))

    def infer(self, pixels: Pixels, names: list[str], timeout_s: float) -> Any:
        # Triton's own timeout is in microseconds; a model's queue policy has to allow it.
        codec, form = self._library.InferenceServerClient, {"binary_data": self._binary}
        image = self._library.InferInput(INPUT, list(pixels.shape), "UINT8")
        image.set_data_from_numpy(pixels, **form)
        wanted = [self._library.InferRequestedOutput(name, **form) for name in names]
        more = {"request_id": uuid4().hex, "timeout": int(timeout_s * 1e6)}
        body, json_length = codec.generate_request_body([image], wanted, **more)
        kind = {JSON_LENGTH: str(json_length)} if json_length else {"Content-Type": JSON}
        answer = self._answer("POST", f"{self._model}/infer", timeout_s, body, kind)
        json_length = answer.headers.get(JSON_LENGTH)
        parse = partial(codec.parse_response_body, answer.data, header_length=json_length)
        return _understood(self._url, parse)

    def close(self) -> None:
        self._pool.close()

    def _answer(self, *request: Any) -> Any:
        answer = self._ask(*request)
        if answer.status == 200:
            return answer
        try:
            reason = str(json.loads(answer.data)["error"])
        except (ValueError, TypeError, KeyError):  # of a proxy, say
            reason = responses.get(answer.status, "")
        raise _failure(self._url, str(answer.status), reason)

    def _ask(self, method: str, path: str, timeout_s: float, *body_and_headers: Any) -> Any:
        body, headers = body_and_headers or (None, None)
        timeout = self._timeout(total=timeout_s)
        try:
            return self._pool.request(method, path, body=body, headers=headers, timeout=timeout)
        except self._errors.NewConnectionError as error:  # to urllib3 one of the late ones
            raise _Lost(_one_line(error)) from error
        except self._errors.TimeoutError as error:
            raise DeadlineExceeded(f"{self._url}: no answer in time") from error
        except self._errors.HTTPError as error:
            raise _Lost(_one_line(error)) from error


class _GrpcWire:
    """KServe's protocol over gRPC; NVIDIA's client and its one channel serve all threads."""

    def __init__(self, url: str, model: str, version: str) -> None:
        self._library = _library("tritonclient.grpc")
        scheme, _, address = url.partition("://")
        self._client = self._library.InferenceServerClient(
            address, ssl=scheme == "grpcs", channel_args=GRPC_OPTIONS
        )
        self._model = {"model_name": model, "model_version": version}
        self._url = url

    def is_well(self, what: str, timeout_s: float) -> bool:
        arguments = self._model if what == "model_ready" else {}
        return bool(self._ask(f"is_{what}", timeout_s, **arguments))

    def describe(self, what: str, timeout_s: float) -> dict[str, Any]:
        answer = self._ask(f"get_model_{what}", timeout_s, **self._model, as_json=True)
        return dict(answer.get("config", {}) if what == "config" else answer)

    def infer(self, pixels: Pixels, names: list[str], timeout_s: float) -> Any:
        image = self._library.InferInput(INPUT, list(pixels.shape), "UINT8")
        image.set_data_from_numpy(pixels)
        wanted = [self._library.InferRequestedOutput(name) for name in names]
        request = {**self._model, "inputs": [image], "outputs": wanted, "request_id": uuid4().hex}
        return self._ask("infer", timeout_s, **request, timeout=int(timeout_s * 1e6))

    def close(self) -> None:
        self._client.close()

    def _ask(self, method: str, timeout_s: float, **arguments: Any) -> Any:
        try:
            return getattr(self._client, method)(client_timeout=timeout_s, **arguments)
        except self._library.InferenceServerException as error:
            status = str(error.status()).removeprefix("StatusCode.")
            raise _failure(self._url, status, str(error.message())) from error
        except ValueError as error:  # so gRPC says that the channel is closed
            raise _Lost(_one_line(error)) from error


def _open_wire(url: str, model: str, version: str, binary: bool) -> _HttpWire | _GrpcWire:
    match = URL.fullmatch(url)
    if match is None or int(match["port"]) > 65535:
        raise UsageError(f"{url!r} is no address; use grpc://host:port or http://host:port")
    grpc = url.startswith("grpc")
    return _GrpcWire(url, model, version) if grpc else _HttpWire(url, model, version, binary)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except (ImportError, RuntimeError) as error:  # the latter of a client without this protocol
        raise RuntimeUnavailable(f"no {name} here; pip install 'deitlt[triton]'") from error


def _read_logits(answer: Any, name: str, shape: tuple[int, int]) -> Logits:
    logits = np.asarray(answer.as_numpy(name), np.float32)
    if logits.shape != shape:
        raise ValueError(f"{name} has shape {logits.shape}")
    return logits


def _understood(url: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except RuntimeUnavailable:
        raise
    except Exception as error:  # NVIDIA's code trips over foreign answers in many ways
        raise RuntimeUnavailable(f"{url}: not the answer expected ({_one_line(error)})") from error


def _failure(url: str, status: str, reason: str) -> Exception:
    """What a status other than success means, by HTTP's or gRPC's name."""
    if BUSY_TEXT in reason or (status in BUSY and TOO_LARGE_TEXT not in reason):
        return Overloaded(f"{url}: the server is overloaded; try again later")
    if LATE_TEXT in reason or status in LATE:
        return DeadlineExceeded(f"{url}: no answer in time")
    text = f"{_one_line(reason)} ({status})"
    return _Lost(text) if status in LOST else _Refused(f"{url}: {text}")


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]
