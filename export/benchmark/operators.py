"""Where the time of a graph goes, operator by operator, as ONNX Runtime's profiler sees it."""

import json
import tempfile
from collections import defaultdict
from pathlib import Path

from export.benchmark.runners import Images, Opening, open_session

CALLS = 10
SUFFIX = "_kernel_time"


def operator_shares(opening: Opening, images: Images) -> dict[str, float]:
    """Share of the time in operators that each kind takes, largest first.

    Args:
        opening: of a row that ONNX Runtime runs from the host's memory.
        images: a batch, as the row takes it.
    """
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "calls")
        session = open_session(opening, options)
        feed = {session.get_inputs()[0].name: images}
        for _ in range(CALLS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return shares(events)


def shares(events: list[dict[str, object]]) -> dict[str, float]:
    """Shares of a profile's events by operator, largest first."""
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        arguments = event.get("args")
        if str(event.get("name")).endswith(SUFFIX) and isinstance(arguments, dict):
            spent[arguments["op_name"]] += float(str(event["dur"]))
    total = sum(spent.values())
    return {name: spent[name] / total for name in sorted(spent, key=lambda op: -spent[op])}
