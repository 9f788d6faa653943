"""uvicorn's HTTP with a bound on everything of a request that is not its body.

uvicorn keeps every header that a client sends, however long they are and however many, and waits
for the next for ever. What is refused before there is a request has the body of our other errors
too. And the layer that BentoML puts innermost, `FrontendFirst`, comes first here.
"""

import asyncio
import json
import uuid
from typing import Any

from uvicorn.config import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.answers import error_body
from serving.frontend import FrontendFirst

# What nginx takes by default is half of it. A little more may come through in one piece.
MAX_HEAD_BYTES = 65_536
# Half of nginx's. The time for a body is that of the routes, DEITLT_TIMEOUT_S.
MAX_HEAD_S = 30.0
# As long as nginx keeps a quiet connection. Gateways keep theirs to us for 60 s; from one that we
# close before, a POST that is just on its way comes back as 502.
KEEP_ALIVE_S = 75


# As nginx: for so long a client may take nothing of its answer, which is in memory meanwhile.
MAX_UNREAD_S = 60.0


class BoundedHttp(HttpToolsProtocol):
    """A connection that ends with 431 where a request line, headers or trailers go on for ever.

    And with 408 where they do not end in time; a new one on which nothing comes is closed, and so
    is one whose client takes nothing of its answer.
    """

    max_head_s = MAX_HEAD_S
    keep_alive_s = KEEP_ALIVE_S
    max_unread_s = MAX_UNREAD_S

    def __init__(self, config: Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.app: Any = _frontend_first(self.app, config)
        self.timeout_keep_alive = max(self.timeout_keep_alive, self.keep_alive_s)
        self._num_head_bytes = 0  # since there last was some body, or the end of a request
        self._in_head = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for a first request."""
        super().connection_made(transport)
        self._time_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_timer()
        self._stop_watching()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Hold back what is to be sent, as the client does not take it as fast."""
        super().pause_writing()
        self._watch_reader(0)

    def resume_writing(self) -> None:
        """Send on, as the client has taken most of it."""
        self._stop_watching()
        super().resume_writing()

    def on_message_begin(self) -> None:
        """Take the beginning of a request."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Take the end of a request's headers."""
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        self._num_head_bytes += len(data)
        super().data_received(data)
        if self._in_head:  # rarely: most heads come in one piece
            self._time_head()
        if self._num_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            text = f"the request line and headers have more than {MAX_HEAD_BYTES} bytes"
            self._refuse("431 Request Header Fields Too Large", text)

    def on_body(self, body: bytes) -> None:
        """Take some of a body, which the routes bound."""
        self._num_head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the end of a request."""
        self._num_head_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """End a connection on which something else than HTTP came."""
        self._refuse("400 Bad Request", msg)

    def _time_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.max_head_s, self._give_up)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        if self._in_head and not self.transport.is_closing():
            text = f"the request line and headers did not come within {self.max_head_s:g} s"
            self._refuse("408 Request Timeout", text)
        else:  # a client that keeps one in reserve would take a 408 for its next answer
            self.transport.close()

    def _watch_reader(self, unread_before: int) -> None:
        """Look now and then whether some of the answer was taken; with none of it, give up."""
        unread = self.transport.get_write_buffer_size()
        if unread == unread_before:
            self.transport.abort()
        else:
            self._reader_timer = self.loop.call_later(self.max_unread_s, self._watch_reader, unread)

    def _stop_watching(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _refuse(self, status: str, text: str) -> None:
        body = json.dumps(error_body("bad_request", text, uuid.uuid4().hex)).encode()
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def _frontend_first(app: Any, config: Config) -> Any:
    """An app with its layer `FrontendFirst`, if it has one, before all others."""
    for layer in getattr(config.app, "user_middleware", ()):
        if layer.cls is FrontendFirst:
            frontend = layer.kwargs["frontend"]
            if config.proxy_headers:  # as uvicorn does around the app
                frontend = ProxyHeadersMiddleware(frontend, config.forwarded_allow_ips)
            return FrontendFirst(app, frontend)
    return app
