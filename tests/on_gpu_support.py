"""A GPU runtime that is not there, and a bundle with the form of the model that suits one."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from deitlt.bundle import MANIFEST, MODEL, Bundle, write_bundle
from deitlt.preprocess import Pixels
from deitlt.runtimes import CUDA_PROVIDER, Outputs, open_runtime

FP16_OUTPUTS = ["logits"]


class OnGpu:
    """A bundle's graph on the CPU under the name of the GPU's provider; notes its batches.

    Attributes:
        sizes: of the runs.
        seconds: that each run takes at least, so that others gather meanwhile.
    """

    provider = CUDA_PROVIDER

    def __init__(self, bundle: Bundle, variant: str) -> None:
        self._runtime = open_runtime(bundle, variant, device="cpu", num_threads=1)
        self.sizes: list[int] = []
        self.seconds = 0.0

    def run(self, pixels: Pixels) -> Outputs:
        self.sizes.append(len(pixels))
        time.sleep(self.seconds)
        return self._runtime.run(pixels)


def add_fp16(plain: Path, target: Path) -> Path:
    """A bundle `both` with one more form, fp16 by name, of which the mean alone is declared."""
    manifest = json.loads((plain / MANIFEST).read_text(encoding="utf-8"))

    def fill(folder: Path) -> dict[str, Any]:
        for file in manifest["files"]:
            shutil.copy(plain / file, folder)
        shutil.copy(folder / MODEL, folder / "model.fp16.onnx")
        forms = manifest["artefacts"]
        fp16 = {**forms["float32"], "file": "model.fp16.onnx", "outputs": FP16_OUTPUTS}
        made = ("files", "sha256", "schema_version")
        kept = {key: value for key, value in manifest.items() if key not in made}
        return {**kept, "name": "both", "artefacts": {**forms, "fp16": fp16}}

    return write_bundle(target, fill).path
