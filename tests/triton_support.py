"""What tests of Triton repositories share: Triton's schema, pictures, and a real server.

The nvidia-pytriton wheel carries tritonserver with the Python backend and nothing else. Its stub
needs the libpython of a Python that has NumPy 1, which is another than the one of this process
where that is newer.
"""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import tritonclient.grpc  # type: ignore[import-untyped]
import tritonclient.http  # type: ignore[import-untyped]
from google.protobuf import text_format  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import (  # type: ignore[import-untyped]
    InferenceServerException,
    np_to_triton_dtype,
)

from deitlt.bundle import OUTPUTS, Bundle, open_bundle
from deitlt.preprocess import Pixels
from export.to_triton import export_triton
from export.triton_config import ServerOptions
from tests.bundle_support import DIGITS

Array = NDArray[Any]
Protocol = Literal["http", "grpc"]

ROOT = Path(__file__).parents[1]
PYTHON = ServerOptions(backend="python")
SERVER = "nvidia-pytriton==0.7.0"
# NumPy 1 has wheels for these.
VERSIONS = ("3.11", "3.12")
PATIENCE_S = 60
PROBE = """
import ctypes, json, sys, sysconfig
from pathlib import Path
name = sysconfig.get_config_var("INSTSONAME")
assert name.startswith("libpython")
folders = [sysconfig.get_config_var("LIBDIR"), sys.base_prefix + "/lib"]
folder = next(f for f in folders if f and (Path(f) / name).is_file())
ctypes.CDLL(str(Path(folder) / name))
import venv
print(json.dumps({"version": "%d.%d" % sys.version_info[:2], "libraries": folder}))
"""
LIBRARY = """
import sys
import numpy as np
import deitlt
from deitlt.preprocess import load_pixels
classifier = deitlt.load(sys.argv[1], device="cpu", num_threads=1)
files = sys.argv[3:]
rows = [classifier.runtime.run(load_pixels(f, classifier.bundle.preprocess)[None]) for f in files]
predictions = classifier.predict(files)
np.savez(
    sys.argv[2],
    outputs=np.concatenate([np.stack([*row.heads().values()], axis=1) for row in rows]),
    labels=[p.label for p in predictions],
    probabilities=[p.probability for p in predictions],
)
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with tritonserver, this checkout's `deitlt` and NumPy 1."""

    folder: Path
    version: str
    libraries: str

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        return self.folder / "lib" / f"python{self.version}" / "site-packages"

    def variables(self) -> dict[str, str]:
        """What processes in it see of this process's environment, and where libraries are."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        libraries = f"{self.packages / 'nvidia_pytriton.libs'}:{self.libraries}"
        # PATH decides whose site-packages the interpreter inside the server uses.
        path = f"{self.folder / 'bin'}:{kept.get('PATH', '')}"
        return {**kept, "PATH": path, "LD_LIBRARY_PATH": libraries, "OMP_NUM_THREADS": "1"}

    def run(self, script: str, *arguments: str | Path) -> str:
        """Standard output of a script in it, which must succeed."""
        return _succeed([self.python, "-c", script, *arguments], env=self.variables())


@dataclass(frozen=True)
class Server:
    """A running server."""

    http: str
    grpc: str

    def client(self, protocol: Protocol = "http") -> Any:
        address = self.http if protocol == "http" else self.grpc
        return _library(protocol).InferenceServerClient(address)

    def ask(
        self, protocol: Protocol, inputs: Mapping[str, Array], model: str = "digits"
    ) -> dict[str, Array]:
        """All outputs for some inputs; raises `InferenceServerException`."""
        with self.client(protocol) as client:
            answer = client.infer(model, _tensors(protocol, inputs))
            return {name: answer.as_numpy(name) for name in OUTPUTS}

    def ask_together(
        self, protocol: Protocol, requests: Sequence[Sequence[bytes]], model: str
    ) -> list[Array | InferenceServerException]:
        """The logits or the error of each request, a list of image files; all are sent at once."""

        def ask(files: Sequence[bytes]) -> Array | InferenceServerException:
            try:
                return self.ask(protocol, {"encoded": as_encoded(files)}, model)["logits"]
            except InferenceServerException as error:
                return error

        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(ask, requests))

    def best(self, protocol: Protocol, pixels: Pixels, output: str, count: int) -> list[list[str]]:
        """The classification extension's answer: `value:index:label` of the best classes."""
        wanted = [_library(protocol).InferRequestedOutput(output, class_count=count)]
        with self.client(protocol) as client:
            inputs = _tensors(protocol, {"images": pixels})
            rows = client.infer("digits", inputs, outputs=wanted).as_numpy(output)
        return [[text.decode() for text in row] for row in rows]

    def batches(self, model: str) -> dict[int, int]:
        """How many batches of each size the model has run."""
        with self.client() as client:
            (statistics,) = client.get_inference_statistics(model)["model_stats"]
        return {b["batch_size"]: b["compute_infer"]["count"] for b in statistics["batch_stats"]}


