"""What a row costs a process of its own: time to the first answer, and memory at its peak.

`python -m export.benchmark.fresh` is that process. It imports nothing but what the row needs, so
nothing of ours stands at the top of this file.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
# Long enough to compile the largest student.
LIMIT_S = 3600


@dataclass(frozen=True)
class Fresh:
    """One row in a fresh process.

    Attributes:
        load_s: from opening the file to the first answer, imports not counted.
        peak_mib: largest resident memory, a batch of the largest size included.
    """

    load_s: float
    peak_mib: float


@dataclass(frozen=True)
class BundleLoad:
    """`deitlt.load` and one prediction in fresh processes.

    Attributes:
        load_s: median of load and first prediction.
        import_s: median of `import deitlt` before it.
        torch_free: no process had PyTorch loaded at its end.
    """

    load_s: float
    import_s: float
    torch_free: bool


def run_row(opening: Any, images: Path, batch_size: int) -> Fresh:
    """Load and run a row in a process of its own.

    Args:
        opening: a `runners.Opening`.
        images: .npy file of at least `batch_size` images as the row takes them.
        batch_size: the largest.

    Raises:
        RuntimeUnavailable: the process failed; the text is the last line it said.
    """
    fields = {"opening": asdict(opening), "images": str(images), "batch_size": batch_size}
    return Fresh(**_run("row", fields))


def load_bundle(bundle: Path, image: Path, threads: int, repeats: int) -> BundleLoad:
    """Load a bundle and classify an image file on the CPU, each time in a new process."""
    fields = {"bundle": str(bundle), "image": str(image), "threads": threads}
    runs = [_run("bundle", fields) for _ in range(repeats)]

    return BundleLoad(
        median(run["load_s"] for run in runs),
        median(run["import_s"] for run in runs),
        not any(run["torch"] for run in runs),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Do one of the two, and print what was found as JSON."""
    what, fields = sys.argv[1:] if argv is None else argv
    run: Callable[..., dict[str, Any]] = _row if what == "row" else _bundle
    found = run(**json.loads(fields))
    print(json.dumps(found))
    return 0


def _run(what: str, fields: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "export.benchmark.fresh", what, json.dumps(fields)]
    # What torch.compile made in an earlier run would make loading look quick.
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S
        )
    if done.returncode:
        from deitlt.errors import RuntimeUnavailable

        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeUnavailable(lines[-1].strip()[:300] if lines else f"ended {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _row(opening: dict[str, Any], images: str, batch_size: int) -> dict[str, Any]:
    import numpy as np

    from export.benchmark.runners import Opening, import_runtime, open_runner

    stack = np.load(images, mmap_mode="r")[:batch_size]
    first, batch = np.array(stack[:1]), np.array(stack)
    import_runtime(opening["how"])
    start = time.perf_counter()
    runner = open_runner(Opening(**opening))
    runner.logits(runner.prepare(first)())
    load_s = time.perf_counter() - start
    call = runner.prepare(batch)
    for _ in range(2):
        call()
    return {"load_s": load_s, "peak_mib": _peak_mib()}


def _bundle(bundle: str, image: str, threads: int) -> dict[str, Any]:
    start = time.perf_counter()
    import deitlt

    imported = time.perf_counter()
    classifier = deitlt.load(bundle, device="cpu", num_threads=threads)
    classifier.predict([image])
    end = time.perf_counter()
    return {"load_s": end - imported, "import_s": imported - start, "torch": "torch" in sys.modules}


def _peak_mib() -> float:
    """Largest resident set of this process.

    Linux carries `ru_maxrss` over from the process that started this one; `VmHWM` begins anew.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak * 1024 / MIB


if __name__ == "__main__":
    sys.exit(main())
