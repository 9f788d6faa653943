"""What every peer serves."""

import os
from typing import cast

from deitlt.bundle import FLOAT32
from deitlt.classifier import Classifier, load
from deitlt.runtimes import Device


def open_classifier(num_threads: int) -> Classifier:
    """The bundle that is measured, with so many threads inside a call of the model."""
    variant = os.environ.get("DEITLT_VARIANT") or FLOAT32
    device = cast(Device, os.environ.get("DEITLT_DEVICE") or "cpu")
    return load(os.environ["DEITLT_MODEL"], variant=variant, device=device, num_threads=num_threads)