def _library(protocol: Protocol) -> Any:
    return tritonclient.http if protocol == "http" else tritonclient.grpc


def _tensors(protocol: Protocol, inputs: Mapping[str, Array]) -> list[Any]:
    made = []
    for name, array in inputs.items():
        kind = np_to_triton_dtype(array.dtype)
        made.append(_library(protocol).InferInput(name, list(array.shape), kind))
        made[-1].set_data_from_numpy(array)
    return made


def as_encoded(files: Sequence[bytes]) -> NDArray[np.object_]:
    return np.array([[file] for file in files], dtype=np.object_)


def config(model: Path) -> Any:
    """A model's configuration as Triton reads it; an unknown key is an error."""
    text = (model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def tree(root: Path) -> dict[str, bytes | None]:
    """Everything in a folder: the content of files, None for folders."""
    files = sorted(root.rglob("*"))
    return {str(f.relative_to(root)): f.read_bytes() if f.is_file() else None for f in files}


def photos(golden: Pixels) -> list[bytes]:
    """Image files of many kinds: digits as PNG, then JPEG, grey, wide, transparent, 16 bit."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 300, 4), dtype=np.uint8)
    deep = np.arange(400, dtype=np.uint16).reshape(20, 20) * 99
    pictures: list[tuple[Array, str]] = [
        *((digit, "PNG") for digit in golden),
        *((noise[..., :3], "JPEG"), (noise[:, :50, 0], "JPEG"), (noise[:9, :, :3], "WEBP")),
        *((noise[:, :40], "PNG"), (deep, "PNG")),
    ]
    files = []
    for pixels, kind in pictures:
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind)
        files.append(buffer.getvalue())
    return files


def graph_file(image: str, kind: int, dims: Sequence[int], outputs: Sequence[str]) -> bytes:
    """An ONNX file with one input and float16 outputs, which need not run."""
    half = onnx.TensorProto.FLOAT16
    taken = onnx.helper.make_tensor_value_info(image, kind, ["batch", *dims])
    given = [onnx.helper.make_tensor_value_info(name, half, ["batch", 10]) for name in outputs]
    nodes = [onnx.helper.make_node("Cast", [image], [name], to=half) for name in outputs]
    graph = onnx.helper.make_graph(nodes, "signature", [taken], given)
    return bytes(onnx.helper.make_model(graph).SerializeToString())


def ask_library(
    environment: Environment, bundle: Bundle, files: Sequence[bytes], folder: Path
) -> dict[str, Array]:
    """What `deitlt.load()` says where the server runs, in a process of its own.

    `outputs` are `(files, 3, classes)` logits, `labels` and `probabilities` those of `predict`.
    """
    paths = [folder / str(number) for number in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    environment.run(LIBRARY, bundle.path, folder / "answers.npz", *paths)
    with np.load(folder / "answers.npz") as arrays:
        return dict(arrays)


def make_environment(folder: Path) -> Environment:
    """Install what a server needs; this asks the package index."""
    python, found = _find_python()
    _succeed([python, "-m", "venv", "--without-pip", folder])
    environment = Environment(folder, found["version"], found["libraries"])
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", environment.python]
    pip += ["install", "--no-compile"]
    # Without what pytriton's own Python side asks for: only its server is used.
    _succeed([*pip, "--no-deps", SERVER, ROOT])
    _succeed([*pip, "numpy>=1.26,<2", "pillow>=13", "tqdm>=4.66", "onnxruntime>=1.20"])
    return environment


@contextmanager
def serve(environment: Environment, models: Path, folder: Path, *ports: int) -> Iterator[Server]:
    """A server with all models of a repository, which loads others and newer ones when asked to.

    Args:
        environment: where it is installed.
        models: the repository.
        folder: an empty one for its log and its backends.
        ports: of HTTP, gRPC and metrics; free ones by default.
    """
    triton = environment.packages / "pytriton" / "tritonserver"
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    stub = triton / "python_backend_stubs" / environment.version / "triton_python_backend_stub"
    for file in (*(triton / "backends" / "python").iterdir(), stub):
        (backend / file.name).symlink_to(file)  # copies do not find the libraries beside them
    http, grpc, metrics = ports or free_ports(3)
    command: list[str | Path] = [triton / "bin" / "tritonserver"]
    command += ["--model-repository", models, "--backend-directory", backend.parent]
    command += ["--model-control-mode", "explicit", "--load-model", "*", "--exit-timeout-secs", "2"]
    for kind, port in (("http", http), ("grpc", grpc), ("metrics", metrics)):
        command += [f"--{kind}-address", "127.0.0.1", f"--{kind}-port", str(port)]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment.variables(), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _wait_until_ready(process, f"http://127.0.0.1:{http}/v2/health/ready", log)
        yield Server(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}")
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class World:
    """A running server, what it serves, pictures, and what `deitlt.load()` says of them there."""

    server: Server
    models: Path
    photos: list[bytes]
    local: dict[str, Array]


@contextmanager
def make_world(folder: Path, golden: Pixels, environment: Environment) -> Iterator[World]:
    """Three models: as exported, one that puts requests together, one to renew."""
    bundle = open_bundle(DIGITS)
    files, models = photos(golden), folder / "models"
    local = ask_library(environment, bundle, files, folder)
    export_triton(bundle, models, replace(PYTHON, max_batch_size=16))
    patient = replace(PYTHON, instances=1, max_queue_delay_us=500_000)
    export_triton(bundle, models, patient, name="patient")
    export_triton(bundle, models, PYTHON, name="renewed")
    with serve(environment, models, folder / "server") as server:
        yield World(server, models, files, local)


def _find_python() -> tuple[str, dict[str, str]]:
    """A Python with a libpython to embed: this one where it will do, else one on this machine."""
    names = [f"python{version}" for version in VERSIONS]
    candidates = [sys.executable]  # asked for its version like the others
    folders = os.environ.get("PATH", "").split(os.pathsep)
    candidates += [w for name in names for f in folders if (w := shutil.which(name, path=f))]
    siblings = Path(sys.base_prefix).parent  # of a version manager's interpreters
    candidates += [str(file) for name in names for file in sorted(siblings.glob(f"*/bin/{name}"))]
    for python in candidates:
        result = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, timeout=60)
        if result.returncode == 0 and (found := json.loads(result.stdout))["version"] in VERSIONS:
            return python, found
    raise RuntimeError(
        f"Triton's server needs Python {' or '.join(VERSIONS)} with its libpython; none of "
        f"{candidates or names} will do"
    )


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                text = log.read_text(errors="replace")[-4000:]
                raise RuntimeError(f"the server did not become ready:\n{text}") from error
        time.sleep(0.1)


def _succeed(command: Sequence[str | Path], env: dict[str, str] | None = None) -> str:
    if env is None:
        env = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout
