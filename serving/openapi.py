"""The OpenAPI 3.1 document of every route, written by hand and held to the routes by a test."""

import re
from typing import Any

STRING, INTEGER, NUMBER, BOOLEAN = ({"type": t} for t in ("string", "integer", "number", "boolean"))
JSON, HTML, BYTES = "application/json", "text/html", "application/octet-stream"
# Each status with the codes of the errors that have it, in the words of `answers.STATUS`.
ERRORS = {
    400: "`bad_request`: the request is malformed, or an option is wrong.",
    401: "`unauthorized`: this service asks for its API key.",
    404: "`unknown_model`: no such model is served.",
    413: "`too_large`: more bytes or pixels than allowed.",
    415: "`unsupported_image`: not an image, or a body, of an accepted format.",
    422: "`decode_failed`: a damaged image.",
    429: "`overloaded`: the queue is full; try again after `Retry-After` seconds.",
    500: "`internal_error`: a fault of the service; its log has the request id.",
    503: "`shutting_down`, or `runtime_unavailable`: a remote runtime is not reached.",
    504: "`deadline_exceeded`: no answer in time.",
}
# Of requests for which there is no operation here: 404, 405, and 400 that nobody is left to read.
OTHER_CODES = ("not_found", "method_not_allowed", "client_disconnected")
CODES = [*re.findall("`([a-z_]+)`", " ".join(ERRORS.values())), *OTHER_CODES]
HEADERS = {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}
DESCRIPTION = """Every answer has an `X-Request-ID`, the caller's own if that is fit for a log, \
and the time it took in `X-Total-Time-Ms`.

Other paths answer 404 `not_found`, other methods 405 `method_not_allowed`. Where the service has \
an API key, 401 comes first.

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


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


def _object(required: str, /, *, optional: dict[str, Any] | None = None, **properties: Any) -> Any:
    """A closed object; `required` are the names that are always there, texts if not given."""
    names = required.split()
    return {
        "type": "object",
        "properties": {**dict.fromkeys(names, STRING), **properties, **(optional or {})},
        "required": names,
        "additionalProperties": False,
    }


def _errors(*statuses: int, schema: str = "Error") -> dict[str, Any]:
    """Answers with these statuses, and with 500, which every route has."""
    body = {JSON: {"schema": _ref(schema)}}
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


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A field that may also be null, which means that it is left out."""
    return {**schema, "type": [schema["type"], "null"]}


def _open_object(required: str, /, **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "properties": properties}


def _parameters(**properties: dict[str, Any]) -> dict[str, Any]:
    fields = {name: _or_null(schema) for name, schema in properties.items()}
    return {"type": ["object", "null"], "properties": fields}


def _input(name: str, datatype: str, /, *, description: str, **shape: int) -> dict[str, Any]:
    return _open_object(
        "name datatype shape",
        name={"const": name, "description": description},
        datatype={"const": datatype},
        shape=_list({"type": "integer", "minimum": 1}, **shape),
        data={"type": ["array", "null"], "description": "Flat, or lists of this shape."},
        parameters=_parameters(binary_data_size=SIZE),
    )


FLAG = {"type": "string", "enum": ["true", "false"], "default": "false"}
PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
MODEL_VERSION = _parameter("version", STRING, "Version of the model.")
IN_PATH = {"in": "path", "required": True, "schema": STRING}
SIZE = {"type": "integer", "minimum": 0}
GIF = "R0lGODlhAQABAAAAACwAAAAAAQABAAACAkQBADs="  # one black pixel
BASE64 = {"type": "string", "format": "byte", "examples": [GIF]}

