"""Images in, predictions out: the average of both experts, and each expert on request."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitlt.bundle import FEATURES, FLOAT32, ROLLOUTS, Bundle, default_bundle, open_bundle
from deitlt.errors import DeitLTError, ImageError, NotFinite, UsageError
from deitlt.metrics import best_classes, softmax
from deitlt.prediction import Experts, Options, Prediction, Score, Timing
from deitlt.preprocess import MAX_PIXELS, ImageLike, Pixels, image_pixels
from deitlt.runtimes import Device, Features, Logits, Outputs, Rollout, Runtime, open_runtime

Answer = TypeVar("Answer")
# One call never holds more images than this; longer lists are run in slices.
MAX_BATCH = 32
NO_NUMBERS = "the model's scores are not finite numbers; use a variant of higher precision"
Outcome = Prediction | ImageError


class Classifier:
    """A bundle on a runtime. Safe to call from many threads."""

    def __init__(
        self,
        bundle: Bundle,
        runtime: Runtime,
        *,
        max_pixels: int = MAX_PIXELS,
        variant: str | None = None,
        decoding: AbstractContextManager[Any] | None = None,
    ) -> None:
        """Put a bundle and what runs it together.

        Args:
            bundle: what prepares images and names classes.
            runtime: runs one form of its model.
            max_pixels: images with more pixels are refused.
            variant: name of that form; None where it is not known, as on a Triton server.
            decoding: held while an image is decoded, such as a semaphore that bounds how many are
                at once, and with them the memory they take.
        """
        self.bundle = bundle
        self.runtime = runtime
        self.max_pixels = max_pixels
        self.variant = variant
        self._decoding = decoding or nullcontext()
        groups = bundle.groups()
        self._group = {c: name for name in ("head", "mid", "tail") for c in groups[name]}

    def predict(
        self,
        images: Iterable[ImageLike],
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
        self, images: Iterable[ImageLike], options: Options = Options()
    ) -> list[Outcome]:
        """One prediction or error an image, in order: a bad image fails alone."""
        if _is_one(images):
            raise UsageError("predict takes a list of images; for one image pass [image]")
        results: list[Outcome] = []
        remaining = iter(images)
        while batch := list(islice(remaining, MAX_BATCH)):
            results.extend(self._predict_batch(batch, options))
        return results

    def predict_iter(
        self,
        images: Iterable[ImageLike],
        options: Options = Options(),
        *,
        num_workers: int | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Outcome]:
        """`predict_each` for any number of images, decoded on all cores, as they are asked for.

        See `deitlt.batch.pipeline.predict_iter` for the arguments; a classifier loaded with
        `num_threads=1` is fastest.

        Raises:
            UsageError: `images` is one image instead of many.
        """
        from deitlt.batch.pipeline import predict_iter  # which imports this module
        from deitlt.batch.places import held

        if _is_one(images):
            raise UsageError("predict_iter takes many images; for one pass [image]")
        places = (held(image, self.max_pixels) for image in images)
        results = predict_iter(
            self, places, options, num_workers=num_workers, batch_size=batch_size
        )
        return (result for _, result in results)

    def predict_one(
        self, image: ImageLike, options: Options = Options(), timing: Timing | None = None
    ) -> Prediction:
        """The prediction for one image.

        Args:
            image: as `predict` takes it.
            options: what the answer should hold.
            timing: where to note what took how long.

        Raises:
            ImageError: it cannot be classified.
            UsageError: the model gives no experts and the options ask for them.
        """
        start = time.perf_counter()
        pixels = self.load_pixels(image)
        decoded = time.perf_counter()
        (outcome,) = self.predict_pixels(pixels[None], options)
        if timing is not None:
            timing.decode_s, timing.infer_s = decoded - start, time.perf_counter() - decoded
        if isinstance(outcome, ImageError):
            raise outcome
        return outcome

    def predict_together(
        self,
        images: Sequence[ImageLike],
        options: Sequence[Options],
        timings: Sequence[Timing],
        begin: Callable[[int], bool] = lambda number: True,
    ) -> list[Prediction | Exception | None]:
        """What `predict_one` gives for each image or raises, with one call of the model for all.

        Args:
            images: as `predict` takes them.
            options: of each.
            timings: of each, filled in.
            begin: asked before each is decoded; where it says no the outcome is None.
        """
        outcomes: list[Any] = []
        for number, (image, timing) in enumerate(zip(images, timings, strict=True)):
            if not begin(number):
                outcomes.append(None)
                continue
            start = time.perf_counter()
            outcomes.append(_attempt(partial(self.load_pixels, image)))
            timing.decode_s = time.perf_counter() - start
        good = [i for i, pixels in enumerate(outcomes) if isinstance(pixels, np.ndarray)]
        start = time.perf_counter()
        pixels = [outcomes[i] for i in good]
        outputs = _attempt(lambda: self.runtime.run(np.stack(pixels))) if good else None
        infer_s = time.perf_counter() - start
        for row, i in enumerate(good):
            timings[i].infer_s = infer_s
            if isinstance(outputs, Outputs):
                answer = partial(self.to_predictions, outputs.rows(row, row + 1), options[i])
            elif isinstance(outputs, DeitLTError):  # a server that is gone, for them all
                outcomes[i] = outputs
                continue
            else:  # too much for the memory, perhaps; what is wrong with one should not hurt others
                answer = partial(self.predict_pixels, pixels[row][None], options[i])
            found = _attempt(answer)
            outcomes[i] = found if isinstance(found, Exception) else found[0]
        return outcomes

    def load_pixels(self, image: ImageLike) -> Pixels:
        """The model's input `(S, S, 3)` uint8 from one image; raises `ImageError`."""
        with self._decoding:
            return image_pixels(image, self.bundle.preprocess, max_pixels=self.max_pixels)

    def _predict_batch(self, images: Sequence[ImageLike], options: Options) -> list[Outcome]:
        loaded = [self._load(image) for image in images]
        good = [item for item in loaded if not isinstance(item, ImageError)]
        predictions = iter(self.predict_pixels(np.stack(good), options) if good else ())
        return [item if isinstance(item, ImageError) else next(predictions) for item in loaded]

    def predict_pixels(self, pixels: Pixels, options: Options = Options()) -> list[Outcome]:
        """Predictions for preprocessed `(B, S, S, 3)` uint8 pixels, as of `to_predictions`."""
        return self.to_predictions(self.runtime.run(pixels), options)

    def to_predictions(self, outputs: Outputs, options: Options = Options()) -> list[Outcome]:
        """Predictions from what the runtime gave; `NotFinite` for an image that overflows in it."""
        logits = self._blend(outputs, options)
        nothing = [None] * len(logits)
        heads = {**outputs.heads(), "logits": logits}
        columns = (
            self._scores(logits, options.top_k),
            self._experts(outputs, options),
            _agreement(outputs),
            _rows(heads) if options.logits else nothing,
            _rows(_both_features(outputs)) if options.embeddings else nothing,
            _rows(_both_rollouts(outputs)) if options.rollouts else nothing,
        )
        found = [self._prediction(*row) for row in zip(*columns, strict=True)]
        finite = set(np.flatnonzero(np.isfinite(logits).all(axis=1)).tolist())
        return [f if row in finite else NotFinite(NO_NUMBERS) for row, f in enumerate(found)]

    def _experts(self, outputs: Outputs, options: Options) -> Sequence[Experts | None]:
        if not options.experts:
            return [None] * len(outputs.logits)
        cls, dist = (self._scores(head, options.top_k) for head in _both_experts(outputs))
        return [
            Experts(c, d, agree=c[0].index == d[0].index) for c, d in zip(cls, dist, strict=True)
        ]

    def _blend(self, outputs: Outputs, options: Options) -> Logits:
        if options.blend == 0.5:
            return outputs.logits
        cls, dist = _both_experts(outputs)
        weight = np.float32(options.blend)
        return weight * cls + (1 - weight) * dist

    def _prediction(
        self,
        top: tuple[Score, ...],
        experts: Experts | None,
        agree: bool | None,
        *more: Any,
    ) -> Prediction:
        best = top[0]
        group = self._group[best.index]
        return Prediction(
            best.label, best.index, best.probability, group, agree, top, experts, *more
        )

    def _scores(self, logits: Logits, top_k: int) -> list[tuple[Score, ...]]:
        with np.errstate(invalid="ignore"):  # of scores that are not finite nothing is shown
            probabilities = softmax(logits)
        order = best_classes(probabilities, top_k)
        classes = self.bundle.classes
        return [
            tuple(Score(classes[i], int(i), float(row[i])) for i in best)
            for row, best in zip(probabilities, order, strict=True)
        ]

    def _load(self, image: ImageLike) -> Pixels | ImageError:
        try:
            return self.load_pixels(image)
        except ImageError as error:
            return error


