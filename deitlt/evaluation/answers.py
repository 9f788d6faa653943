"""What a bundle answers to labelled images, in memory that grows with images and classes apart.

Legend: `N` images, `C` classes, `B` bins.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deitlt.batch.pipeline import predict_iter
from deitlt.batch.sources import Source
from deitlt.classifier import Classifier
from deitlt.errors import DataError, ImageError
from deitlt.evaluation.calibration import ClassBins
from deitlt.labelled import LabelledImages
from deitlt.longtail import IntArray
from deitlt.metrics import softmax
from deitlt.prediction import Options, Prediction

# The graph's outputs under the names that all reports give the heads.
HEADS = {"logits": "average", "cls_logits": "cls", "distillation_logits": "dist"}

Progress = Callable[[Iterator[Prediction | ImageError]], Iterator[Prediction | ImageError]]


@dataclass(frozen=True)
class HeadAnswers:
    """What one head says of the images that could be read.

    Attributes:
        predicted: the class it names, `(N,)`; of equal scores the lower class index.
        confidence: probability of that class in [0, 1], `(N,)`.
        class_bins: how the probabilities of each class fit what came true.
    """

    predicted: IntArray
    confidence: NDArray[np.float64]
    class_bins: ClassBins


@dataclass(frozen=True)
class Failure:
    """An image that could not be classified: its place in the data, and what was wrong."""

    position: int
    code: str
    message: str


@dataclass(frozen=True)
class Answers:
    """What a bundle says of labelled images.

    Attributes:
        names: of all images, as rows name them: relative to the data, with `/`.
        true: class of each of them.
        positions: which of them could be read, `(N,)`, ascending.
        heads: by name: `average`, and `cls` and `dist` of a graph with experts.
        failures: the others, in order.
    """

    names: list[str]
    true: IntArray
    positions: IntArray
    heads: dict[str, HeadAnswers]
    failures: list[Failure]

    @property
    def labels(self) -> IntArray:
        """True classes of the images that could be read, `(N,)`."""
        return self.true[self.positions]


def collect(
    classifier: Classifier,
    images: LabelledImages,
    source: Path,
    *,
    num_workers: int | None = None,
    progress: Progress = lambda results: results,
) -> Answers:
    """Classify labelled images; those that cannot be read are noted and left out.

    Args:
        classifier: loaded with one thread a model call, as many calls run at once.
        images: what to classify; its classes are those of the bundle.
        source: the data's folder or file, which the names are relative to.
        num_workers: images in work at once; the number of usable cores by default.
        progress: wraps the results as they come, to show how far they are.

    Raises:
        DataError: not one image could be read.
    """
    names = [_name(path, source) for path in images.paths]
    heads: dict[str, _Growing] = {}
    positions: list[int] = []
    failures: list[Failure] = []
    results = progress(_classify(classifier, images.paths, num_workers))
    for position, result in enumerate(results):
        if isinstance(result, ImageError):
            failures.append(Failure(position, result.code, str(result)))
            continue
        assert result.logits is not None
        positions.append(position)
        for output, logits in result.logits.items():
            if output in HEADS:
                head = heads.setdefault(HEADS[output], _Growing(len(names), len(images.classes)))
                head.add(len(positions) - 1, int(images.labels[position]), logits)
    if not positions:
        raise DataError(
            f"{source}: none of the {len(names)} images could be read; "
            f"the first is {names[0]}: {failures[0].message}"
        )
    return Answers(
        names,
        images.labels,
        np.array(positions, dtype=np.int64),
        {name: head.answers(len(positions)) for name, head in heads.items()},
        failures,
    )


def _classify(
    classifier: Classifier, paths: list[Path], num_workers: int | None
) -> Iterator[Prediction | ImageError]:
    """The one place that knows how images are run: what becomes of each, in order."""
    options = Options(top_k=1, logits=True)
    sources = (Source(path, path.as_posix()) for path in paths)
    with closing(predict_iter(classifier, sources, options, num_workers=num_workers)) as results:
        for _, result in results:
            yield result


def _name(path: Path, source: Path) -> str:
    root = source if source.is_dir() else source.parent
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


class _Growing:
    """What one head has said so far; arrays for all images, of which the first are filled."""

    def __init__(self, num_images: int, num_classes: int) -> None:
        self._predicted = np.zeros(num_images, dtype=np.int64)
        self._confidence = np.zeros(num_images, dtype=np.float64)
        self._class_bins = ClassBins(num_classes)

    def add(self, row: int, label: int, logits: list[float]) -> None:
        scores = np.array(logits, dtype=np.float64)  # once: a list is slow to go through
        probabilities = softmax(scores)
        self._predicted[row] = scores.argmax()
        self._confidence[row] = probabilities.max()
        self._class_bins.add(label, probabilities)

    def answers(self, num_rows: int) -> HeadAnswers:
        return HeadAnswers(
            self._predicted[:num_rows], self._confidence[:num_rows], self._class_bins
        )
