"""The Open Inference Protocol (KServe v2) with Triton's binary tensors, for NVIDIA's clients.

Input is `images`, preprocessed `(B, S, S, 3)` UINT8 pixels, or `encoded`, `(B, 1)` or `(B,)` BYTES,
image files, prepared as those of /v1/classify. Output are `logits` and, where the graph has them,
`cls_logits` and `distillation_logits`, `(B, C)` FP32. Each image takes its own place in the queue.

Errors have the statuses of the other routes, but a text as their body (`answers.error_response`).
"""

import asyncio
import json
import time
import zlib
from base64 import b64decode
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from math import prod
from typing import Any, NamedTuple

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deitlt import __version__, errors
from deitlt.bundle import FLOAT32, INPUT
from deitlt.classifier import Classifier
from deitlt.engine import Task
from deitlt.metrics import best_classes
from deitlt.prediction import Options, Prediction, Timing
from deitlt.preprocess import Pixels
from serving.answers import refuse_vast
from serving.backend import backend_of
from serving.bodies import PLAIN, Take, content_encoding, inflated, limited, parse_json
from serving.models import Model
from serving.routes import finished

Endpoint = Callable[[Request], Awaitable[Response]]
Wanted = tuple[str, bool, int]
ENCODED = "encoded"
JSON_SIZE = "Inference-Header-Content-Length"
TYPES = {"UINT8": "TYPE_UINT8", "BYTES": "TYPE_STRING", "FP32": "TYPE_FP32"}


class Tensor(NamedTuple):
    """An input or output of a model; `shape` is that of one image."""

    name: str
    datatype: str
    shape: list[int]


class Contract(NamedTuple):
    """What a model takes and gives, and how many images at once."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    max_images: int


def routes() -> list[Route]:
    """Path, handler and methods of each."""

    def route(path: str, endpoint: Endpoint, method: str = "GET") -> Route:
        # A `partial` of its own for each route: requests are counted by their endpoint.
        return Route(path, partial(endpoint), methods=[method])

    own = [
        route("/v2", get_server),
        route("/v2/health/live", get_ready),
        route("/v2/health/ready", get_ready),
        route("/v2/repository/index", post_index, "POST"),
    ]
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        own += [
            route(path, get_model),
            route(f"{path}/ready", get_ready),
            route(f"{path}/config", get_config),
            route(f"{path}/infer", infer, "POST"),
        ]
    return own


async def get_server(request: Request) -> Response:
    """What serves here."""
    extensions = ["binary_tensor_data", "classification", "model_configuration"]
    return JSONResponse({"name": "deitlt", "version": __version__, "extensions": extensions})


async def get_ready(request: Request) -> Response:
    """Live, and ready: warm, which every model is before the first request, and its runtime there.

    Raises:
        DeviceLost: the process has to be started again.
        RuntimeUnavailable: a remote runtime does not answer, and it is asked for ready.
    """
    about = {"name": _find(request)[0].name} if request.path_params else {}
    word = request.scope["path"].rpartition("/")[2]
    if not backend_of(request).alive():
        raise errors.DeviceLost("the GPU of a model is lost to this process; start it again")
    if word == "ready" and not await asyncio.to_thread(backend_of(request).ready):
        raise errors.RuntimeUnavailable("the runtime of a model does not answer")
    return JSONResponse({**about, word: True})


async def post_index(request: Request) -> Response:
    """Every model and version. The body may ask for ready ones alone, which all are."""
    models = backend_of(request).models.all()
    return JSONResponse([{"name": m.name, "version": m.version, "state": "READY"} for m in models])


async def get_model(request: Request) -> Response:
    """Inputs and outputs of a model; -1 stands for the number of images."""
    model, contract = _find(request)
    models = backend_of(request).models.all()
    about: dict[str, Any] = {
        "name": model.name,
        "versions": [other.version for other in models if other.name == model.name],
        "platform": "deitlt",
    }
    for kind, tensors in (("inputs", contract.inputs), ("outputs", contract.outputs)):
        about[kind] = [{**tensor._asdict(), "shape": [-1, *tensor.shape]} for tensor in tensors]
    return JSONResponse(about)


async def get_config(request: Request) -> Response:
    """The same in the form of Triton's model configuration."""
    model, contract = _find(request)
    config: dict[str, Any] = {"name": model.name, "platform": "deitlt", "backend": "deitlt"}
    config["max_batch_size"] = contract.max_images
    for kind, tensors in (("input", contract.inputs), ("output", contract.outputs)):
        more = {"optional": True} if kind == "input" else {}
        config[kind] = [
            {"name": name, "data_type": TYPES[datatype], "dims": shape, **more}
            for name, datatype, shape in tensors
        ]
    return JSONResponse(config)


