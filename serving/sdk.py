"""`/sdk/classify`, what BentoML's own clients call: an image and options in one JSON object.

BentoML describes the route to its clients, and we answer it. Its own handling of a request reads a
body of any size, fetches a file from wherever a client's text says, answers errors in bodies of its
own, some with 500, with a traceback in the log for each, and knows neither key nor request id.
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deitlt.errors import UnsupportedImage, UsageError
from deitlt.prediction import Options
from serving.backend import backend_of
from serving.bodies import Take, content_encoding, limited, parse_json
from serving.routes import Asked, answer
from serving.uploads import from_base64, media_type

PATH = "/sdk/classify"
# Base64 is a third longer; the rest is for the other fields.
SPARE_BYTES = 65_536
TYPES: dict[str, tuple[str, tuple[type, ...]]] = {
    "image": ("a text", (str,)),
    "experts": ("true or false", (bool,)),
    "top_k": ("a whole number", (int,)),
    "blend": ("a number", (float, int)),
}


def routes() -> list[Route]:
    """Path, handler and method."""
    return [Route(PATH, classify, methods=["POST"])]


async def classify(request: Request) -> Response:
    """Classify one image."""
    max_bytes = backend_of(request).settings.max_bytes * 4 // 3 + SPARE_BYTES
    content_encoding(request)
    if media_type(request) != "application/json":
        raise UnsupportedImage("send application/json with the image as base64")

    async def read(take: Take) -> Asked:
        body = await limited(request, max_bytes, take).body()
        try:
            fields = parse_json(body)
        except ValueError as error:
            raise UsageError("the body is not valid JSON") from error
        image, options = read_fields(fields)
        return [from_base64(image, "image")], options

    model = backend_of(request).models.default
    return await answer(request, model, model.classifier, read)


def read_fields(fields: Any) -> tuple[str, Options]:
    """The image as base64 and the options.

    Raises:
        UsageError: a field is unknown, of another type or out of range, or there is no image.
    """
    if not isinstance(fields, dict) or "image" not in fields:
        raise UsageError('send {"image": base64}, with experts, top_k or blend if wanted')
    for name, value in fields.items():
        if name not in TYPES:
            raise UsageError(f"there is no field {name[:40]!r}; there are {', '.join(TYPES)}")
        if name == "top_k" and isinstance(value, float) and value.is_integer():
            fields[name] = value = int(value)  # JSON has one kind of number
        noun, types = TYPES[name]
        if type(value) not in types:  # true and false are no numbers
            raise UsageError(f"{name} must be {noun}")
    options = {name: value for name, value in fields.items() if name != "image"}
    return fields["image"], Options(**options)
