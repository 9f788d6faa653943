"""The bundle that tests use: a trained one, small enough for hundreds of runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deitlt.bundle import MANIFEST

DIGITS = Path(__file__).parent / "bundles" / "digits"
"""A DeiT-LT pico of handwritten digits at 16 px, as `make demo` exports it."""
FILES = ["README.md", "golden.npz", "metrics.json", "model.onnx", "per_class.csv"]
"""What is in it beside its manifest."""

Fill = Callable[[Path], dict[str, Any]]


def copy_of(source: Path) -> Fill:
    """A `fill` that writes what a bundle at `source` holds."""

    def fill(folder: Path) -> dict[str, Any]:
        for name in FILES:
            shutil.copy(source / name, folder)
        manifest: dict[str, Any] = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
        return {k: v for k, v in manifest.items() if k not in ("schema_version", "files", "sha256")}

    return fill