# fmt: off
SCHEMAS: dict[str, Any] = {
    "Error": _object("error", error=_object(
        "code message request_id", code={"type": "string", "enum": CODES},
    )),
    "TextError": _object("error", error={
        "type": "string", "pattern": f"^({'|'.join(CODES)}): ",
    }),
    "Score": _object("label index probability", index=INTEGER, probability=PROBABILITY),
    "Experts": _object(
        "cls dist agree", cls=_list(_ref("Score")), dist=_list(_ref("Score")), agree=BOOLEAN
    ),
    "Served": _object("name version"),
    "Prediction": _object(
        "label index probability group experts_agree top_k model request_id",
        index=INTEGER, probability=PROBABILITY,
        group={
            "enum": ["head", "mid", "tail"], "description": "How rare the class is in training.",
        },
        experts_agree={
            "type": ["boolean", "null"],
            "description": "CLS and DIST name the same class; null of a model without experts.",
        },
        top_k=_list(_ref("Score"), description="Best classes, best first."),
        model=_ref("Served"),
        optional={"experts": _ref("Experts"), "logits": {
            "type": "object", "additionalProperties": _list(NUMBER),
            "description": "Scores before softmax in class order, by output.",
        }},
    ),
    "Results": _object(
        "results", results=_list({"oneOf": [_ref("Prediction"), _ref("Error")]}, minItems=2)
    ),
    "Model": _object(
        "name version default classes train_counts groups preprocess artefacts provider",
        default=BOOLEAN, classes=_list(STRING), train_counts=_list(INTEGER),
        groups={"type": "object", "additionalProperties": _list(INTEGER)},
        preprocess={"type": "object"},
        artefacts={"type": "object", "description": "Parity and accuracy of each form."},
        provider={"type": "string", "description": "Where it runs."},
    ),
    "Models": _object("models", models=_list(_ref("Model"), minItems=1)),
    "Index": _object(
        "service version model routes", model=_ref("Served"),
        routes={"type": "object", "additionalProperties": STRING},
    ),
    "OneImage": _object("image", image=BASE64),
    "Images": _object("images", images=_list(BASE64, minItems=1)),
    "Tensor": _object("name datatype shape", shape=_list(
        INTEGER, description="-1 stands for the number of images.",
    )),
    "Metadata": _object(
        "name versions platform inputs outputs", versions=_list(STRING),
        inputs=_list(_ref("Tensor")), outputs=_list(_ref("Tensor")),
    ),
    "TensorConfig": _object(
        "name data_type dims", dims=_list(INTEGER), optional={"optional": BOOLEAN}
    ),
    "Config": _object(
        "name platform backend max_batch_size input output", max_batch_size=INTEGER,
        input=_list(_ref("TensorConfig")), output=_list(_ref("TensorConfig")),
    ),
    "ImagesInput": _input(
        "images", "UINT8", minItems=4, maxItems=4, description="Prepared pixels, `[B, S, S, 3]`."
    ),
    "EncodedInput": _input(
        "encoded", "BYTES", minItems=1, maxItems=2,
        description="Image files, `[B, 1]` or `[B]`; in JSON as base64.",
    ),
    "InferRequest": _open_object(
        "inputs",
        id=_or_null(STRING),
        inputs=_list(
            {"oneOf": [_ref("ImagesInput"), _ref("EncodedInput")]}, minItems=1, maxItems=1
        ),
        outputs=_or_null(_list(_ref("WantedOutput"))),
        parameters=_parameters(binary_data_output=BOOLEAN),
    ),
    "WantedOutput": _open_object(
        "name",
        name={"type": "string", "description": "One of the model's outputs, each once."},
        parameters=_parameters(binary_data=BOOLEAN, classification=SIZE),
    ),
    "Output": _object("name datatype shape", shape=_list(INTEGER), optional={
        "data": _list({"type": ["number", "string"]}),
        "parameters": _object("binary_data_size", binary_data_size=SIZE),
    }),
    "InferResponse": _object(
        "id model_name model_version outputs", outputs=_list(_ref("Output"))
    ),
}
OF_IMAGES = (400, 401, 404, 413, 415, 422, 429, 503, 504)
_IMAGE = {"schema": {"type": "string", "format": "binary"}}
_CLASSIFY = _operation(
    "Classify one image, or several: a bad one among several fails alone",
    {**_ok(
        {"oneOf": [_ref("Prediction"), _ref("Results")]},
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
            **_object("image", image=_list(_IMAGE["schema"], minItems=1)),
            "description": "A file part for each image; the service does not look at its name.",
        }},
        JSON: {"schema": {"oneOf": [_ref("OneImage"), _ref("Images")]}},
    }},
)
# fmt: on
_TIMES = {f"X-{stage}-Time-Ms": {"schema": NUMBER} for stage in ("Queue", "Decode", "Inference")}
_CLASSIFY["responses"]["200"]["headers"] = {"X-Model": {"schema": STRING}, **_TIMES}
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
    "content": {JSON: {"schema": _ref("InferRequest"), "example": {"inputs": [
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
    "content": {JSON: {"schema": _ref("Index")}, HTML: {"schema": STRING}},
}}
_METRICS = {"200": {"description": "Counters.", "content": {"text/plain": {"schema": STRING}}}}
# fmt: on


def _v2(summary: str, schema: dict[str, Any], *statuses: int, **more: Any) -> dict[str, Any]:
    answers = {**_ok(schema, "The answer."), **_errors(*statuses, schema="TextError")}
    return _operation(summary, answers, **more)


def _health(word: str) -> dict[str, Any]:
    return {"get": _v2(f"Whether the service is {word}", _object(word, **{word: BOOLEAN}), **_OPEN)}


def _of_model(path: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    """The paths of a model: of its default version, or of one that is named."""
    more = {"parameters": list(parameters)}
    ready = _object("name ready", ready=BOOLEAN)
    infer = _v2(
        "Scores of images; one that cannot be classified refuses them all",
        _ref("InferResponse"),
        *OF_IMAGES,
        parameters=[*parameters, _JSON_SIZE],
        requestBody=_INFER,
    )
    infer["responses"]["200"]["content"][BYTES] = _IMAGE
    return {
        path: {"get": _v2("Inputs and outputs of a model", _ref("Metadata"), 401, 404, **more)},
        f"{path}/ready": {"get": _v2("Whether a model is ready", ready, 401, 404, **more)},
        f"{path}/config": {"get": _v2("Triton's configuration", _ref("Config"), 401, 404, **more)},
        f"{path}/infer": {"post": infer},
    }


# fmt: off
PATHS: dict[str, Any] = {
    "/": {"get": _operation("A page to try the model; for programs this list", _ROOT, **_OPEN)},
    "/docs": {"get": _operation("This document as a page", _PAGE, **_OPEN)},
    "/v1/classify": {"post": _CLASSIFY},
    "/v1/models": {"get": _operation(
        "Every model served, the default first", {**_ok(_ref("Models"), "Cards."), **_errors(401)}
    )},
    "/v1/models/{name}": {"get": _operation(
        "The card of a model", {**_ok(_ref("Model"), "The card."), **_errors(401, 404)},
        parameters=[_NAME, MODEL_VERSION],
    )},
    "/metrics": {"get": _operation(
        "Counters in Prometheus' text format", {**_METRICS, **_errors(401)}
    )},
    "/openapi.json": {"get": _operation(
        "This document", {**_ok({"type": "object"}, "OpenAPI 3.1."), **_errors()}, **_OPEN
    )},
    "/v2": {"get": _v2(
        "What serves here", _object("name version extensions", extensions=_list(STRING)), 401
    )},
    "/v2/health/live": _health("live"),
    "/v2/health/ready": _health("ready"),
    "/v2/repository/index": {"post": _v2(
        "Every model and version", _list(_object("name version state")), 401
    )},
    **_of_model("/v2/models/{name}", _NAME),
    **_of_model("/v2/models/{name}/versions/{version}", _NAME, _VERSION),
}
# fmt: on
for _path, _methods in PATHS.items():
    for _method, _named in _methods.items():
        _named["operationId"] = "_".join([_method, *re.findall("[a-z0-9]+", _path)])
