"""What goes in and out of the routes, as JSON schemas; `serving.openapi` says where."""

import re
from typing import Any

STRING, INTEGER, NUMBER, BOOLEAN = ({"type": t} for t in ("string", "integer", "number", "boolean"))
# Each status with the codes of the errors that have it, in the words of `answers.STATUS`.
ERRORS = {
    400: "`bad_request`: the request is malformed, or an option is wrong.",
    401: "`unauthorized`: this service asks for its API key.",
    404: "`unknown_model`: no such model is served.",
    413: "`too_large`: more bytes or pixels than allowed.",
    415: "`unsupported_image`: not an image, or a body, of an accepted format.",
    422: "`decode_failed`: a damaged image. `not_finite`: the model overflows on it.",
    429: "`overloaded`: the queue or the memory for bodies is full; try again after `Retry-After` "
    "seconds.",
    500: "`internal_error`: a fault of the service; its log has the request id.",
    503: "`shutting_down`; `runtime_unavailable`: a remote runtime is not reached; `device_lost`: "
    "a GPU failed for good, and the process has to be started again.",
    504: "`deadline_exceeded`: no answer in time.",
}
# Of requests for which there is no operation here: 404, 405, and 400 that nobody is left to read.
OTHER_CODES = ("not_found", "method_not_allowed", "client_disconnected")
CODES = [*re.findall("`([a-z_]+)`", " ".join(ERRORS.values())), *OTHER_CODES]


def ref(name: str) -> dict[str, Any]:
    """One of `SCHEMAS`, by name."""
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A list of these items."""
    return {"type": "array", "items": items, **more}


def record(required: str, /, *, optional: dict[str, Any] | None = None, **properties: Any) -> Any:
    """A closed object; `required` are the names that are always there, texts if not given."""
    names = required.split()
    return {
        "type": "object",
        "properties": {**dict.fromkeys(names, STRING), **properties, **(optional or {})},
        "required": names,
        "additionalProperties": False,
    }


def or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A field that may also be null, which means that it is left out."""
    return {**schema, "type": [schema["type"], "null"]}


def open_object(required: str, /, **properties: dict[str, Any]) -> dict[str, Any]:
    """An object in which a client may send other names too."""
    return {"type": "object", "required": required.split(), "properties": properties}


def parameters(**properties: dict[str, Any]) -> dict[str, Any]:
    """The protocol's open bag of parameters; these are the ones with a meaning here."""
    fields = {name: or_null(schema) for name, schema in properties.items()}
    return {"type": ["object", "null"], "properties": fields}


def tensor(name: str, datatype: str, /, *, description: str, **shape: int) -> dict[str, Any]:
    """An input of the protocol; `shape` bounds its number of dimensions."""
    return open_object(
        "name datatype shape",
        name={"const": name, "description": description},
        datatype={"const": datatype},
        shape=array({"type": "integer", "minimum": 1}, **shape),
        data={"type": ["array", "null"], "description": "Flat, or lists of this shape."},
        parameters=parameters(binary_data_size=SIZE),
    )


PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
SIZE = {"type": "integer", "minimum": 0}
GIF = "R0lGODlhAQABAAAAACwAAAAAAQABAAACAkQBADs="  # one black pixel
BASE64 = {"type": "string", "format": "byte", "examples": [GIF]}

