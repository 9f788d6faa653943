"""The OpenAPI document: valid, complete, and true of what the service answers."""

import ast
import json
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import pytest
import schemathesis
from click.testing import CliRunner
from hypothesis import strategies
from hypothesis.configuration import set_hypothesis_home_dir
from jsonschema import Draft202012Validator, ValidationError  # type: ignore[import-untyped]
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.cli import schemathesis as command

from deitlt import __version__, errors
from serving import answers, kserve, pages, routes, sdk
from serving.backend import Backend
from serving.frontend import get_index
from serving.openapi import document
from serving.schemas import CODES, ERRORS
from tests.kserve_support import IMAGES, INFER, Server, ask, files, images
from tests.service_support import CLASSIFY, Answer, as_files, in_process, picture, wide_picture

DOCUMENT = json.loads(json.dumps(document(__version__)))
TEXT, RIGHT, WRONG = b64encode(picture()).decode(), picture(), b"no picture"
NUM_EXAMPLES = 20
OF_BENTOML = {"GET /livez", "GET /readyz"}
# A schema cannot say that there must be as many numbers as the shape wants: those are refused.
SETTINGS = """
[parameters]
name = "digits"
"path.version" = "{version}"

[[operations]]
include-path-regex = "/infer$"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400"]
"""


@pytest.fixture(scope="module")
def server(explaining_bundle: Path) -> Iterator[Server]:
    limits = {"DEITLT_MAX_IMAGES": "64", "DEITLT_QUEUE_SIZE": "200"}
    explain = {"DEITLT_MODEL": str(explaining_bundle), "DEITLT_EXPLAIN": "true"}
    with Server(**limits, **explain) as server:
        yield server


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{server.address}", timeout=30) as client:
        yield client


def operations() -> dict[str, Any]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
    }


def check(response: Answer, operation: str) -> None:
    """Fail if the document does not allow an answer of an operation.

    Raises:
        KeyError: it has not this status or content type.
        ValidationError: the body is not as its schema says.
    """
    described = operations()[operation]["responses"][str(response.status_code)]
    assert {*map(str.title, described.get("headers", {}))} <= {*map(str.title, response.headers)}
    kind = response.headers["content-type"].partition(";")[0]
    schema = described["content"][kind]["schema"]
    if kind == "application/json":
        components = {"components": DOCUMENT["components"]}
        Draft202012Validator({**schema, **components}).validate(response.json())


def test_it_is_valid() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    names = [operation["operationId"] for operation in operations().values()]
    assert len(set(names)) == len(names)
    assert len({operation["summary"] for operation in operations().values()}) > 10


def test_it_is_what_the_service_gives(http: httpx.Client) -> None:
    assert http.get("/openapi.json").json() == DOCUMENT


