"""Images in, predictions out: the average of both experts, and each expert on request."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitlt.bundle import FLOAT32, Bundle, default_bundle, open_bundle
from deitlt.errors import DecodeFailed, ImageError, UsageError
from deitlt.metrics import softmax
from deitlt.preprocess import MAX_PIXELS, Pixels, decode, resize_crop, to_rgb
from deitlt.runtimes import Device, Logits, Runtime, open_runtime

ImageLike = bytes | str | Path | Image.Image | NDArray[Any]

# One call never holds more images than this; longer lists are run in slices.
MAX_BATCH = 32


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller wants in an answer.

    Attributes:
        top_k: how many classes to list; more than there are gives all.
        experts: add what CLS and DIST say on their own.
        blend: weight of CLS against DIST in [0, 1]; 0.5 is the paper's average.
    """

    top_k: int = 5
    experts: bool = False
    blend: float = 0.5

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise UsageError(f"top_k is {self.top_k}; it must be at least 1")
        if not 0 <= self.blend <= 1:
            raise UsageError(f"blend is {self.blend:g}; it must be between 0 and 1")


@dataclass(frozen=True, slots=True)
class Score:
    """One class with its probability in [0, 1]."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True, slots=True)
class Experts:
    """What each expert says on its own: best classes first."""

    cls: tuple[Score, ...]
    dist: tuple[Score, ...]
    agree: bool


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one image.

    Attributes:
        label: name of the best class.
        index: its index.
        probability: its softmax probability in [0, 1].
        group: head, mid or tail: how rare the class was in training.
        top_k: the best classes, best first.
        experts: both experts' own answers, if asked for.
    """

    label: str
    index: int
    probability: float
    group: str
    top_k: tuple[Score, ...]
    experts: Experts | None = None

    def to_dict(self) -> dict[str, Any]:
        """The prediction as plain JSON types; `experts` only where there are any."""
        fields = asdict(self)
        if self.experts is None:
            del fields["experts"]
        return fields


class Classifier:
    """A bundle on a runtime. Safe to call from many threads."""

    def __init__(self, bundle: Bundle, runtime: Runtime, *, max_pixels: int = MAX_PIXELS) -> None:
        self.bundle = bundle
        self.runtime = runtime
        self.max_pixels = max_pixels
        groups = bundle.groups()
        self._group = {c: name for name in ("head", "mid", "tail") for c in groups[name]}

    def predict(
        self,
        images: Sequence[ImageLike],
        *,
        top_k: int = 5,
        experts: bool = False,
        blend: float = 0.5,
    ) -> list[Prediction]:
        """One prediction an image, in order.

        Args:
            images: encoded bytes, paths, PIL images, or uint8 RGB arrays `(H, W, 3)`.
            top_k: how many classes to list.
            experts: add what CLS and DIST say on their own.
            blend: weight of CLS against DIST in [0, 1].

        Raises:
            ImageError: of the first image that cannot be classified; `predict_each` goes on.
            UsageError: an option is out of range, or `images` is one image instead of a list.
        """
        results = self.predict_each(images, Options(top_k, experts, blend))
        for result in results:
            if isinstance(result, ImageError):
                raise result
        return [result for result in results if isinstance(result, Prediction)]

    def predict_each(
        self, images: Sequence[ImageLike], options: Options = Options()
    ) -> list[Prediction | ImageError]:
        """One prediction or error an image, in order: a bad image fails alone."""
        if isinstance(images, (bytes, str, Path, Image.Image)):
            raise UsageError("predict takes a list of images; for one image pass [image]")
        results: list[Prediction | ImageError] = []
        for start in range(0, len(images), MAX_BATCH):
            results.extend(self._predict_batch(images[start : start + MAX_BATCH], options))
        return results

    def _predict_batch(
        self, images: Sequence[ImageLike], options: Options
    ) -> list[Prediction | ImageError]:
        loaded = [self._load(image) for image in images]
        good = [item for item in loaded if not isinstance(item, ImageError)]
        predictions = iter(self.predict_pixels(np.stack(good), options) if good else ())
        return [item if isinstance(item, ImageError) else next(predictions) for item in loaded]

    def predict_pixels(self, pixels: Pixels, options: Options = Options()) -> list[Prediction]:
        """Predictions for preprocessed `(B, S, S, 3)` uint8 pixels."""
        outputs = self.runtime.run(pixels)
        if options.blend == 0.5 and not options.experts:
            averages = self._scores(outputs.logits, options.top_k)
            return [self._prediction(top, None) for top in averages]
        cls_logits, dist_logits = outputs.cls_logits, outputs.distillation_logits
        if cls_logits is None or dist_logits is None:
            raise UsageError("this graph gives the average alone; experts and blend need another")
        logits = outputs.logits
        if options.blend != 0.5:
            weight = np.float32(options.blend)
            logits = weight * cls_logits + (1 - weight) * dist_logits
        averages = self._scores(logits, options.top_k)
        if not options.experts:
            return [self._prediction(top, None) for top in averages]
        cls = self._scores(cls_logits, options.top_k)
        dist = self._scores(dist_logits, options.top_k)
        return [
            self._prediction(top, Experts(c, d, agree=c[0].index == d[0].index))
            for top, c, d in zip(averages, cls, dist, strict=True)
        ]

    def _prediction(self, top: tuple[Score, ...], experts: Experts | None) -> Prediction:
        best = top[0]
        return Prediction(
            best.label, best.index, best.probability, self._group[best.index], top, experts
        )

    def _scores(self, logits: Logits, top_k: int) -> list[tuple[Score, ...]]:
        probabilities = softmax(logits)
        # Stable, so that equal scores always come in class order.
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
        classes = self.bundle.classes
        return [
            tuple(Score(classes[i], int(i), float(row[i])) for i in best)
            for row, best in zip(probabilities, order, strict=True)
        ]

    def _load(self, image: ImageLike) -> Pixels | ImageError:
        try:
            return resize_crop(self._to_rgb(image), self.bundle.preprocess)
        except ImageError as error:
            return error

    def _to_rgb(self, image: ImageLike) -> Image.Image:
        if isinstance(image, Image.Image):
            return to_rgb(image, max_pixels=self.max_pixels)
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise DecodeFailed(
                    f"an array must be uint8 of shape (H, W, 3), not {image.dtype} {image.shape}"
                )
            if image.size == 0:
                raise DecodeFailed(f"the array has no pixels, its shape is {image.shape}")
            return Image.fromarray(image)
        return decode(image, max_pixels=self.max_pixels)


def load(
    model: str | Path | None = None,
    *,
    variant: str = FLOAT32,
    device: Device = "auto",
    num_threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Classifier:
    """A classifier from a bundle folder, or from the packaged digits bundle.

    Args:
        model: bundle folder; None takes the one that comes with the package.
        variant: which form of the model, such as `int8` where the bundle has it.
        device: `auto`, `cpu` or `cuda`; `cuda` fails rather than fall back.
        num_threads: threads inside one model call; None means all cores.
        max_pixels: images with more pixels are refused.

    Raises:
        BundleError: the bundle is missing, damaged or changed, or has no such variant.
        RuntimeUnavailable: no runtime, or the device cannot be had.
    """
    bundle = open_bundle(model if model is not None else default_bundle())
    runtime = open_runtime(bundle, variant, device=device, num_threads=num_threads)
    return Classifier(bundle, runtime, max_pixels=max_pixels)
