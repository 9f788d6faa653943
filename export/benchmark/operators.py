"""Where the time goes: operators on a CPU, as ONNX Runtime sees it, kernels on a GPU, as CUDA does.

ONNX Runtime's own profile of a GPU holds the times that launching took, not those of the work.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from export.benchmark.runners import Images, Opening, open_session

CALLS = 10
SUFFIX = "_kernel_time"
# Templates spell out their arguments.
KERNEL_NAME = 100


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
    """Shares of a profile's events by operator, largest first; none if no event is of one."""
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        arguments = event.get("args")
        if str(event.get("name")).endswith(SUFFIX) and isinstance(arguments, dict):
            spent[arguments["op_name"]] += float(str(event["dur"]))
    return _shares_of(spent)


def kernel_shares(call: Callable[[], object]) -> dict[str, float]:
    """Share of a GPU's time that each kernel takes in calls of a row, largest first.

    None where PyTorch sees no kernels, as where the driver lets only the administrator count.
    """
    from torch.profiler import ProfilerActivity, profile

    call()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(CALLS):
            call()
    return _shares_of(
        {event.key[:KERNEL_NAME]: event.self_device_time_total for event in seen.key_averages()}
    )


def _shares_of(spent: dict[str, float]) -> dict[str, float]:
    total = sum(spent.values())
    if not total:
        return {}
    return {name: spent[name] / total for name in sorted(spent, key=lambda op: -spent[op])}
