"""Programs with `null_gpu.c` in place of NVIDIA's libraries: others' CUDA code, run for real.

ONNX Runtime's CUDA provider and torch's CUDA build place, allocate, copy, capture and complain as
on a GPU; only the numbers mean nothing: all are zero.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("null_gpu.c")
# What the wheels' headers would include of the compiler's own, which no wheel has.
QUALIFIERS = """
#define __host__
#define __device__
#define __cudart_builtin__
#define __device_builtin__
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __align__(n) __attribute__((aligned(n)))
"""
OURS = re.compile(r"(__cuda|cu|nccl)\w+")
OLDEST = 13000  # of CUDA; some functions had other names before
# One operation of each, without a line of ours.
PROBE = """
import sys, onnx, onnxruntime, torch
from onnx import TensorProto, helper
assert float((torch.ones(4, 4, device="cuda") @ torch.ones(4, 4, device="cuda")).sum()) == 0
kind = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "ab"]
graph = helper.make_graph([helper.make_node("MatMul", ["a", "a"], ["b"])], "g", kind[:1], kind[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
onnxruntime.preload_dlls()
provider = "CUDAExecutionProvider"
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=[provider])
sys.exit(session.get_providers()[0] != provider)
"""


def build(folder: Path) -> dict[str, str]:
    """Environment variables with which programs find a null GPU; skips where none can be made."""
    tools = [shutil.which(name) for name in ("cc", "nm")]
    libraries = [*_found("onnxruntime", "capi/libonnxruntime_providers_cuda.so")]
    libraries += _found("torch", "lib/libtorch_cuda.so", "lib/libtorch_cuda_linalg.so")
    libraries += _found("torch", "lib/libc10_cuda.so", "lib/libtorch_python.so")
    headers = _found("nvidia", "*/include/driver_types.h")
    if None in tools or len(libraries) != 5 or not headers:
        pytest.skip("needs a C compiler, nm, and onnxruntime-gpu and torch for the same CUDA")
    include = headers[0].parent
    found = re.search(r"CUDART_VERSION\s+(\d+)", (include / "cuda_runtime_api.h").read_text())
    if found is None or int(found[1]) < OLDEST:
        pytest.skip("needs the headers of CUDA 13 or newer")
    (folder / "crt").mkdir()
    (folder / "crt" / "host_defines.h").write_text(QUALIFIERS)
    compiler = ["cc", "-fPIC", f"-I{folder}", f"-I{include}", f"-DCUDART_VERSION={found[1]}"]
    _run(*compiler, "-c", str(SOURCE), "-o", str(folder / "own.o"))
    missing = _names(libraries, "--dynamic", "--undefined-only")
    for library in _found("torch", "lib/libc10_cuda.so"):  # what it asks the driver for by name
        missing |= {
            name.decode() for name in re.findall(rb"\0(cu[A-Z]\w+)(?=\0)", library.read_bytes())
        }
    missing -= _names([folder / "own.o"], "--defined-only")
    rest = folder / "rest.c"
    rest.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(missing)))
    null = folder / "libnullgpu.so"
    _run(*compiler, "-w", "-shared", str(folder / "own.o"), str(rest), "-o", str(null))
    for name in ("libcuda.so.1", "libcudnn.so.9"):  # opened by name, and asked for what is in it
        linked = ["-Wl,--no-as-needed", str(null), f"-Wl,-soname,{name}"]
        _run(
            "cc", "-shared", "-x", "c", "/dev/null", "-x", "none", *linked, "-o", str(folder / name)
        )
    environ = {
        "LD_PRELOAD": f"{null}:{folder / 'libcudnn.so.9'}",
        "LD_LIBRARY_PATH": str(folder),
    }
    probed = subprocess.run(
        [sys.executable, "-c", PROBE], env=os.environ | environ, capture_output=True, text=True
    )
    if probed.returncode:
        last = (probed.stderr.strip().splitlines() or ["it crashed"])[-1]
        pytest.skip(f"these versions of onnxruntime and torch want more of a GPU: {last}")
    return environ


def _found(package: str, *patterns: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    places = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    return [path for pattern in patterns for place in places for path in place.glob(pattern)]


def _names(files: Iterable[Path], *options: str) -> set[str]:
    """Of functions of CUDA and its libraries."""
    lines = _run("nm", *options, *map(str, files)).splitlines()
    symbols = (line.split()[-1].partition("@")[0] for line in lines if line.strip())
    return {symbol for symbol in symbols if OURS.fullmatch(symbol)}


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def run(
    environ: dict[str, str], command: Sequence[object], **more: str
) -> "subprocess.CompletedProcess[str]":
    """A Python program on the null GPU, to its end."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env=os.environ | environ | more,
        capture_output=True,
        text=True,
        timeout=120,
    )