async def infer(request: Request) -> Response:
    """Scores of one image or several; one that cannot be classified refuses the whole request."""
    backend, (model, contract) = backend_of(request), _find(request)
    timeout_s = backend.settings.timeout_s
    deadline = time.monotonic() + timeout_s
    backend.engine.refuse_if_full()
    with backend.bodies.hold() as take:
        try:
            # Giving up cancels the futures, so images that still wait are never begun.
            async with asyncio.timeout(timeout_s):
                request_id, outputs, images = await _read(request, contract, take)
                timings = [Timing() for _ in images]
                tasks = [_task(model.classifier, image) for image in images]
                futures = backend.engine.submit_tasks(tasks, deadline=deadline, timings=timings)
                outcomes = await finished(futures, request)
        except TimeoutError as error:
            raise errors.DeadlineExceeded(f"there was no answer within {timeout_s:g} s") from error
    backend.metrics.count_images(len(outcomes))
    for number, outcome in enumerate(outcomes, start=1):
        if isinstance(outcome, errors.ImageError):
            raise type(outcome)(f"image {number}: {outcome}") from outcome
        if isinstance(outcome, BaseException):
            raise outcome
    for outcome, timing in zip(outcomes, timings, strict=True):  # which the client really gets
        backend.metrics.count_prediction(model, outcome, timing)
    # Of many classes it takes long, and other requests have their turn.
    return await asyncio.to_thread(_answer, request_id, model, outcomes, outputs)


def _find(request: Request) -> tuple[Model, Contract]:
    backend, path = backend_of(request), request.path_params
    model = backend.models.find(path["name"], path.get("version"))
    bundle = model.classifier.bundle
    size, num_classes = bundle.preprocess.img_size, len(bundle.classes)
    # A Triton server does not say which form it runs; then it is the one of the settings.
    variant = model.classifier.variant or backend.settings.variant or FLOAT32
    heads = bundle.manifest["artefacts"][variant]["outputs"]
    return model, Contract(
        [Tensor(INPUT, "UINT8", [size, size, 3]), Tensor(ENCODED, "BYTES", [1])],
        [Tensor(head, "FP32", [num_classes]) for head in heads],
        min(backend.settings.max_images, backend.engine.capacity),
    )


async def _read(
    request: Request, contract: Contract, take: Take
) -> tuple[str, list[Wanted], list[bytes | Pixels]]:
    """Id, outputs and images of a request; of its JSON nothing else is kept."""
    fields, binary = await _read_body(request, backend_of(request).settings.max_bytes, take)
    request_id: str = _get(fields, "id", "", request.state.request_id)
    outputs, images = _read_outputs(fields, contract), _read_images(fields, binary, contract)
    most = contract.outputs[0].shape[0]
    listed = sum(min(best or most, most) for _, is_binary, best in outputs if best or not is_binary)
    refuse_vast(len(images) * listed)
    return request_id, outputs, images


async def _read_body(request: Request, max_bytes: int, take: Take) -> tuple[Any, memoryview]:
    """The JSON of a body, which may come compressed, and the binary data behind it."""
    encoding = content_encoding(request, "gzip", "deflate")
    body = await limited(request, max_bytes, take).body()
    try:
        if encoding != PLAIN:
            body = await inflated(body, max_bytes, take)
        size = int(request.headers.get(JSON_SIZE, str(len(body)))[:12])
        _need(0 <= size <= len(body), f"{JSON_SIZE} is not within the body")
        return parse_json(body[:size]), memoryview(body)[size:]
    except (ValueError, zlib.error) as error:
        raise errors.UsageError(
            f"the body is not JSON up to {JSON_SIZE}, or not {encoding}"
        ) from error


def _read_images(fields: Any, binary: memoryview, contract: Contract) -> list[bytes | Pixels]:
    """One item an image, from the one input of a request."""
    inputs = _get(fields, "inputs", [], [])
    _need(len(inputs) == 1, f"send one input, {INPUT} or {ENCODED}, not {len(inputs)}")
    name, shape = _get(inputs[0], "name", "", ""), _get(inputs[0], "shape", [], [])
    found = [tensor for tensor in contract.inputs if tensor.name == name]
    _need(bool(found), f"there is no input {name[:40]!r}; send {INPUT} or {ENCODED}")
    kind, rest, most = found[0].datatype, found[0].shape, contract.max_images
    _need(_get(inputs[0], "datatype", "", "") == kind, f"the datatype of {name} must be {kind}")
    _need(
        set(map(type, shape)) == {int}
        and 1 <= shape[0] <= most
        and (shape[1:] == rest or (name == ENCODED and len(shape) == 1)),
        f"the shape of {name} must be {['B', *rest]} with B from 1 to {most}".replace("'", ""),
    )
    size = _get(_get(inputs[0], "parameters", {}, {}), "binary_data_size", 0, None)
    data = _get(inputs[0], "data", [], None)
    _need(
        (data is None) != (size is None) and (size or 0) == len(binary),
        f"{name} must have either data, or as binary_data_size the {len(binary)} bytes that follow",
    )
    if data is None:
        if name == ENCODED:
            return [*_read_files(binary, shape[0])]
        _need(len(binary) == prod(shape), f"{name} has {len(binary)} bytes, not {prod(shape)}")
    else:
        data = _flatten(data, shape)
        if name == ENCODED:
            return [_to_bytes(text) for text in data]
        bytes_alone = {*map(type, data)} == {int} and {*data} <= {*range(256)}
        _need(bytes_alone, f"the data of {name} must be whole numbers from 0 to 255")
        binary = memoryview(bytes(data))
    return [*np.frombuffer(binary, np.uint8).reshape(shape)]


