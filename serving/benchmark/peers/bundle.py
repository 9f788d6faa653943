"""What every peer serves."""

import os

from deitlt.bundle import FLOAT32
from deitlt.classifier import Classifier, load


def open_classifier(num_threads: int) -> Classifier:
    """The bundle that is measured, with so many threads inside a call of the model."""
    variant = os.environ.get("DEITLT_VARIANT") or FLOAT32
    return load(os.environ["DEITLT_MODEL"], variant=variant, device="cpu", num_threads=num_threads)
