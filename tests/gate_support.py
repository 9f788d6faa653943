"""A thousand labelled images, what models say of them, and the gate's verdict."""

import numpy as np
from numpy.typing import NDArray

from deitlt.longtail import IntArray
from export.gate import Comparison, Gate, judge

# Head, mid and tail are classes 0-2, 3-6, 7-9; many 0-1, medium 2-5, few 6-9.
COUNTS = [300, 150, 90, 60, 30, 21, 15, 9, 5, 2]
LABELS = np.repeat(np.arange(10), 100)

Logits = NDArray[np.float64]


def one_hot(predicted: IntArray) -> Logits:
    return np.eye(10)[predicted]


def wrong(labels: IntArray, *images: int) -> Logits:
    """Logits that are right but on these images."""
    predicted = labels.copy()
    predicted[list(images)] = (labels[list(images)] + 1) % 10
    return one_hot(predicted)


def in_class(label: int, number: int) -> range:
    """The first images of a class of `LABELS`."""
    return range(100 * label, 100 * label + number)


def spread(number: int) -> list[int]:
    """Images of `LABELS` spread evenly over all classes."""
    return [int(i) for i in np.linspace(0, 999, number)]


def judge_int8(variant: Logits, labels: IntArray = LABELS, **limits: float) -> Gate:
    """A variant of a model that is right on every image."""
    return judge("int8", labels, one_hot(labels), variant, COUNTS, **limits)


def group(gate: Gate, name: str) -> Comparison:
    comparison = gate.groups[name]
    assert comparison is not None
    return comparison
