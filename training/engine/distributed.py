"""One process or many: torch's own distributed engine, started by torchrun.

`torchrun --nproc-per-node 8 -m training.train_student ...` runs the same program on eight GPUs,
with `--nnodes` on several machines. Without torchrun all of this is about one process.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn

from deitlt.errors import UsageError
from deitlt.gpu import count_gpus


class EndedElsewhere(UsageError):
    """Another process of the run has failed; it says why, and this one says nothing."""


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    Attributes:
        device: where this process trains.
        rank: its number; rank 0 writes files and speaks.
        size: how many there are.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def set_deterministic(self, deterministic: bool) -> None:
        """On a GPU: repeatable kernels, or else the fastest ones; a CPU is always repeatable."""
        if self.device.type != "cuda":
            return
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # It tells the compiler, too. Only warned, attention would stay as it is.
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = not deterministic

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            distributed.barrier()

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block, in which no process waits for others, after which all go on or none.

        Raises:
            EndedElsewhere: it failed, and in a process before this one or not here; the first
                process where it did raises its own error.
        """
        if self.size == 1:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        failed = torch.zeros(self.size, device=self.device)
        failed[self.rank] = float(failure is not None)
        ranks = self.total(failed).nonzero().flatten().tolist()
        if failure is not None and ranks[0] == self.rank:
            raise failure
        if ranks:
            raise EndedElsewhere(f"process {ranks[0]} has failed")

    @contextmanager
    def leading(self) -> Iterator[bool]:
        """A block of which the first process does the work; if it fails there, all end.

        Yields:
            Whether this process is the first.

        Raises:
            EndedElsewhere: in the others.
        """
        with self.together():
            yield self.leads

    def total(self, values: Tensor) -> Tensor:
        """Sum of a tensor over all processes."""
        if self.size > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    def agree(self, position: list[int]) -> None:
        """Make sure that all processes resume from the same place.

        Raises:
            UsageError: they do not, as the run folder is not one they share.
        """
        mine = torch.tensor(position, dtype=torch.float64, device=self.device)
        apart = bool((self.total(mine) != self.size * mine).any())
        with self.together():
            if apart:
                raise UsageError("processes resume from different epochs; --output must be shared")

    def any(self, flag: bool) -> bool:
        """Whether a flag is up in any process."""
        if self.size == 1:
            return flag
        return bool(self.total(torch.tensor(float(flag), device=self.device)).item())

    def average_buffers(self, model: nn.Module) -> None:
        """Make floating buffers (batch-norm's statistics) the mean over all processes."""
        if self.size > 1:
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.total(buffer) / self.size)

    def accumulating(self, module: nn.Module, more: bool) -> AbstractContextManager[object]:
        """While `more` micro-batches follow, gradients stay in this process."""
        if more and isinstance(module, nn.parallel.DistributedDataParallel):
            return module.no_sync()
        return nullcontext()

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module as DistributedDataParallel, where there are several processes."""
        if self.size == 1:
            return module
        distribute = nn.parallel.DistributedDataParallel
        # Each process keeps its own batch-norm statistics until `average_buffers`. torch 2.15 gave
        # the option another name.
        known = signature(distribute).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        devices = [self.device] if self.device.type == "cuda" else None
        options: dict[str, Any] = {"device_ids": devices, sync: False}
        return distribute(module, **options)


def pick_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The torch device of a `--device` flag; `auto` is CUDA where there is a GPU.

    Under torchrun each process takes the GPU of its own number on the machine.

    Raises:
        UsageError: CUDA was asked for and there is none, or fewer GPUs than processes.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("--device cuda: torch sees no CUDA GPU; use --device cpu")
    if not available or name == "cpu":
        if name == "auto" and count_gpus() > 0 and speaks():
            torch_is = f"torch {torch.__version__} (CUDA: {torch.version.cuda or 'none'})"
            print(
                f"warning: there is a GPU, but {torch_is} cannot use it; the CPU is used",
                file=sys.stderr,
            )
        return torch.device("cpu")
    wanted, there = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if wanted > there:
        raise UsageError(
            f"{wanted} processes on this machine, but torch sees {there} CUDA GPUs; start torchrun "
            f"with --nproc-per-node {there}"
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def join_world(device_name: Literal["auto", "cpu", "cuda"]) -> Iterator[World]:
    """The processes that torchrun started with this one, or this one alone.

    Raises:
        UsageError: no such device.
    """
    device = pick_device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World(device)
        return
    backend, own = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    # The first process validates and decodes while the others wait.
    distributed.init_process_group(backend, timeout=timedelta(hours=1), device_id=own)
    yield World(device, distributed.get_rank(), distributed.get_world_size())
    # Not after an error: the others may wait in a collective, and torchrun ends them.
    distributed.destroy_process_group()


def speaks() -> bool:
    """Whether this process prints to the user; known before the processes have joined."""
    return os.environ.get("RANK", "0") == "0"


def say_failure(line: str) -> None:
    """Print on stderr why this process ends.

    Processes that have not joined fail alike on one machine, so its first speaks for them. Later
    each speaks for itself: what all or the first meet raises `EndedElsewhere` in the others.
    """
    joined = distributed.is_available() and distributed.is_initialized()
    if joined and not speaks():
        print(f"process {distributed.get_rank()}: {line}", file=sys.stderr, flush=True)
    elif joined or os.environ.get("LOCAL_RANK", "0") == "0":
        print(line, file=sys.stderr)