def _is_one(images: object) -> bool:
    """Whether it is an image instead of many, which going through would take to pieces."""
    if isinstance(images, np.ndarray):
        return images.ndim in (2, 3)
    return isinstance(images, bytes | str | Path | Image.Image)


def _attempt(work: Callable[[], Answer]) -> Answer | Exception:
    """What some work gives, or what it raises."""
    try:
        return work()
    except Exception as error:
        return error


def _both_experts(outputs: Outputs) -> tuple[Logits, Logits]:
    if outputs.cls_logits is None or outputs.distillation_logits is None:
        raise UsageError("this graph gives the average alone; experts and blend need another")
    return outputs.cls_logits, outputs.distillation_logits


def _both_features(outputs: Outputs) -> dict[str, Features]:
    features = outputs.features()
    if len(features) < len(FEATURES):
        raise UsageError(
            "this model gives no features; export the bundle again with this version, and run it "
            "here, not on Triton"
        )
    return features


def _both_rollouts(outputs: Outputs) -> dict[str, Rollout]:
    rollouts = outputs.rollouts()
    if len(rollouts) < len(ROLLOUTS):
        raise UsageError("this graph gives no rollouts; export and use the variant explain")
    return rollouts


def _agreement(outputs: Outputs) -> list[bool] | list[None]:
    """Whether both experts name the same class, for each image."""
    if outputs.cls_logits is None or outputs.distillation_logits is None:
        return [None] * len(outputs.logits)
    best = (head.argmax(axis=1) for head in _both_experts(outputs))
    return [bool(c == d) for c, d in zip(*best, strict=True)]


