"""The routes of our own API.

The event loop only moves bytes: decoding and the model run on the engine's threads.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import quote

from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deitlt import __version__
from deitlt.bundle import OUTPUTS, Bundle
from deitlt.classifier import Classifier
from deitlt.errors import DeadlineExceeded, ImageError, UsageError
from deitlt.prediction import Options, Prediction, Timing
from serving.answers import error_response, refuse_vast, results_body
from serving.backend import Backend, backend_of
from serving.bodies import Take
from serving.models import Model
from serving.openapi import document
from serving.uploads import read_images

# What a body asks for: images, or why one of several is none, and what the answers should hold.
Asked = tuple[list[bytes | ImageError], Options]
FLAGS = ("experts", "logits")
OPTIONS = ("experts", "top_k", "blend", "logits", "model", "version")
# As JSON writes them. int() and float() take more: 1_0, spaces, digits of other scripts, nan.
NUMBERS: dict[str, tuple[Callable[[str], float], re.Pattern[str], str]] = {
    "top_k": (int, re.compile("-?[0-9]{1,100}"), "a whole number"),
    "blend": (float, re.compile(r"-?[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?"), "a number"),
}


def routes() -> list[Route]:
    """Path, handler and methods of each."""
    return [
        Route("/v1/classify", classify, methods=["POST"]),
        Route("/v1/explain", explain, methods=["POST"]),
        Route("/v1/models", get_models),
        Route("/v1/models/{name}", get_model),
        Route("/metrics", get_metrics),
        Route("/openapi.json", get_openapi),
    ]


async def get_models(request: Request) -> Response:
    """Every model that is served, the default first."""
    models = backend_of(request).models.all()
    return JSONResponse({"models": [card(model, default=model is models[0]) for model in models]})


async def get_model(request: Request) -> Response:
    """The card of one model; `?version=` picks one of several versions."""
    models, query = backend_of(request).models, request.query_params
    if query.keys() - {"version"} or len(query.multi_items()) > 1:
        raise UsageError("there is no option but version, once")
    model = models.find(request.path_params["name"], query.get("version"))
    return JSONResponse(card(model, default=model is models.default))


async def get_metrics(request: Request) -> Response:
    """Counters for Prometheus."""
    metrics = backend_of(request).metrics
    return Response(metrics.text(), headers={"Content-Type": metrics.content_type})


async def get_openapi(request: Request) -> Response:
    """What this API takes and gives, for tools."""
    return JSONResponse(document(__version__))


async def classify(request: Request) -> Response:
    """Classify one image or several."""
    options = read_options(request.query_params)
    model = asked_model(request)
    return await answer(request, model, model.classifier, partial(_read, request, options))


async def explain(request: Request) -> Response:
    """Classify one image or several, and say where both experts looked."""
    options = replace(read_options(request.query_params), experts=True, rollouts=True)
    model = asked_model(request)
    if model.explainer is None:
        text = f"{model.name} {model.version} is served without explanations; {_how(request)}"
        return error_response(404, "not_found", text, request)
    return await answer(request, model, model.explainer, partial(_read, request, options))


def _how(request: Request) -> str:
    """What whoever runs the service does to have explanations."""
    if backend_of(request).settings.explain:
        return "export it again with --variants explain"
    return "set DEITLT_EXPLAIN=true and serve a bundle exported with --variants explain"


def asked_model(request: Request) -> Model:
    """The model that the query names, or the default one; raises `UnknownModel`."""
    query = request.query_params
    return backend_of(request).models.find(query.get("model"), query.get("version"))


async def _read(request: Request, options: Options, take: Take) -> Asked:
    backend = backend_of(request)
    images = await read_images(
        request,
        max_bytes=backend.settings.max_bytes,
        max_images=min(backend.settings.max_images, backend.engine.capacity),
        take=take,
    )
    return images, options


async def answer(
    request: Request,
    model: Model,
    classifier: Classifier,
    read: Callable[[Take], Awaitable[Asked]],
) -> Response:
    """The answer for the images of a request.

    One image gives one result, or its error as the status. Several give 200 and
    `{"results": [...]}`, a result or an error each, in order. `answers.STATUS` has the others.

    Args:
        request: its body has not been read.
        model: named in the answer.
        classifier: the form of the model to ask.
        read: reads the body, and tells what it is given of the bytes.
    """
    backend = backend_of(request)
    settings = backend.settings
    deadline = time.monotonic() + settings.timeout_s
    backend.engine.refuse_if_full()  # before a body is put together that nobody will look at
    with backend.bodies.hold() as take:
        try:
            # Giving up cancels the futures, so images that still wait are never begun.
            async with asyncio.timeout(settings.timeout_s):
                images, options = await read(take)
                refuse_vast(len(images) * num_scores(options, classifier.bundle))
                timings = [Timing() for _ in images]
                good = {i: image for i, image in enumerate(images) if isinstance(image, bytes)}
                futures = backend.engine.submit_all(
                    [*good.values()],
                    options,
                    deadline=deadline,
                    classifier=classifier,
                    timings=[timings[i] for i in good],
                )
                answers = dict(zip(good, await finished(futures, request), strict=True))
        except TimeoutError as error:
            text = f"there was no answer within {settings.timeout_s:g} s"
            raise DeadlineExceeded(text) from error
    outcomes = [answers.get(i, image) for i, image in enumerate(images)]
    body = await results_body(outcomes, model, request.state.request_id)
    _count(backend, model, outcomes, timings)
    headers = {
        "X-Model": quote(f"{model.name}/{model.version}"),  # a header holds no other letters
        "X-Queue-Time-Ms": _ms(timing.wait_s for timing in timings),
        "X-Decode-Time-Ms": _ms(timing.decode_s for timing in timings),
        "X-Inference-Time-Ms": _ms(timing.infer_s for timing in timings),
    }
    if len(outcomes) == 1 and isinstance(outcomes[0], ImageError):
        raise outcomes[0]
    return Response(body, headers=headers, media_type="application/json")


def num_scores(options: Options, bundle: Bundle) -> int:
    """How many scores the answer for an image lists, at most."""
    num_classes = len(bundle.classes)
    of_heads = min(options.top_k, num_classes) * (3 if options.experts else 1)
    return of_heads + (len(OUTPUTS) * num_classes if options.logits else 0)


async def finished(futures: list[Future[Any]], request: Request) -> list[Any]:
    """What the futures give or raise; all are cancelled if the client leaves first.

    Raises:
        ClientDisconnect: nobody waits for the answer any more.
    """
    if not futures:
        return []
    # By hand: gather over wrap_future and wait make four futures and tasks an image, and the event
    # loop shares its core with the model.
    loop = asyncio.get_running_loop()
    settled: asyncio.Future[None] = loop.create_future()
    num_open = len(futures)

    def settle(_: object = None) -> None:
        if not settled.done():
            settled.set_result(None)

    def count() -> None:
        nonlocal num_open
        num_open -= 1
        if num_open == 0:
            settle()

    def tell(_: object) -> None:  # on one of the engine's threads
        if not loop.is_closed():
            loop.call_soon_threadsafe(count)

    gone = loop.create_task(_disconnected(request))
    gone.add_done_callback(settle)
    try:
        for future in futures:
            future.add_done_callback(tell)
        await settled
        if num_open:
            raise ClientDisconnect
        return [future.exception() or future.result() for future in futures]
    finally:
        gone.cancel()
        for future in futures:
            future.cancel()


def read_options(query: QueryParams) -> Options:
    """The options in a query string.

    Raises:
        UsageError: an option is unknown, repeated or has a wrong value.
    """
    fields: dict[str, Any] = {}
    for name, texts in ((name, query.getlist(name)) for name in query):
        if name not in OPTIONS:
            raise UsageError(f"there is no option {name[:40]!r}; there are {', '.join(OPTIONS)}")
        if len(texts) > 1:
            raise UsageError(f"{name} is given {len(texts)} times; give it once")
        text = texts[0]
        if name in FLAGS:
            if text not in ("true", "false"):
                raise UsageError(f"{name} is {text[:40]!r}; it must be true or false")
            fields[name] = text == "true"
        elif name in NUMBERS:
            number, pattern, noun = NUMBERS[name]
            if not pattern.fullmatch(text):
                raise UsageError(f"{name} is {text[:40]!r}; it must be {noun}")
            fields[name] = number(text)
    return Options(**fields)


def card(model: Model, *, default: bool) -> dict[str, Any]:
    """What is served, how good it was when exported, and where it runs."""
    classifier = model.classifier
    bundle = classifier.bundle
    return {
        "name": model.name,
        "version": model.version,
        "default": default,
        "classes": bundle.classes,
        "train_counts": bundle.train_counts,
        "groups": bundle.groups(),
        "preprocess": bundle.preprocess.to_dict(),
        "artefacts": bundle.manifest["artefacts"],
        "variant": classifier.variant,
        "provider": classifier.runtime.provider,
        "explain": model.explainer is not None,
    }


def _count(
    backend: Backend,
    model: Model,
    outcomes: list[Prediction | BaseException],
    timings: list[Timing],
) -> None:
    backend.metrics.count_images(len(outcomes))
    for outcome, timing in zip(outcomes, timings, strict=True):
        if isinstance(outcome, Prediction):
            backend.metrics.count_prediction(model, outcome, timing)
        elif isinstance(outcome, ImageError) and len(outcomes) > 1:
            backend.metrics.count_refusal(outcome.code)  # of a single one the answer is counted


async def _disconnected(request: Request) -> None:
    """Return when the client leaves; its body has been read, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _ms(seconds: Iterable[float]) -> str:
    return f"{1000 * max(seconds):.1f}"
