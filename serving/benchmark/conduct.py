"""What a server does beside answering: starting, idling, ending, and what it says to bad requests.

Also whether its answers are right, which is looked at before anything is timed.
"""

import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from deitlt.errors import RuntimeUnavailable
from serving.benchmark.client import ask_once
from serving.benchmark.servers import Launch, Server, Setup, free_port
from serving.benchmark.trees import Tree
from serving.benchmark.wire import Best, get, request

# Rounding differs where a server runs several images at once.
TOLERANCE = 1e-3
# What re-encoding an image may do to a probability.
LOSSY_TOLERANCE = 0.05


@dataclass
class Running:
    """A server under measurement.

    Attributes:
        server: which.
        port: where.
        tree: its processes.
        requests: the images as it takes them.
        starts_s: from the command to ready, each time it was started.
        stops_s: from SIGTERM to the end, None where it took too long.
        survivors: processes that outlived it, each time.
        facts: what else was found, by name.
    """

    server: Server
    port: int
    tree: Tree
    requests: list[bytes]
    starts_s: list[float] = field(default_factory=list)
    stops_s: list[float | None] = field(default_factory=list)
    survivors: list[int] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "label": self.server.label,
            "setting": self.server.setting,
            "start_s": median(self.starts_s),
            "starts_s": self.starts_s,
            "stops_s": self.stops_s,
            "survivors": self.survivors,
            **self.facts,
        }


def start(server: Server, setup: Setup, images: list[bytes]) -> Running:
    """Start a server and wait until it is ready.

    Raises:
        RuntimeUnavailable: it does not start.
    """
    port = free_port()
    launch = server.launch(setup, port)
    tree, seconds = _launch(server, setup, launch, port)
    requests = [request(server.path, server.encode, image) for image in images]
    return Running(server, port, tree, requests, [seconds])


def start_again(running: Running, setup: Setup) -> None:
    """Start and stop once more, for the times."""
    port = free_port()
    tree, seconds = _launch(running.server, setup, running.server.launch(setup, port), port)
    running.starts_s.append(seconds)
    _stop(running, tree)


def stop(running: Running) -> None:
    """End a server for good."""
    _stop(running, running.tree)


def check_answers(running: Running, expected: list[Best]) -> None:
    """Hold every answer against the classifier's own; notes the largest difference.

    Raises:
        RuntimeUnavailable: it answers something else.
    """
    server, worst, others = running.server, 0.0, 0
    for ours, text in zip(expected, running.requests, strict=True):
        status, head, body = ask_once(running.port, text)
        if status != 200:
            raise RuntimeUnavailable(f"it answers {status}: {body[:120]!r}")
        theirs = server.read(head, body)
        worst = max(worst, abs(theirs.probability - ours.probability))
        others += theirs.class_index != ours.class_index
    running.facts["answers"] = {"max_probability_difference": worst, "other_classes": others}
    limit = TOLERANCE if server.exact else LOSSY_TOLERANCE
    if worst > limit or (server.exact and others):
        raise RuntimeUnavailable(
            f"its answers differ: {others} other classes, probabilities by up to {worst:.1e}"
        )


def look_at(running: Running, seconds: float) -> None:
    """Note idle processor time, memory and what bad requests get."""
    running.facts["statuses"] = bad_requests(running)
    time.sleep(min(1.0, seconds))  # what they set off has ended
    before, began = running.tree.cpu_s(), time.perf_counter()
    time.sleep(seconds)
    passed = time.perf_counter() - began
    running.facts["idle_cpu"] = (running.tree.cpu_s() - before) / passed
    resident, proportional = running.tree.memory_mib()
    running.facts["memory_mib"] = {"rss": resident, "pss": proportional}
    running.facts["processes"] = len(running.tree.find())


def bad_requests(running: Running) -> dict[str, int]:
    """The status that each kind of bad request gets; 0 for none at all."""
    server = running.server
    photo = max(running.requests, key=len)
    bodies = {"not an image": b"x" * 1000, "cut JPEG": b"\xff\xd8\xff\xe0" + bytes(200)}
    found = {
        name: ask_once(running.port, request(server.path, server.encode, body))[0]
        for name, body in bodies.items()
    }
    empty = request(server.path, lambda _: ({}, b""), b"")
    found["no body"] = ask_once(running.port, empty)[0]
    found["GET"] = ask_once(running.port, get(server.path))[0]
    found["unknown path"] = ask_once(running.port, get("/no-such-path"))[0]
    found["then a good one"] = ask_once(running.port, photo)[0]
    return found


def _launch(server: Server, setup: Setup, launch: Launch, port: int) -> tuple[Tree, float]:
    log = setup.folder / f"{server.key}-{port}.log"
    tree = Tree.start(launch.command, launch.environ, setup.folder, log)
    ready = get(server.ready)
    try:
        return tree, tree.wait_until(lambda: ask_once(port, ready)[0] == 200)
    except BaseException:
        tree.stop()
        raise


def _stop(running: Running, tree: Tree) -> None:
    seconds, left = tree.stop()
    running.stops_s.append(seconds)
    running.survivors.append(left)
