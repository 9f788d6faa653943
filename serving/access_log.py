"""A line of JSON a request on standard output, written by a thread of its own."""

import logging
import sys
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue
from typing import Any, TextIO

access = logging.getLogger("deitlt.access")


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
    access.handlers = [QueueHandler(queue)]
    listener = QueueListener(queue, writer)
    listener.start()
    return listener
