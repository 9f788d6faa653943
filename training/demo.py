"""`make demo`: the whole chain on real images, by the very commands a user types.

Handwritten digits, long-tailed at imbalance factor 20: teacher, student, evaluation, bundle, HTTP
service and batch prediction. Everything lands in `runs/demo/`.
"""

import csv
import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.digits import write_digits

ROOT = Path("runs/demo")
DATA, TEACHER, STUDENT = ROOT / "data", ROOT / "teacher", ROOT / "student"
BUNDLE, PREDICTIONS = ROOT / "bundle", ROOT / "predictions.csv"
SERVICE = "serving.service:LongTailClassifier"
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo.

    Returns:
        0, or 1 where a stage failed; its own output says why.
    """
    assert not argv, "the demo takes no arguments"
    stages: list[tuple[str, Callable[[], None]]] = [
        ("data: handwritten digits as PNG files", lambda: write_digits(DATA)),
        ("teacher: ResNet-32, LDAM-DRW, SAM", train_teacher),
        ("student: DeiT-LT pico", train_student),
        ("evaluation on the balanced test digits", evaluate),
        ("export: bundle checked against torch", export),
        ("service: real PNG files over HTTP", serve),
        ("batch prediction of a folder", predict),
    ]
    start = time.perf_counter()
    for number, (title, stage) in enumerate(stages, start=1):
        print(f"\n[{number}/{len(stages)}] {title}", flush=True)
        stage_start = time.perf_counter()
        try:
            stage()
        except (subprocess.SubprocessError, OSError, RuntimeError) as error:
            print(f"demo: stage {number} failed: {error}", file=sys.stderr)
            return 1
        print(f"[{number}/{len(stages)}] done in {time.perf_counter() - stage_start:.1f} s")
    print(f"\nThe whole chain took {time.perf_counter() - start:.0f} s.")
    print_summary()
    return 0


def train_teacher() -> None:
    """Train the teacher."""
    run("training.train_teacher", "digits", "--data", DATA, "--output", TEACHER, "--overwrite")


def train_student() -> None:
    """Distil the student."""
    where = ("--data", DATA, "--teacher", TEACHER, "--output", STUDENT)
    run("training.train_student", "digits", *where, "--overwrite")


def evaluate() -> None:
    """Evaluate both on the test digits."""
    for trained in (TEACHER, STUDENT):
        run("training.evaluate", trained, "--data", DATA, "--split", "test")


def export() -> None:
    """Export the bundle."""
    where = ("--output", BUNDLE, "--data", DATA, "--split", "test", "--name", "digits")
    run("export.to_bundle", STUDENT, *where, "--overwrite")


def serve() -> None:
    """Ask a real server about a frequent and a rare digit, without and with experts."""
    with server() as url:
        for digit, query in (("0", ""), ("9", "?experts=true&top_k=2")):
            picture = next(iter(sorted((DATA / "test" / digit).iterdir())))
            answer = post(f"{url}/v1/classify{query}", picture.read_bytes())
            print(f"POST {picture} to /v1/classify{query}\n{json.dumps(answer, indent=2)}")


def predict() -> None:
    """Classify the test digits into a CSV."""
    where = ("--model", BUNDLE, "--output", PREDICTIONS)
    run("deitlt.cli", "predict", DATA / "test", *where, "--experts", "--overwrite")
    with PREDICTIONS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    right = sum(Path(row["filename"]).parent.name == row["label"] for row in rows)
    print(f"{right} of {len(rows)} rows name the folder their image lies in")


def print_summary() -> None:
    """What came out, and what to type next."""
    metrics = json.loads((STUDENT / "metrics-test.json").read_text(encoding="utf-8"))
    heads = metrics["heads"]
    means = {head: mean_of_groups(figures) for head, figures in heads.items()}
    best = max(means["cls"], means["dist"])
    verdict = "above" if means["average"] > best else "not above"
    print(
        f"Average of the experts: {100 * heads['average']['overall']['value']:.1f} % of "
        f"{metrics['num_images']} test digits; mean of head, mid and tail "
        f"{100 * means['average']:.1f} % (CLS {100 * means['cls']:.1f}, DIST "
        f"{100 * means['dist']:.1f}): {verdict} both experts."
    )
    bentoml = Path(sys.executable).with_name("bentoml")
    print(f"Serve it:  DEITLT_MODEL={BUNDLE} {os.path.relpath(bentoml)} serve {SERVICE}")


def mean_of_groups(figures: dict[str, Any]) -> float:
    """Mean of head, mid and tail accuracy in one head's entry of metrics.json."""
    shares: list[float] = [figures["groups"][name]["value"] for name in ("head", "mid", "tail")]
    return sum(shares) / len(shares)


def run(module: str, *arguments: str | Path) -> None:
    """Run one of the programs as a user would, its output shown; raises if it fails."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    print(f"$ python -m {shlex.join(command[2:])}", flush=True)
    subprocess.run(command, check=True)


@contextmanager
def server() -> Iterator[str]:
    """A `bentoml serve` of the bundle on a free port; stopped, with its workers, at the end."""
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--port", str(port)]
    print(f"$ DEITLT_MODEL={BUNDLE} bentoml serve {SERVICE} --port {port}", flush=True)
    environment = {**os.environ, "DEITLT_MODEL": str(BUNDLE), "BENTOML_DO_NOT_TRACK": "True"}
    process = subprocess.Popen([*command, "--host", "127.0.0.1"], env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        yield url
    finally:
        process.terminate()  # a kill would leave its workers behind
        process.wait(STOP_TIMEOUT_S)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return once the server is ready; raises RuntimeError if it ends or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise RuntimeError(f"the server was not ready within {START_TIMEOUT_S} s")


def post(url: str, image: bytes) -> Any:
    """The JSON answer to an image."""
    request = urllib.request.Request(url, image, {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


if __name__ == "__main__":
    sys.exit(main())