# fmt: off
SCHEMAS: dict[str, Any] = {
    "Error": record("error", error=record(
        "code message request_id", code={"type": "string", "enum": CODES},
    )),
    "TextError": record("error", error={
        "type": "string", "pattern": f"^({'|'.join(CODES)}): ",
    }),
    "Score": record("label index probability", index=INTEGER, probability=PROBABILITY),
    "Experts": record(
        "cls dist agree", cls=array(ref("Score")), dist=array(ref("Score")), agree=BOOLEAN
    ),
    "Rollouts": record("cls_rollout distillation_rollout", **dict.fromkeys(
        ("cls_rollout", "distillation_rollout"),
        array(array(PROBABILITY), description="The share of each patch, rows from the top; of the "
              "image they cover the centre, a square of `crop_pct` of its short side."),
    )),
    "Served": record("name version"),
    "Prediction": record(
        "label index probability group experts_agree top_k model request_id",
        index=INTEGER, probability=PROBABILITY,
        group={
            "enum": ["head", "mid", "tail"], "description": "How rare the class is in training.",
        },
        experts_agree={
            "type": ["boolean", "null"],
            "description": "CLS and DIST name the same class; null of a model without experts.",
        },
        top_k=array(ref("Score"), description="Best classes, best first."),
        model=ref("Served"),
        optional={"experts": ref("Experts"), "logits": {
            "type": "object", "additionalProperties": array(NUMBER),
            "description": "Scores before softmax in class order, by output.",
        }, "rollouts": ref("Rollouts")},
    ),
    "Results": record(
        "results", results=array({"oneOf": [ref("Prediction"), ref("Error")]}, minItems=2)
    ),
    "Model": record(
        "name version default classes train_counts groups preprocess artefacts variant provider "
        "explain",
        default=BOOLEAN, classes=array(STRING), train_counts=array(INTEGER),
        groups={"type": "object", "additionalProperties": array(INTEGER)},
        preprocess={"type": "object"},
        artefacts={"type": "object", "description": "Parity and accuracy of each form."},
        variant={
            "type": ["string", "null"],
            "description": "Which of the artefacts answers; null where a Triton server chooses it.",
        },
        provider={"type": "string", "description": "Where it runs."},
        explain={"type": "boolean", "description": "It answers `POST /v1/explain`."},
    ),
    "Models": record("models", models=array(ref("Model"), minItems=1)),
    "Index": record(
        "service version routes", optional={"model": ref("Served")},
        routes={"type": "object", "additionalProperties": STRING},
    ),
    "OneImage": record("image", image=BASE64),
    "SdkCall": record("image", image=BASE64, optional={
        "experts": {**BOOLEAN, "default": False},
        "top_k": {**SIZE, "minimum": 1, "default": 5},
        "blend": {**PROBABILITY, "default": 0.5},
    }),
    "Images": record("images", images=array(BASE64, minItems=1)),
    "Tensor": record("name datatype shape", shape=array(
        INTEGER, description="-1 stands for the number of images.",
    )),
    "Metadata": record(
        "name versions platform inputs outputs", versions=array(STRING),
        inputs=array(ref("Tensor")), outputs=array(ref("Tensor")),
    ),
    "TensorConfig": record(
        "name data_type dims", dims=array(INTEGER), optional={"optional": BOOLEAN}
    ),
    "Config": record(
        "name platform backend max_batch_size input output", max_batch_size=INTEGER,
        input=array(ref("TensorConfig")), output=array(ref("TensorConfig")),
    ),
    "ImagesInput": tensor(
        "images", "UINT8", minItems=4, maxItems=4, description="Prepared pixels, `[B, S, S, 3]`."
    ),
    "EncodedInput": tensor(
        "encoded", "BYTES", minItems=1, maxItems=2,
        description="Image files, `[B, 1]` or `[B]`; in JSON as base64.",
    ),
    "InferRequest": open_object(
        "inputs",
        id=or_null(STRING),
        inputs=array(
            {"oneOf": [ref("ImagesInput"), ref("EncodedInput")]}, minItems=1, maxItems=1
        ),
        outputs=or_null(array(ref("WantedOutput"))),
        parameters=parameters(binary_data_output=BOOLEAN),
    ),
    "WantedOutput": open_object(
        "name",
        name={"type": "string", "description": "One of the model's outputs, each once."},
        parameters=parameters(binary_data=BOOLEAN, classification=SIZE),
    ),
    "Output": record("name datatype shape", shape=array(INTEGER), optional={
        "data": array({"type": ["number", "string"]}),
        "parameters": record("binary_data_size", binary_data_size=SIZE),
    }),
    "InferResponse": record(
        "id model_name model_version outputs", outputs=array(ref("Output"))
    ),
}
# fmt: on
