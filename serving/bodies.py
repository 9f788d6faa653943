"""Request bodies within limits that hold while they stream in: of each, and of all at once.

Everything stays in memory: bodies are bounded anyway, and a server may have no writable disk.
"""

import asyncio
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request
from starlette.types import Message

from deitlt.errors import ImageTooLarge, Overloaded, UnsupportedImage, UsageError

Take = Callable[[int], None]
PLAIN = "identity"
# Values of JSON take up to 30 times the memory of their text, as `{}` does. Four pictures of 224 px
# as lists of numbers are within this; base64 is a single value.
MAX_JSON_VALUES = 1_000_000
INFLATED_PIECE = 4 * 2**20


class Bodies:
    """The bytes of request bodies that are held; of one event loop."""

    def __init__(self, max_held: int) -> None:
        """Start with none.

        Args:
            max_held: most bytes of all requests together, from the first that is read of a body to
                the end of its answer.
        """
        self._max_held = max_held
        self._num_held = 0

    @contextmanager
    def hold(self) -> Iterator[Take]:
        """Around a request; what it is given takes so many bytes more, or raises `Overloaded`."""
        own = 0

        def take(number: int) -> None:
            nonlocal own
            if self._num_held + number > self._max_held:
                raise Overloaded(
                    f"the requests in work hold {self._num_held} bytes of the {self._max_held} "
                    "that may be held; try again later"
                )
            self._num_held += number
            own += number

        try:
            yield take
        finally:
            self._num_held -= own


def limited(request: Request, max_bytes: int, take: Take) -> Request:
    """A request whose body raises as soon as more than `max_bytes` of it came.

    Args:
        request: its body has not been read yet.
        max_bytes: largest body; what a client announces and what it really sends are both held
            against it, and no more than this is ever kept.
        take: told of the bytes as they come.

    Raises:
        ImageTooLarge: more than `max_bytes` are announced.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > max_bytes:
        raise _too_large(max_bytes)
    num_bytes = 0

    async def receive() -> Message:
        nonlocal num_bytes
        message = await request.receive()
        more = len(message.get("body", b""))
        num_bytes += more
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        take(more)
        return message

    return Request(request.scope, receive)


def content_encoding(request: Request, *others: str) -> str:
    """How a body is encoded: `PLAIN`, or one of the others that are taken.

    Raises:
        UnsupportedImage: in another way.
    """
    encoding = request.headers.get("content-encoding", "").strip().lower() or PLAIN
    if encoding not in (PLAIN, *others):
        ways = " or ".join([*others, "none"])
        raise UnsupportedImage(f"Content-Encoding is {encoding[:40]!r}; send {ways}")
    return encoding


async def inflated(body: bytes, max_bytes: int, take: Take) -> bytes:
    """A gzip or zlib body unpacked, in pieces, so that no more is made than may be kept.

    Args:
        body: the compressed bytes.
        max_bytes: most bytes that it unpacks to.
        take: told of them as they come.

    Raises:
        zlib.error: it is neither gzip nor zlib, or damaged.
        UsageError: it is cut off, or something follows it.
        ImageTooLarge: more than `max_bytes`.
    """
    inflater = zlib.decompressobj(47)  # either header
    whole = bytearray()
    while body and not inflater.eof:
        piece = await asyncio.to_thread(inflater.decompress, body, INFLATED_PIECE)
        take(len(piece))
        whole += piece
        if len(whole) > max_bytes:
            raise _too_large(max_bytes)
        body = inflater.unconsumed_tail
    if not inflater.eof or inflater.unused_data:
        raise UsageError("the compressed body ends wrongly")
    return bytes(whole)


def parse_json(body: bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
        UsageError: it has more than `MAX_JSON_VALUES` values.
    """
    # Before each value but the first stands one of these; texts that have them count as more.
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise UsageError(f"the JSON has more than {MAX_JSON_VALUES} values; send base64 or bytes")
    try:
        return json.loads(body)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _too_large(max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(f"the request body has more than {max_bytes} bytes")
