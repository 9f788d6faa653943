"""A line of JSON a request on standard output, written by a thread of its own."""

import json
import logging
import sys
import time
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue
from typing import Any, TextIO

access = logging.getLogger("deitlt.access")

MAX_WAITING_LINES = 10_000
"""Lines held, some 10 MB, while standard output takes none; later ones are counted and lost."""


class _BoundedHandler(QueueHandler):
    """Hands lines to the writer as long as few wait; of lost ones the next line tells."""

    queue: SimpleQueue[Any]
    lost = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        if self.queue.qsize() >= MAX_WAITING_LINES:
            self.lost += 1
            return
        if self.lost:
            line = {"time": time.time(), "lost_lines": self.lost}
            self.queue.put_nowait(logging.makeLogRecord({"msg": json.dumps(line)}))
            self.lost = 0
        self.queue.put_nowait(record)


def start_access_log(stream: TextIO | None = None) -> QueueListener:
    """Begin to write what the frontend notes; `stop` of what is returned writes the rest.

    Args:
        stream: standard output by default.
    """
    queue: SimpleQueue[Any] = SimpleQueue()
    writer = logging.StreamHandler(stream or sys.stdout)
    writer.setFormatter(logging.Formatter("%(message)s"))
    access.setLevel(logging.INFO)
    access.propagate = False  # BentoML's own handlers would write each line again
    access.handlers = [_BoundedHandler(queue)]
    listener = QueueListener(queue, writer)
    listener.start()
    return listener
