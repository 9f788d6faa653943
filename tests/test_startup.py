"""The check before a start, forked or spawned; what ONNX Runtime must not do."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from serving import startup

CHECKOUT = Path(__file__).resolve().parents[1]
# As in `bentoml serve`: nothing but this thread, and a spawned check would fail.
FORKING = """
import sys
from serving import startup

startup._try_spawned = None
print(startup.why_not())
print("onnxruntime" in sys.modules)
"""
DYING = """
import os
from serving import startup

startup._try_spawned = None
startup.main = lambda argv: {action}
print(startup.why_not())
"""


# A worker of `bentoml serve`, in which the check before has found nothing wrong.
WORKER = """
import bentoml
from serving import service, startup

startup.PAUSE_S = 0
bentoml.server_context.worker_index = 1
service.LongTailClassifier()
"""


def printed(script: str, **variables: str) -> list[str]:
    """What a fresh interpreter prints; nothing may go to standard error."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("DEITLT_")}
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=CHECKOUT,
        env={**kept, "PYTHONPATH": str(CHECKOUT), "DEITLT_DEVICE": "cpu", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stderr == ""
    return result.stdout.splitlines()


def test_a_good_start_is_tried_in_a_fork_that_leaves_nothing_behind() -> None:
    assert printed(FORKING) == ["None", "False"]


def test_a_fork_and_a_new_process_say_the_same(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (bundle_path / "model.onnx").open("ab") as model:
        model.write(b"!")
    forked, _ = printed(FORKING, DEITLT_MODEL=str(bundle_path))
    assert forked.startswith(f"{bundle_path / 'model.onnx'}: changed since")
    monkeypatch.setenv("DEITLT_MODEL", str(bundle_path))
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    monkeypatch.setattr(startup, "_try_forked", None)  # with two threads it is not called
    try:
        assert startup.why_not() == forked
    finally:
        done.set()
        other.join()


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("os.kill(os.getpid(), 9)", "the start-up check ended with status -9"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("os.write(2, b'a library: lost') and 3", "a library: lost"),
    ],
)
def test_a_check_that_dies_is_a_reason_too(action: str, said: str) -> None:
    assert printed(DYING.format(action=action)) == [said]


@pytest.mark.parametrize("use", ["deitlt; deitlt.load(device='cpu')", "export.quantize"])
def test_onnxruntime_tells_nobody_of_the_model(use: str, tmp_path: Path) -> None:
    # Where it would, it keeps an id of the machine and a queue of events in the home folder. The
    # variables that stop it by themselves in tests are taken away.
    stopping = ("ORT_", "CI", "GITHUB_", "XDG_")
    kept = {name: text for name, text in os.environ.items() if not name.startswith(stopping)}
    environ = {**kept, "HOME": str(tmp_path), "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-c", f"import {use}"]
    subprocess.run(command, env=environ, check=True, timeout=60)
    assert list(tmp_path.rglob("*onnxruntime*")) == []


def test_a_worker_that_cannot_start_any_more_is_one_line(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT), "DEITLT_MODEL": str(tmp_path)}
    command = [sys.executable, "-c", WORKER]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "this worker cannot start" in line
    assert f"{tmp_path}: not a bundle" in line
