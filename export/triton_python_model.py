"""The model.py of a Triton model on the Python backend: a bundle behind Triton, through `deitlt`.

`export.to_triton` copies this file into the repository; it is not imported anywhere else. A request
holds either `images`, preprocessed `(B, S, S, 3)` uint8 pixels, or `encoded`, `(B, 1)` image files
as bytes, which are decoded here just as `deitlt.load()` does. The server's Python needs `deitlt`.

A request with an image that cannot be decoded is answered with INVALID_ARG and its position.
Triton's batches are made of whole requests, so no other request is affected.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

from deitlt.bundle import INPUT, OUTPUTS, open_bundle
from deitlt.errors import DeitLTError, ImageError, UsageError
from deitlt.preprocess import Pixels, load_pixels
from deitlt.runtimes import Logits, open_runtime

ENCODED = "encoded"


class TritonPythonModel:
    """One instance, in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle beside this file; Triton reports what is raised and serves nothing."""
        _refuse_unreadable_arrays()
        # Python keeps each text that Pillow warns with; some name a size, which clients choose.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        parameters = json.loads(args["model_config"])["parameters"]
        variant = parameters["variant"]["string_value"]
        self._on_gpu = args["model_instance_kind"] == "GPU"
        try:
            bundle = open_bundle(Path(__file__).parent / "bundle")
            self._spec = bundle.preprocess
            self._runtime = open_runtime(
                bundle, variant, device="cuda" if self._on_gpu else "cpu", num_threads=1
            )
        except DeitLTError as error:
            raise pb_utils.TritonModelException(str(error)) from error

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request, in order."""
        loaded = [self._load(request) for request in requests]
        good = [pixels for pixels in loaded if not isinstance(pixels, DeitLTError)]
        rows = iter(self._run(good))
        return [
            _refusal(item)
            if isinstance(item, DeitLTError)
            else _response(next(rows), request.requested_output_names())
            for request, item in zip(requests, loaded, strict=True)
        ]

    def _load(self, request: Any) -> Pixels | DeitLTError:
        """The `(B, S, S, 3)` pixels of a request; Triton has checked their shape."""
        images = pb_utils.get_input_tensor_by_name(request, INPUT)
        encoded = pb_utils.get_input_tensor_by_name(request, ENCODED)
        if (images is None) == (encoded is None):
            return UsageError(f"send one of the inputs {INPUT!r} and {ENCODED!r}")
        if images is not None:
            pixels: Pixels = images.as_numpy()
            return pixels if len(pixels) else UsageError("the request holds no image")
        files = encoded.as_numpy().reshape(-1).tolist()
        if not files:
            return UsageError("the request holds no image")
        decoded = []
        for number, data in enumerate(files, start=1):
            try:
                decoded.append(load_pixels(data, self._spec))
            except ImageError as error:
                place = f"image {number} of {len(files)}: " if len(files) > 1 else ""
                return type(error)(f"{place}{error}")
        return np.stack(decoded)

    def _run(self, batches: Sequence[Pixels]) -> list[dict[str, Logits]]:
        """Logits of each request, by output."""
        if not batches:
            return []
        pixels = np.concatenate(batches)
        # On a CPU one image at a time: not slower, and no answer depends on its neighbours.
        step = len(pixels) if self._on_gpu else 1
        parts = [self._runtime.run(pixels[i : i + step]) for i in range(0, len(pixels), step)]
        ends = np.cumsum([len(batch) for batch in batches])[:-1]
        rows: list[dict[str, Logits]] = [{} for _ in batches]
        for name in OUTPUTS:
            found = [part for outputs in parts if (part := getattr(outputs, name)) is not None]
            if found:  # a graph exported without its experts gives the average alone
                logits = np.concatenate(found).astype(np.float32)
                for row, part in zip(rows, np.split(logits, ends), strict=True):
                    row[name] = part
        return rows


def _response(outputs: dict[str, Logits], wanted: Sequence[str]) -> Any:
    tensors = [pb_utils.Tensor(name, logits) for name, logits in outputs.items() if name in wanted]
    return pb_utils.InferenceResponse(tensors)


def _refusal(error: DeitLTError) -> Any:
    text = f"{error.code}: {error}"
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG)
    )


def _refuse_unreadable_arrays() -> None:
    """Stop a server whose Python backend reads arrays wrongly: its answers would be wrong too.

    Backends built before NumPy 2 do so under NumPy 2. A tensor that comes by DLPack goes the same
    way into an array as one that comes with a request.
    """
    sent = np.arange(12, dtype=np.uint8).reshape(3, 4)
    seen = pb_utils.Tensor.from_dlpack("check", pb_utils.Tensor("sent", sent)).as_numpy()
    if not np.array_equal(sent, seen):
        raise pb_utils.TritonModelException(
            f"this server's Python backend cannot read arrays of NumPy {np.__version__}; "
            "install numpy<2 into the server's Python"
        )
