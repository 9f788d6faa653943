"""Request bodies to image bytes: a raw body, the files of a form, or base64 in JSON."""

import re
from base64 import b64decode

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from deitlt.errors import DecodeFailed, ImageError, UnsupportedImage, UsageError
from serving.bodies import Take, content_encoding, limited, parse_json

_HAS_FILENAME = re.compile(rb";\s*filename\*?\s*=", re.IGNORECASE)


async def read_images(
    request: Request, *, max_bytes: int, max_images: int, take: Take
) -> list[bytes | ImageError]:
    """The encoded images in a request, at least one; of several an error is that image's alone.

    They are its raw body, the files of a form, or base64 texts in a JSON body: `{"image": text}` or
    `{"images": [text, ...]}`.

    Args:
        request: its body has not been read yet.
        max_bytes: largest body, see `bodies.limited`.
        max_images: most images in a form or JSON body.
        take: told of the bytes as they come.

    Raises:
        UsageError: nothing was sent, the form or JSON is malformed or has too many images.
        ImageTooLarge: the body has more than `max_bytes`.
        Overloaded: of `take`.
        UnsupportedImage: the content type is neither an image's nor a form's nor JSON, or the body
            is compressed.
    """
    content_encoding(request)
    body = limited(request, max_bytes, take)
    kind = media_type(request)
    if kind == "multipart/form-data":
        return await _read_form(body, max_images)
    if kind == "application/json":
        return _read_json(await body.body(), max_images)
    if kind in ("", "application/octet-stream") or kind.startswith("image/"):
        image = await body.body()
        if not image:
            raise UsageError("the request has no body; send the bytes of an image")
        return [image]
    raise UnsupportedImage(
        f"Content-Type is {kind[:100]!r}; send image/*, application/octet-stream, "
        "multipart/form-data or application/json"
    )


def media_type(request: Request) -> str:
    """The content type of a body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _read_json(body: bytes, max_images: int) -> list[bytes | ImageError]:
    try:
        fields = parse_json(body)
    except ValueError as error:
        raise UsageError("the body is not valid JSON") from error
    if not isinstance(fields, dict) or set(fields) not in ({"image"}, {"images"}):
        raise UsageError('send {"image": base64} or {"images": [base64, ...]}')
    texts = fields.get("images", [fields.get("image")])
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise UsageError("images must be a list of base64 texts, and image one of them")
    if len(texts) > max_images:
        raise _too_many(max_images)
    if len(texts) == 1:
        return [from_base64(texts[0], "image")]
    return [_from_base64(text, f"image {number}") for number, text in enumerate(texts, start=1)]


def _from_base64(text: str, what: str) -> bytes | ImageError:
    try:
        return from_base64(text, what)
    except UsageError as error:
        return DecodeFailed(str(error))


def from_base64(text: str, what: str) -> bytes:
    """The bytes of a base64 text, also of one that a browser begins with `data:...;base64,`.

    Raises:
        UsageError: it is not base64; the text begins with `what`.
    """
    try:
        return b64decode(
            text.partition(",")[2] if text.startswith("data:") else text, validate=True
        )
    except ValueError as error:
        raise UsageError(f"{what} is not base64 in one line") from error


async def _read_form(request: Request, max_files: int) -> list[bytes | ImageError]:
    _, parameters = parse_options_header(request.headers["content-type"])
    boundary = parameters.get(b"boundary")
    if not boundary:
        raise UsageError("multipart/form-data without a boundary; let the HTTP library set it")
    form = _Form(max_files)
    try:
        parser = form.parser(boundary)
        async for chunk in request.stream():
            parser.write(chunk)
    except FormParserError as error:
        raise UsageError("the multipart form is malformed") from error
    if not form.complete:
        raise UsageError("the multipart form ends before its closing boundary")
    if not form.files:
        raise UsageError("the form has no file; send each image as a file part")
    return [bytes(file) for file in form.files]


class _Form:
    """Collects the files of a form while the parser reads it. Names and types are not looked at."""

    def __init__(self, max_files: int) -> None:
        self.max_files = max_files
        self.files: list[bytearray] = []
        self.complete = False
        self._field = b""
        self._value = b""
        self._is_file = False

    def parser(self, boundary: bytes) -> MultipartParser:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._add_to_field,
                "on_header_value": self._add_to_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._add_data,
                "on_end": self._end_form,
            },
        )

    def _begin_part(self) -> None:
        self._is_file = False

    def _add_to_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._is_file = _HAS_FILENAME.search(self._value) is not None
        self._field = self._value = b""

    def _end_headers(self) -> None:
        if not self._is_file:
            raise UsageError(
                "the form has a part that is not a file; send files (curl -F image=@photo.png) and "
                "options in the query string"
            )
        if len(self.files) == self.max_files:
            raise _too_many(self.max_files)
        self.files.append(bytearray())

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self.files[-1] += data[start:end]

    def _end_form(self) -> None:
        self.complete = True


def _too_many(max_images: int) -> UsageError:
    return UsageError(f"more than {max_images} images in one request; send fewer")
