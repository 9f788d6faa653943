"""NVIDIA's server with the Python backend, from the nvidia-pytriton wheel.

The wheel keeps the backend's parts in places where the server does not look for them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from deitlt.errors import RuntimeUnavailable

CHECKOUT = Path(__file__).resolve().parents[3]
PROBE = """
import json, sys, sysconfig
from importlib.metadata import version
from importlib.util import find_spec
names = [f"onnxruntime{end}" for end in ("", "-gpu")]
def find(name):
    try:
        return version(name)
    except Exception:
        return None
print(json.dumps({
    "python": "%d.%d" % sys.version_info[:2],
    "packages": sysconfig.get_path("purelib"),
    "libraries": sysconfig.get_config_var("LIBDIR"),
    "versions": {n: v for n in ("nvidia-pytriton", "deitlt", *names) if (v := find(n))},
}))
"""


def look_into(environment: Path) -> dict[str, Any]:
    """Where a virtual environment keeps what the server needs, and versions.

    Raises:
        RuntimeUnavailable: it has no Python, no nvidia-pytriton or no deitlt.
    """
    try:
        result = subprocess.run(
            [environment / "bin" / "python", "-c", PROBE],
            env=_without_python(), capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeUnavailable(f"{environment}: no virtual environment that runs") from error
    facts: dict[str, Any] = json.loads(result.stdout)
    for name in ("nvidia-pytriton", "deitlt"):
        if name not in facts["versions"]:
            raise RuntimeUnavailable(f"{environment}: {name} is not installed in it")
    return facts


def write_repository(bundle: Path, variant: str, instances: int, folder: Path) -> None:
    """Export a bundle for the server, one model named `benchmark`.

    Raises:
        RuntimeUnavailable: it cannot be exported.
    """
    command = [sys.executable, "-m", "export.to_triton", str(bundle), str(folder)]
    command += ["--backend", "python", "--name", "benchmark", "--variant", variant]
    command += ["--instances", str(instances), "--device", "cpu"]
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    result = subprocess.run(command, cwd=CHECKOUT, env=environ, capture_output=True, text=True)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["export.to_triton failed"]
        raise RuntimeUnavailable(lines[-1])


def server_command(facts: dict[str, Any], models: Path, folder: Path, port: int) -> list[str]:
    """The command line of a server on a port of this machine.

    Args:
        facts: from `look_into`.
        models: the repository.
        folder: where links to the backend's parts go.
        port: of HTTP.
    """
    triton = Path(str(facts["packages"])) / "pytriton" / "tritonserver"
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True, exist_ok=True)
    stub = triton / "python_backend_stubs" / str(facts["python"]) / "triton_python_backend_stub"
    for file in (*(triton / "backends" / "python").iterdir(), stub):
        if not (backend / file.name).exists():
            (backend / file.name).symlink_to(file)  # a copy does not find the libraries beside it
    command = [str(triton / "bin" / "tritonserver")]
    command += ["--model-repository", str(models), "--backend-directory", str(backend.parent)]
    command += ["--http-address", "127.0.0.1", "--http-port", str(port)]
    command += ["--allow-grpc", "false", "--allow-metrics", "false", "--exit-timeout-secs", "5"]
    return command


def server_environ(environment: Path, facts: dict[str, Any]) -> dict[str, str]:
    """This process's environment with the server's Python and libraries in front."""
    kept = _without_python()
    return {
        **kept,
        # PATH decides whose packages the interpreter inside the server sees.
        "PATH": f"{environment / 'bin'}:{kept.get('PATH', '')}",
        "LD_LIBRARY_PATH": f"{facts['packages']}/nvidia_pytriton.libs:{facts['libraries']}",
        "OMP_NUM_THREADS": "1",
    }


def _without_python() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
