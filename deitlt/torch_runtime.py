"""TorchScript and `torch.export` artefacts as a runtime. Needs torch; nothing else in serving does.

Legend: `B` images, `S` image side.
"""

import warnings
from pathlib import Path

import torch
from torch.export.passes import move_to_device_pass

from deitlt.bundle import Artefact
from deitlt.errors import RuntimeUnavailable
from deitlt.gpu import GpuThread, cause
from deitlt.preprocess import Pixels
from deitlt.runtimes import Device, Outputs


class TorchRuntime:
    """PyTorch on CPU or CUDA."""

    def __init__(
        self, artefact: Artefact, *, device: Device = "auto", num_threads: int | None = None
    ) -> None:
        """Load an artefact of format torchscript or pt2.

        Args:
            artefact: what to load.
            device: `auto` takes CUDA where there is a GPU; `cuda` fails without one.
            num_threads: threads inside one call, for this whole process; None leaves them.

        Raises:
            RuntimeUnavailable: the device cannot be had, or this PyTorch cannot read the file.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeUnavailable("PyTorch sees no CUDA device here; use --device cpu")
        wanted = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        # With its number, as tensors on it have it: programs of torch.export compare the two.
        self._device = torch.device("cuda", 0) if wanted == "cuda" else torch.device("cpu")
        self.num_threads = num_threads
        try:
            self._module = load(artefact.path, artefact.format, self._device)
        except Exception as error:  # damaged archives raise errors of zip, pickle, JSON and C++
            raise RuntimeUnavailable(
                f"{artefact.path}: PyTorch cannot load it ({cause(error)})"
            ) from error
        self._gpu = GpuThread() if wanted == "cuda" else None

    @property
    def provider(self) -> str:
        """`PyTorch cpu` or `PyTorch cuda`."""
        return f"PyTorch {self._device.type}"

    def run(self, pixels: Pixels) -> Outputs:
        """Logits and features of `(B, S, S, 3)` uint8 pixels.

        Raises:
            DeviceLost: the GPU can no longer be used by this process.
        """
        return self._gpu.run(self._run, pixels) if self._gpu else self._run(pixels)

    @torch.inference_mode()
    def _run(self, pixels: Pixels) -> Outputs:
        results = self._module(torch.from_numpy(pixels).to(self._device))
        return Outputs(*(part.cpu().numpy() for part in results))


def load(path: Path, kind: str, device: torch.device) -> torch.nn.Module:
    """The module of an artefact of format torchscript or pt2, on a device."""
    if kind == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # PyTorch calls the format legacy; whoever chose it knows
            script: torch.nn.Module = torch.jit.load(str(path), map_location=device)
        return script
    # A program notes the device of its tensors in its operators too, where `Module.to` leaves it.
    return move_to_device_pass(torch.export.load(path), device).module()