def _read_outputs(fields: Any, contract: Contract) -> list[Wanted]:
    """The outputs that a request asks for, or all: name, whether as binary, best classes or 0."""
    heads = [tensor.name for tensor in contract.outputs]
    all_binary = _get(_get(fields, "parameters", {}, {}), "binary_data_output", False, False)
    wanted: list[Wanted] = []
    for output in _get(fields, "outputs", [], []) or [{"name": head} for head in heads]:
        name, parameters = _get(output, "name", "", ""), _get(output, "parameters", {}, {})
        _need(name in heads, f"there is no output {name[:40]!r} left; there are {', '.join(heads)}")
        heads.remove(name)  # a name that comes twice is not there the second time
        classes = _get(parameters, "classification", 0, 0)
        _need(classes >= 0, "classification must be a number of classes")
        wanted.append((name, _get(parameters, "binary_data", False, all_binary), classes))
    return wanted


def _flatten(data: list[Any], shape: Sequence[int]) -> list[Any]:
    """The items of nested lists of this shape, or of one flat list in its place."""
    if data and not isinstance(data[0], list):
        shape = [prod(shape)]
    level: list[Any] = [data]
    for length in shape:
        fits = all(isinstance(part, list) and len(part) == length for part in level)
        _need(fits, f"the data must be lists of the shape {[*shape]}, or one flat list")
        level = list(chain.from_iterable(level))
    return level


def _to_bytes(text: Any) -> bytes:
    """An image file out of JSON: base64, or its bytes as UTF-8 (no image is base64 by chance)."""
    _need(isinstance(text, str), f"the data of {ENCODED} must be texts")
    with suppress(ValueError):
        return b64decode(text, validate=True)
    return bytes(text.encode(errors="replace"))


def _read_files(binary: memoryview, count: int) -> list[bytes]:
    """BYTES as binary data: before each item four bytes with its size, the lowest first."""
    files = []
    for number in range(1, count + 1):
        end = 4 + int.from_bytes(binary[:4], "little")
        _need(end <= len(binary), f"{ENCODED} is cut off in item {number} of {count}")
        files.append(bytes(binary[4:end]))
        binary = binary[end:]
    _need(not binary, f"{len(binary)} bytes follow the last item of {ENCODED}")
    return files


def _task(classifier: Classifier, image: bytes | Pixels) -> Task[Prediction]:
    def work(timing: Timing) -> Prediction:
        start = time.perf_counter()
        pixels = classifier.load_pixels(image) if isinstance(image, bytes) else image
        decoded = time.perf_counter()
        (outcome,) = classifier.predict_pixels(pixels[None], Options(top_k=1, logits=True))
        timing.decode_s, timing.infer_s = decoded - start, time.perf_counter() - decoded
        if isinstance(outcome, errors.ImageError):
            raise outcome
        return outcome

    return work


def _answer(id_: str, model: Model, rows: list[Prediction], wanted: list[Wanted]) -> Response:
    outputs, chunks = [], []
    for name, is_binary, num_classes in wanted:
        # Python's floats hold a float32 exactly, so nothing is lost on the way.
        logits = np.array([(p.logits or {})[name] for p in rows], "<f4")
        output: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": [*logits.shape]}
        data, binary = logits.ravel().tolist(), logits.tobytes()
        if num_classes:
            classes = model.classifier.bundle.classes
            order = np.stack(best_classes(logits, num_classes))
            output |= {"datatype": "BYTES", "shape": [*order.shape]}
            pairs = ((row[i], i) for row, best in zip(logits, order, strict=True) for i in best)
            data = [f"{score}:{i}:{classes[i]}" for score, i in pairs]
            binary = b"".join(len(t).to_bytes(4, "little") + t for t in map(str.encode, data))
        if is_binary:
            chunks.append(binary)
        output |= {"parameters": {"binary_data_size": len(binary)}} if is_binary else {"data": data}
        outputs.append(output)
    about = {"id": id_, "model_name": model.name, "model_version": model.version}
    head = json.dumps({**about, "outputs": outputs}).encode()
    headers = {JSON_SIZE: str(len(head))} if chunks else {}
    media_type = "application/octet-stream" if chunks else "application/json"
    return Response(head + b"".join(chunks), 200, headers, media_type)


def _get(fields: Any, name: str, like: Any, default: Any) -> Any:
    """A field, which must have the type of `like` (whole numbers are not true or false)."""
    _need(isinstance(fields, dict), "an object of the request is another JSON type")
    value = fields.get(name)
    right = value is None or type(value) is type(like)
    _need(right, f"{name} must be of the JSON type of {json.dumps(like)}")
    return default if value is None else value


def _need(is_so: bool, text: str) -> None:
    if not is_so:
        raise errors.UsageError(text)