def _rows(parts: Mapping[str, NDArray[np.float32]]) -> list[dict[str, Any]]:
    """What each image has, by name, as lists."""
    count = len(next(iter(parts.values())))
    return [{name: part[i].tolist() for name, part in parts.items()} for i in range(count)]


def load(
    model: str | Path | None = None,
    *,
    variant: str = FLOAT32,
    device: Device = "auto",
    num_threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
    fast_decode: bool = False,
) -> Classifier:
    """A classifier from a bundle folder, or from the packaged bundle (CIFAR-10 at 32 px).

    Args:
        model: bundle folder; None takes the one that comes with the package.
        variant: which form of the model, such as `int8` where the bundle has it.
        device: `auto`, `cpu` or `cuda`; `cuda` fails rather than fall back.
        num_threads: threads inside one model call; None means all usable cores.
        max_pixels: images with more pixels are refused.
        fast_decode: prepare large images faster and a little differently, see `PreprocessSpec`.

    Raises:
        UsageError: another device, or less than one thread.
        BundleError: the bundle is missing, damaged or changed, or has no such variant.
        RuntimeUnavailable: no runtime, or the device cannot be had.
    """
    bundle = open_bundle(model if model is not None else default_bundle())
    if fast_decode:
        bundle = bundle.with_fast_decode()
    runtime = open_runtime(bundle, variant, device=device, num_threads=num_threads)
    return Classifier(bundle, runtime, max_pixels=max_pixels, variant=variant)