def test_it_has_every_route_and_no_other() -> None:
    found = {
        f"{method} {route.path}"
        for route in (
            *routes.routes(),
            *kserve.routes(),
            *sdk.routes(),
            *pages.routes(get_index),
        )
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert found - set(operations()) == {"GET /page/{name}"}
    assert set(operations()) - found == OF_BENTOML


@pytest.mark.parametrize("status", [200, 503])
def test_bentomls_probes_are_as_it_says(status: int) -> None:
    with in_process() as client:
        lost = patch.object(Backend, "alive", lambda backend: False)
        with lost if status == 503 else nullcontext():
            for operation in sorted(OF_BENTOML):
                response = client.get(operation.removeprefix("GET "))
                assert response.status_code == status
                check(response, operation)


def codes_in(source: str) -> set[tuple[int, str]]:
    """Every status with a code next to it, as in `error_response(404, "not_found", ...)`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        items = {ast.Call: "args", ast.Tuple: "elts"}.get(type(node))
        match [getattr(item, "value", None) for item in getattr(node, items or "", [])]:
            case [int(status), str(code), *_] if 400 <= status < 600:
                found.add((status, code))
    return found


def test_it_has_every_error_code() -> None:
    served = Path(answers.__file__).parent.glob("*.py")
    used = set().union(*(codes_in(file.read_text(encoding="utf-8")) for file in served))
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    of_kinds = {(answers.status_of(kind()), str(vars(kind)["code"])) for kind in kinds}
    used |= {(status, code) for status, code in of_kinds if status != 500}
    used |= {(400, "client_disconnected")}
    used -= {(422, "image_error"), (422, "open_failed")}  # a base, and of files on a disk
    assert {code for _, code in used} == set(CODES)
    listed = {(status, code) for status, code in used if f"`{code}`" in ERRORS.get(status, "")}
    # These have no operation of their own.
    others = {(404, "not_found"), (405, "method_not_allowed"), (400, "client_disconnected")}
    assert used - listed == others


# fmt: off
CALLS: list[tuple[str, str, int, dict[str, Any]]] = [
    ("GET /", "/", 200, {}),
    ("GET /", "/", 200, {"headers": {"Accept": "text/html"}}),
    ("GET /docs", "/docs", 200, {}),
    ("GET /metrics", "/metrics", 200, {}),
    ("GET /openapi.json", "/openapi.json", 200, {}),
    ("GET /v1/models", "/v1/models", 200, {}),
    ("GET /v1/models/{name}", "/v1/models/digits", 200, {}),
    ("GET /v1/models/{name}", "/v1/models/birds", 404, {}),
    *(("POST /v1/classify", f"{CLASSIFY}?{query}", status, sent) for query, status, sent in (
        ("", 200, {"content": RIGHT}),
        ("experts=true&logits=true&top_k=2&blend=0", 200, {"content": RIGHT}),
        ("experts=true", 200, {"files": as_files(RIGHT, WRONG)}),
        ("", 200, {"json": {"image": TEXT}}),
        ("", 200, {"json": {"images": [TEXT, "AAAA"]}}),
        ("top_k=none", 400, {"content": RIGHT}),
        ("model=birds", 404, {"content": RIGHT}),
        ("", 413, {"content": wide_picture()}),
        ("", 415, {"content": WRONG}),
        ("", 422, {"content": RIGHT[:200]}),
    )),
    *(("POST /v1/explain", f"/v1/explain{query}", status, sent) for query, status, sent in (
        ("", 200, {"content": RIGHT}),
        ("", 200, {"files": as_files(RIGHT, WRONG)}),
        ("?model=birds", 404, {"content": RIGHT}),
        ("", 415, {"content": WRONG}),
    )),
    *(("POST /sdk/classify", "/sdk/classify", status, {"json": sent}) for status, sent in (
        (200, {"image": TEXT, "experts": True, "top_k": 2, "blend": 1}),
        (400, {"image": TEXT, "experts": "yes"}),
        (400, {"image": "!"}),
        (415, {"image": "AAAA"}),
    )),
    ("GET /v2", "/v2", 200, {}),
    ("GET /v2/health/live", "/v2/health/live", 200, {}),
    ("GET /v2/health/ready", "/v2/health/ready", 200, {}),
    ("POST /v2/repository/index", "/v2/repository/index", 200, {}),
    *((f"GET /v2/models/{{name}}{end}", f"/v2/models/{name}{end}", status, {})
      for end in ("", "/ready", "/config") for name, status in (("digits", 200), ("birds", 404))),
    *(("POST /v2/models/{name}/infer", INFER, status, {"content": body}) for status, body in (
        (200, ask()),
        (200, ask(parameters={"binary_data_output": True})),
        (200, ask(outputs=[{"name": "logits", "parameters": {"classification": 2}}])),
        (400, images(shape=[1])),
        (413, files(data=[b64encode(wide_picture()).decode()])),
        (415, files()),
        (422, files(data=[b64encode(RIGHT[:200]).decode()])),
    )),
]
# fmt: on


@pytest.mark.parametrize(("operation", "path", "status", "sent"), CALLS)
def test_answers_are_as_it_says(
    operation: str, path: str, status: int, sent: Mapping[str, Any], http: httpx.Client
) -> None:
    response = http.request(operation.split()[0], path, **sent)
    assert response.status_code == status
    check(response, operation)


def test_the_check_of_an_answer_finds_a_wrong_one(http: httpx.Client) -> None:
    card = http.get("/v1/models/digits")
    with pytest.raises(ValidationError):
        check(card, "GET /v1/models")
    with pytest.raises(KeyError):
        check(http.get("/docs"), "GET /v1/models")


def test_a_key_is_asked_for_where_it_says(http: httpx.Client) -> None:
    with Server(DEITLT_API_KEY="sesame") as locked:
        for operation, described in operations().items():
            if operation in OF_BENTOML:
                continue
            method, path = operation.split()
            response = httpx.request(method, f"http://{locked.address}{path}")
            assert (response.status_code == 401) == (described.get("security") != [])
            check(response, operation)


def test_examples_are_what_their_schemas_say() -> None:
    body = operations()["POST /v2/models/{name}/infer"]["requestBody"]["content"]
    schema = {**body["application/json"]["schema"], "components": DOCUMENT["components"]}
    validator = Draft202012Validator(schema)
    validator.validate(body["application/json"]["example"])
    for request in (ask(), files(), ask(outputs=[{"name": "logits"}]), ask(id=None)):
        validator.validate(json.loads(request))
    for tensor in ({**IMAGES, "shape": [1]}, {**IMAGES, "name": "encoded"}, {}):
        with pytest.raises(ValidationError):
            validator.validate({"inputs": [tensor]})


def test_no_generated_request_is_answered_otherwise(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that fit the document are taken, others refused, all as the document says."""
    pictures = strategies.builds(picture, strategies.integers(0, 99))
    schemathesis.openapi.media_type("image/*", pictures, aliases=["application/octet-stream"])
    schemathesis.openapi.format("byte", pictures.map(lambda image: b64encode(image).decode()))
    schemathesis.openapi.format("binary", pictures)
    monkeypatch.chdir(tmp_path)  # it writes what it found
    set_hypothesis_home_dir(tmp_path)
    version = server.backend.models.default.version
    Path("settings.toml").write_text(SETTINGS.format(version=version), encoding="utf-8")
    # Of a document that it fetched itself it would leave out the route.
    Path("document.json").write_text(json.dumps(DOCUMENT), encoding="utf-8")
    result = CliRunner().invoke(
        command,
        [
            *("--config-file", "settings.toml", "run", "document.json"),
            *("--url", f"http://{server.address}", "--checks", "all"),
            *("--max-examples", str(NUM_EXAMPLES), "--continue-on-failure"),
            *("--generation-deterministic", "--exclude-path-regex", "^/(livez|readyz)$"),
        ],
    )
    assert result.exit_code == 0, result.output
    assert re.search(rf"Tested: +{len(operations()) - len(OF_BENTOML)}\b", result.output), (
        result.output
    )
