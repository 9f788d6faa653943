"""The OpenAPI 3.1 document of every route, written by hand and held to the routes by a test."""

import re
from typing import Any

from serving.schemas import (
    BOOLEAN,
    ERRORS,
    GIF,
    NUMBER,
    PROBABILITY,
    SCHEMAS,
    SIZE,
    STRING,
    array,
    record,
    ref,
)

JSON, HTML, BYTES = "application/json", "text/html", "application/octet-stream"
HEADERS = {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}
DESCRIPTION = """Every answer has an `X-Request-ID`, the caller's own if that is fit for a log, \
and the time it took in `X-Total-Time-Ms`.

Other paths answer 404 `not_found`, other methods 405 `method_not_allowed`. Where the service has \
an API key, 401 comes first. What is not HTTP is 400, headers of more \
than 64 KiB are 431, and such as take over 30 s to come 408. An answer that would list more than a \
million scores, of all images and heads together, is refused with 400.

Under `/v2` is the Open Inference Protocol (KServe v2); its errors are a text, `<code>: <message>`.
"""


def document(version: str) -> dict[str, Any]:
    """The whole document, for this version of the service."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "DeiT-LT",
            "version": version,
            "summary": "Long-tailed image classification with a head and a tail expert.",
            "description": DESCRIPTION,
        },
        "servers": [{"url": "/"}],
        "paths": PATHS,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
        "security": [{}, {"key": []}, {"bearer": []}],
    }


def _errors(*statuses: int, schema: str = "Error") -> dict[str, Any]:
    """Answers with these statuses, and with 500, which every route has."""
    body = {JSON: {"schema": ref(schema)}}
    return {
        str(status): {
            "description": ERRORS[status],
            **({"headers": {HEADERS[status]: {"schema": STRING}}} if status in HEADERS else {}),
            "content": body,
        }
        for status in sorted({*statuses, 500})
    }


def _ok(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"200": {"description": description, "content": {JSON: {"schema": schema}}}}


def _parameter(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _operation(summary: str, responses: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"summary": summary, **more, "responses": responses}


FLAG = {"type": "string", "enum": ["true", "false"], "default": "false"}
MODEL_VERSION = _parameter("version", STRING, "Version of the model.")
IN_PATH = {"in": "path", "required": True, "schema": STRING}
# fmt: off
OF_IMAGES = (400, 401, 404, 413, 415, 422, 429, 503, 504)
_IMAGE = {"schema": {"type": "string", "format": "binary"}}
_CLASSIFY = _operation(
    "Classify one image, or several: a bad one among several fails alone",
    {**_ok(
        {"oneOf": [ref("Prediction"), ref("Results")]},
        "A prediction; of several images a list of predictions and errors, in order.",
    ), **_errors(*OF_IMAGES)},
    parameters=[
        _parameter("experts", FLAG, "Add what CLS and DIST say on their own."),
        _parameter("top_k", {**SIZE, "minimum": 1, "default": 5}, "How many classes to list."),
        _parameter("blend", {**PROBABILITY, "default": 0.5}, "Weight of CLS against DIST."),
        _parameter("logits", FLAG, "Add the scores before softmax."),
        _parameter("model", STRING, "Name of the model; the default one if left out."),
        MODEL_VERSION,
    ],
    requestBody={"required": True, "content": {
        "image/*": _IMAGE,
        BYTES: _IMAGE,
        "multipart/form-data": {"schema": {
            **record("image", image=array(_IMAGE["schema"], minItems=1)),
            "description": "A file part for each image; the service does not look at its name.",
        }},
        JSON: {"schema": {"oneOf": [ref("OneImage"), ref("Images")]}},
    }},
)
# fmt: on
_TIMES = {f"X-{stage}-Time-Ms": {"schema": NUMBER} for stage in ("Queue", "Decode", "Inference")}
_CLASSIFY["responses"]["200"]["headers"] = {
    "X-Model": {"schema": STRING, "description": "Name/version, percent-encoded as in a URL."},
    **_TIMES,
}
_NO_EXPLANATION = "`not_found`: this model is served without explanations."
_EXPLAIN = {
    **_CLASSIFY,
    "summary": "The same with `experts` and `rollouts`: where in the image both experts looked",
    "responses": {
        **_CLASSIFY["responses"],
        "404": {**_errors(404)["404"], "description": f"{ERRORS[404]} {_NO_EXPLANATION}"},
    },
}
_NAME, _VERSION = ({"name": name, **IN_PATH} for name in ("name", "version"))
_JSON_SIZE = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "schema": SIZE,
    "description": "Size of the JSON, if binary data follows it.",
}
# fmt: off
_INFER: dict[str, Any] = {
    "required": True,
    "description": "JSON; with `Inference-Header-Content-Length` binary data follows it.",
    "content": {JSON: {"schema": ref("InferRequest"), "example": {"inputs": [
        {"name": "encoded", "datatype": "BYTES", "shape": [1], "data": [GIF]},
    ]}}},
}
_OPEN: dict[str, Any] = {"security": []}
_PAGE = {
    "200": {"description": "The page.", "content": {HTML: {"schema": STRING}}},
    "304": {"description": "Unchanged since the `ETag` in `If-None-Match`."},
    **_errors(),
}
_ROOT = {**_PAGE, "200": {
    "description": "The page, or this for whoever does not prefer HTML.",
    "content": {JSON: {"schema": ref("Index")}, HTML: {"schema": STRING}},
}}
_METRICS = {"200": {"description": "Counters.", "content": {"text/plain": {"schema": STRING}}}}
# fmt: on


def _v2(summary: str, schema: dict[str, Any], *statuses: int, **more: Any) -> dict[str, Any]:
    answers = {**_ok(schema, "The answer."), **_errors(*statuses, schema="TextError")}
    return _operation(summary, answers, **more)


def _probe(summary: str, description: str) -> dict[str, Any]:
    """Of BentoML, which knows no other body; not asked for the key, and not logged."""
    text = {"content": {"text/plain": {"schema": STRING}}}
    answers = {"200": {"description": description, **text}, "503": {"description": "No.", **text}}
    return _operation(summary, answers, **_OPEN)


def _health(word: str) -> dict[str, Any]:
    return {"get": _v2(f"Whether the service is {word}", record(word, **{word: BOOLEAN}), **_OPEN)}


def _of_model(path: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    """The paths of a model: of its default version, or of one that is named."""
    more = {"parameters": list(parameters)}
    ready = record("name ready", ready=BOOLEAN)
    infer = _v2(
        "Scores of images; one that cannot be classified refuses them all",
        ref("InferResponse"),
        *OF_IMAGES,
        parameters=[*parameters, _JSON_SIZE],
        requestBody=_INFER,
    )
    infer["responses"]["200"]["content"][BYTES] = _IMAGE
    return {
        path: {"get": _v2("Inputs and outputs of a model", ref("Metadata"), 401, 404, **more)},
        f"{path}/ready": {"get": _v2("Whether a model is ready", ready, 401, 404, **more)},
        f"{path}/config": {"get": _v2("Triton's configuration", ref("Config"), 401, 404, **more)},
        f"{path}/infer": {"post": infer},
    }


# fmt: off
PATHS: dict[str, Any] = {
    "/": {"get": _operation("A page to try the model; for programs this list", _ROOT, **_OPEN)},
    "/docs": {"get": _operation("This document as a page", _PAGE, **_OPEN)},
    "/livez": {"get": _probe(
        "Whether the process lives; it is to be started again if not", "It lives."
    )},
    "/readyz": {"get": _probe(
        "Whether requests are answered: warmed up, not ending, the runtime there", "They are."
    )},
    "/v1/classify": {"post": _CLASSIFY},
    "/v1/explain": {"post": _EXPLAIN},
    "/v1/models": {"get": _operation(
        "Every model served, the default first", {**_ok(ref("Models"), "Cards."), **_errors(401)}
    )},
    "/v1/models/{name}": {"get": _operation(
        "The card of a model", {**_ok(ref("Model"), "The card."), **_errors(400, 401, 404)},
        parameters=[_NAME, MODEL_VERSION],
    )},
    "/sdk/classify": {"post": _operation(
        "Classify one image, for BentoML's own clients",
        {**_ok(ref("Prediction"), "The prediction."), **_errors(*OF_IMAGES)},
        requestBody={"required": True, "content": {JSON: {"schema": ref("SdkCall")}}},
    )},
    "/metrics": {"get": _operation(
        "Counters in Prometheus' text format", {**_METRICS, **_errors(401)}
    )},
    "/openapi.json": {"get": _operation(
        "This document", {**_ok({"type": "object"}, "OpenAPI 3.1."), **_errors()}, **_OPEN
    )},
    "/v2": {"get": _v2(
        "What serves here", record("name version extensions", extensions=array(STRING)), 401
    )},
    "/v2/health/live": _health("live"),
    "/v2/health/ready": _health("ready"),
    "/v2/repository/index": {"post": _v2(
        "Every model and version", array(record("name version state")), 401
    )},
    **_of_model("/v2/models/{name}", _NAME),
    **_of_model("/v2/models/{name}/versions/{version}", _NAME, _VERSION),
}
# fmt: on
for _path, _methods in PATHS.items():
    for _method, _named in _methods.items():
        _named["operationId"] = "_".join([_method, *re.findall("[a-z0-9]+", _path)])
