"""Golden images: a few real inputs with torch's logits, to prove a bundle right where it runs."""

from pathlib import Path
from typing import Any

import numpy as np

from deitlt.bundle import FLOAT32, GOLDEN, Bundle
from deitlt.errors import BundleError
from deitlt.preprocess import Pixels
from deitlt.runtimes import Device, Outputs, open_runtime

# Float32 rounding differs between processors and thread counts; a wrong graph is off by far more.
TOLERANCE = 1e-3
# fp16 and int8 may be off by this many times what they were when exported: processors round them
# each in their way, but one on which int8 overflows is off by far more.
MARGIN = 2.0


def write_golden(path: Path, pixels: Pixels, outputs: Outputs) -> None:
    """Write `(B, S, S, 3)` pixels and their logits and features as a plain .npz."""
    arrays: dict[str, Any] = {"pixels": pixels, **outputs.parts()}
    np.savez_compressed(path, **arrays)


def check_golden(bundle: Bundle, variant: str = FLOAT32, *, device: Device = "cpu") -> str:
    """Run the golden images through an artefact; returns one line for people.

    Raises:
        BundleError: an output is off by more than rounding allows, or there is no such variant.
        RuntimeUnavailable: what runs the artefact, or the device, is not here.
    """
    artefact = bundle.artefact(variant)
    limit, compared = TOLERANCE, Outputs.parts
    if artefact.precision != "float32":  # how far their features may be off, no one knows
        limit, compared = max(limit, MARGIN * artefact.max_abs_diff), Outputs.heads
    runtime = open_runtime(bundle, variant, device=device)
    with np.load(bundle.path / GOLDEN, allow_pickle=False) as golden:
        pixels = golden["pixels"]
        actual = compared(runtime.run(pixels))
        both = [name for name in actual if name in golden]  # bundles of old have no features there
        # np.max, because Python's max may pass over a NaN.
        worst = float(np.max([np.abs(actual[name] - golden[name]).max() for name in both]))
    if not worst <= limit:
        raise BundleError(
            f"{artefact.path}: golden images differ from torch by {worst:.1e} "
            f"(at most {limit:.0e} is rounding); the bundle or this runtime is not sound"
        )
    return (
        f"{variant}: {len(pixels)} golden images, max |logit difference| to torch {worst:.1e} "
        f"(limit {limit:.0e}, {runtime.provider})"
    )
