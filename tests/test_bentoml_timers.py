"""A behaviour of BentoML that the service is built around: its timers outlive the answers."""

import asyncio
import os
from typing import Any
from unittest.mock import patch

import pytest
from bentoml._internal.server.http.traffic import TimeoutMiddleware

from serving.service import LongTailClassifier, net_s

ANSWER = {"type": "http.response.start", "status": 200, "headers": []}


def test_a_timer_stays_when_a_request_has_been_answered() -> None:
    """If this fails, BentoML ends its timers, and `net_s` may be as long as it likes."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(ANSWER)

    async def send(message: Any) -> None:
        answers.append(message)

    async def ask() -> list[asyncio.TimerHandle]:
        loop = asyncio.get_running_loop()
        made: list[asyncio.TimerHandle] = []
        later = loop.call_later

        def noted(*arguments: Any, **named: Any) -> asyncio.TimerHandle:
            made.append(later(*arguments, **named))
            return made[-1]

        middleware: Any = TimeoutMiddleware
        with patch.object(loop, "call_later", noted):
            await middleware(app, 40)({"type": "http"}, None, send)
        return made

    answers: list[Any] = []
    (timer,) = asyncio.run(ask())
    assert answers == [ANSWER]
    assert not timer.cancelled()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [({}, 40), ({"DEITLT_TIMEOUT_S": "2.5"}, 12.5), ({"DEITLT_TIMEOUT_S": "soon"}, 310)],
)
def test_the_net_comes_soon_after_the_deadline(environ: dict[str, str], expected: float) -> None:
    assert net_s(environ) == expected


def test_bentoml_is_told() -> None:
    service: Any = LongTailClassifier
    (found,) = [m for m in service.to_asgi().user_middleware if m.cls is TimeoutMiddleware]
    assert found.kwargs["timeout"] == net_s(os.environ)
