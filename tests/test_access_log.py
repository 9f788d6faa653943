"""The access log while whoever reads it is slow; test_serve_more.py reads a server's."""

import io
import json
import threading
import time
from collections.abc import Iterator

import pytest

from serving import access_log
from serving.access_log import access, start_access_log


class Blocked(io.StringIO):
    """A pipe whose reader reads nothing before `reading` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = threading.Event()

    def write(self, text: str) -> int:
        assert self.reading.wait(30)
        return super().write(text)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Leaves the logger as it was."""
    before = access.handlers
    yield
    access.handlers = before


def test_lines_beyond_the_limit_are_lost_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "MAX_WAITING_LINES", 3)
    pipe = Blocked()
    log = start_access_log(pipe)
    for number in range(10):
        access.info("%s", json.dumps(number))
    pipe.reading.set()
    while pipe.getvalue().count("\n") < 3:
        time.sleep(0.01)
    access.info("%s", json.dumps(10))
    log.stop()
    lines = [json.loads(line) for line in pipe.getvalue().splitlines()]
    kept = lines[:-2]
    assert kept == list(range(len(kept)))
    assert len(kept) in (3, 4)  # the writer may have taken one before the others came
    assert lines[-2]["lost_lines"] == 10 - len(kept)
    assert lines[-1] == 10


def test_every_line_is_written_while_they_are_read() -> None:
    pipe = Blocked()
    pipe.reading.set()
    log = start_access_log(pipe)
    for number in range(1000):
        access.info("%s", json.dumps(number))
    log.stop()
    assert [json.loads(line) for line in pipe.getvalue().splitlines()] == list(range(1000))
