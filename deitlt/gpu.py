"""NVIDIA's driver, asked without PyTorch, and the one thread that calls a GPU.

What CUDA's libraries hold (streams, cuBLAS and cuDNN handles with their workspaces) ONNX Runtime
and PyTorch keep for each thread that calls them, until the model goes. Threads that take turns at a
GPU would each cost that memory and gain nothing, so a runtime's calls are made on one of its own.
"""

import ctypes
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from deitlt.errors import DeviceLost

P = ParamSpec("P")
Answer = TypeVar("Answer")
SUCCESS, INVALID_CONTEXT = 0, 201  # of the driver's status codes
# The part that says what went wrong, among C++ names, paths and host names.
_CAUSE = re.compile(r"(CUDA|CUBLAS|CUDNN)\w* failure [^;\n]+|Failed to [^\n]+")
MAX_CAUSE = 300  # characters


class GpuThread:
    """Makes the calls that others ask it for, one after the other."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="deitlt-gpu")

    def run(self, call: Callable[P, Answer], *args: P.args, **kwargs: P.kwargs) -> Answer:
        """What the call gives or raises.

        Raises:
            DeviceLost: it failed and left the GPU unusable for this process.
        """
        return self._pool.submit(lambda: _checked(partial(call, *args, **kwargs))).result()


def _checked(call: Callable[[], Answer]) -> Answer:
    try:
        return call()
    except Exception as error:
        problem = _context_problem()
        if not problem:
            raise
        raise DeviceLost(
            f"the GPU is lost to this process ({problem}): {cause(error)}; start it again"
        ) from error


def _context_problem() -> str:
    """Why this thread's CUDA context can never be used again; empty if it can.

    After an illegal access, a failed launch or a memory error that ECC cannot correct, every call
    of the driver gives that same error; after too large an allocation, say, the next one succeeds.
    """
    cuda = cuda_driver()
    status: int = INVALID_CONTEXT if cuda is None else cuda.cuCtxSynchronize()
    if cuda is None or status in (SUCCESS, INVALID_CONTEXT):
        return ""
    name = ctypes.c_char_p()
    cuda.cuGetErrorName(status, ctypes.byref(name))
    return (name.value or b"CUDA error %d" % status).decode()


def count_gpus() -> int:
    """NVIDIA GPUs that the driver offers; 0 without a driver."""
    count = ctypes.c_int(0)
    cuda = cuda_driver()
    if cuda is not None and cuda.cuDeviceGetCount(ctypes.byref(count)) == SUCCESS:
        return count.value
    return 0


def cuda_driver() -> ctypes.CDLL | None:
    """The library of NVIDIA's driver, ready for calls; None where there is none that works."""
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            cuda = ctypes.CDLL(library)
        except OSError:
            continue
        if cuda.cuInit(0) == SUCCESS:
            return cuda
    return None


def cause(error: Exception) -> str:
    """One line of a runtime's error: what CUDA says if it does, else how it begins."""
    text = str(error).strip()
    found = _CAUSE.search(text)
    line = found[0] if found else (text.splitlines() or [type(error).__name__])[0]
    return line.strip()[:MAX_CAUSE]
