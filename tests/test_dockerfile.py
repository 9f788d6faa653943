"""The Dockerfile: linted, and the steps of its serving image run and served without Docker."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deitlt.classifier import load
from tests.dockerfile_support import Machine, exec_form, read_stages
from tests.serve_support import wait_until_ready
from tests.service_support import CLASSIFY, PATIENCE_S, picture, plain, without_envelope

CHECKOUT = Path(__file__).resolve().parents[1]
STAGES = read_stages((CHECKOUT / "Dockerfile").read_text(encoding="utf-8"))
SERVING = STAGES["service"]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """What `docker build .` makes; needs the package index."""
    machine = Machine(tmp_path_factory.mktemp("image"), CHECKOUT)
    machine.build(STAGES, list(STAGES)[-1])
    return machine


@pytest.fixture
def served(machine: Machine, tmp_path: Path) -> Iterator[int]:
    """The port of the image's own command."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [str(port) if word == "3000" else word for word in exec_form(SERVING.last("CMD"))]
    command[command.index("0.0.0.0")] = "127.0.0.1"
    command[0] = f"{machine.root}/opt/deitlt/bin/{command[0]}"
    environ = {**machine.environ, "BENTOML_HOME": str(tmp_path), "DEITLT_DEVICE": "cpu"}
    environ["DEITLT_WORKERS"] = "1"
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=machine.cwd, env=environ, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            wait_until_ready(process, port, log)
            yield port
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def test_the_linter_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run(
        [hadolint, "--no-color", "Dockerfile"], cwd=CHECKOUT, capture_output=True
    )
    assert result.returncode == 0, result.stdout.decode()


def test_images_are_what_the_head_of_the_file_says() -> None:
    assert list(STAGES)[-1] == "serving"  # what `docker build .` makes
    assert {STAGES["serving"].base, STAGES["serving-gpu"].base} == {"service"}
    for name in ("service", "training"):
        assert int(STAGES[name].last("USER").split(":")[0]) > 0


def test_readme_builds_what_there_is() -> None:
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"docker build --target (\S+)", readme)
    assert "serving-gpu" in targets
    assert set(targets) <= set(STAGES)
    files = re.findall(r"^(?:docker compose|kubectl) .*-f (\S+)", readme, re.MULTILINE)
    assert len(files) == 2
    for file in files:
        assert (CHECKOUT / file).is_file()


def test_no_image_has_two_runtimes() -> None:
    cpu, gpu = (STAGES[name].last("RUN") for name in ("packages", "packages-gpu"))
    assert re.findall(r'"onnxruntime\S*>=', cpu) == ['"onnxruntime>=']
    assert re.findall(r'"onnxruntime\S*>=', gpu) == ['"onnxruntime-gpu[cuda,cudnn]>=']


def test_the_serving_image_is_torch_free_and_has_one_runtime(machine: Machine) -> None:
    python = f"{machine.root}/opt/deitlt/bin/python"
    listing = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    names = set(machine.run([python, "-c", listing]).stdout.lower().split())
    assert {"deitlt", "bentoml", "onnxruntime", "uvloop"} <= names
    assert not names & {"torch", "timm", "onnxruntime-gpu", "uv", "pip"}
    assert list(machine.cwd.glob("serving/__pycache__/service.*.pyc"))
    assert list(machine.root.glob("opt/deitlt/lib/*/site-packages/deitlt/__pycache__/engine.*.pyc"))


def test_the_serving_image_serves(machine: Machine, served: int) -> None:
    url = f"http://127.0.0.1:{served}"
    answer = httpx.post(url + CLASSIFY, content=picture(), timeout=PATIENCE_S).json()
    (wanted,) = load(device="cpu", num_threads=1).predict([picture()])
    found = without_envelope(answer)
    assert found["label"] == wanted.label
    assert found["probability"] == pytest.approx(wanted.probability, abs=1e-4)
    assert set(found) == set(plain(wanted))
    machine.run([word.replace(":3000", f":{served}") for word in health_check(machine)])


def test_the_health_check_fails_where_nothing_answers(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [word.replace(":3000", f":{port}") for word in health_check(machine)]
    assert subprocess.run(command, capture_output=True, env=os.environ).returncode == 1


def health_check(machine: Machine) -> list[str]:
    """The HEALTHCHECK's command, with the image's Python."""
    command = exec_form(SERVING.last("HEALTHCHECK"))
    assert command[0] == "python"
    return [f"{machine.root}/opt/deitlt/bin/python", *command[1:]]
