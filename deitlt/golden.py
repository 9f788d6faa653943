"""Golden images: a few real inputs with torch's logits, to prove a bundle right where it runs."""

from pathlib import Path

import numpy as np

from deitlt.bundle import GOLDEN, OUTPUTS, Bundle
from deitlt.errors import BundleError
from deitlt.preprocess import Pixels
from deitlt.runtimes import OnnxRuntime, Outputs

# Float32 rounding differs between processors and thread counts; a wrong graph is off by far more.
TOLERANCE = 1e-3


def write_golden(path: Path, pixels: Pixels, outputs: Outputs) -> None:
    """Write `(B, S, S, 3)` pixels and their logits as a plain .npz."""
    np.savez_compressed(path, pixels=pixels, **outputs._asdict())


def check_golden(bundle: Bundle) -> str:
    """Run the golden images through the graph; returns one line for people.

    Raises:
        BundleError: an output is off by more than `TOLERANCE`.
    """
    with np.load(bundle.path / GOLDEN, allow_pickle=False) as golden:
        pixels = golden["pixels"]
        expected = [golden[name] for name in OUTPUTS]
    actual = OnnxRuntime(bundle.model_path, device="cpu").run(pixels)
    # np.max, because Python's max may pass over a NaN.
    worst = float(np.max([np.abs(a - e).max() for a, e in zip(actual, expected, strict=True)]))
    if not worst <= TOLERANCE:
        raise BundleError(
            f"{bundle.path}: golden images differ from torch by {worst:.1e} "
            f"(at most {TOLERANCE:.0e} is rounding); the bundle or this runtime is not sound"
        )
    return f"golden: {len(pixels)} images, max |logit difference| to torch {worst:.1e}"
