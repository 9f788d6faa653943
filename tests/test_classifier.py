"""The classifier: order, probabilities, experts, blend, and every way to hand it an image."""

import dataclasses
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Semaphore

import numpy as np
import pytest
from PIL import Image

import deitlt
from deitlt.bundle import OUTPUTS, default_bundle
from deitlt.classifier import MAX_BATCH, Classifier
from deitlt.errors import DecodeFailed, ImageError, ImageTooLarge, OpenFailed, UsageError
from deitlt.prediction import Options, Prediction, Timing
from deitlt.preprocess import ImageLike, load_pixels
from deitlt.runtimes import Logits, Outputs

Png = Callable[[int], bytes]
Pixels = Callable[..., Image.Image]


def raw_outputs(classifier: Classifier, data: bytes) -> dict[str, Logits]:
    """What the graph says of one image, without the classifier, by output."""
    pixels = load_pixels(data, classifier.bundle.preprocess)[None]
    return classifier.runtime.run(pixels).heads()


def probabilities(logits: np.ndarray) -> list[float]:
    exponentials = np.exp(np.asarray(logits, dtype=np.float64)[0])
    return list(exponentials / exponentials.sum())


def of_class(prediction: Prediction) -> list[float]:
    """The listed probabilities in class order."""
    return [s.probability for s in sorted(prediction.top_k, key=lambda s: s.index)]


def assert_close(left: Prediction, right: Prediction) -> None:
    """Equal up to the rounding that differs between places in a batch."""
    np.testing.assert_allclose(of_class(left), of_class(right), atol=1e-5)
    assert left.label == right.label


def test_all_classes_are_listed_best_first_and_sum_to_one(classifier: Classifier, png: Png) -> None:
    prediction = classifier.predict([png(0)], top_k=1000)[0]
    listed = [s.probability for s in prediction.top_k]
    assert listed == sorted(listed, reverse=True)
    assert sum(listed) == pytest.approx(1)
    assert sorted(s.index for s in prediction.top_k) == list(range(10))
    assert all(s.label == classifier.bundle.classes[s.index] for s in prediction.top_k)
    best = prediction.top_k[0]
    assert (prediction.label, prediction.index, prediction.probability) == (
        best.label,
        best.index,
        best.probability,
    )
    expected = probabilities(raw_outputs(classifier, png(0))["logits"])
    np.testing.assert_allclose(of_class(prediction), expected, atol=1e-6)


@pytest.mark.parametrize("top_k", [1, 3, 10])
def test_top_k_is_the_head_of_the_whole_list(top_k: int, classifier: Classifier, png: Png) -> None:
    whole = classifier.predict([png(1)], top_k=10)[0].top_k
    assert classifier.predict([png(1)], top_k=top_k)[0].top_k == whole[:top_k]


def test_equal_scores_come_in_class_order(classifier: Classifier) -> None:
    # More classes than NumPy sorts by insertion, which is always stable.
    scores = np.random.default_rng(0).integers(0, 3, (1, 200)).astype(np.float32)

    class Fixed:
        provider = "none"

        def run(self, pixels: np.ndarray) -> Outputs:
            return Outputs(scores, scores, scores)

    names = [str(index) for index in range(200)]
    bundle = replace(classifier.bundle, classes=names, train_counts=[1] * 200)
    black = np.zeros((4, 4, 3), dtype=np.uint8)
    prediction = Classifier(bundle, Fixed()).predict([black], top_k=200)[0]
    expected = sorted(range(200), key=lambda index: (-scores[0, index], index))
    assert [s.index for s in prediction.top_k] == expected


def test_the_group_is_the_papers(classifier: Classifier, png: Png) -> None:
    for prediction in classifier.predict([png(seed) for seed in range(8)]):
        assert prediction.index in classifier.bundle.groups()[prediction.group]
        assert prediction.group in ("head", "mid", "tail")


def test_experts_speak_for_themselves(classifier: Classifier, png: Png) -> None:
    for seed in range(5):
        prediction = classifier.predict([png(seed)], top_k=10, experts=True)[0]
        outputs = raw_outputs(classifier, png(seed))
        assert prediction.experts is not None
        experts = prediction.experts
        for scores, logits in (
            (experts.cls, outputs["cls_logits"]),
            (experts.dist, outputs["distillation_logits"]),
        ):
            found = [s.probability for s in sorted(scores, key=lambda s: s.index)]
            np.testing.assert_allclose(found, probabilities(logits), atol=1e-6)
            assert scores[0].index == logits.argmax()
        cls_best, dist_best = (outputs[name].argmax() for name in OUTPUTS[1:])
        assert experts.agree == (cls_best == dist_best)
    assert classifier.predict([png(0)])[0].experts is None


@pytest.mark.parametrize("blend", [0.0, 0.25, 0.5, 1.0])
def test_blend_weighs_cls_against_dist(blend: float, classifier: Classifier, png: Png) -> None:
    prediction = classifier.predict([png(2)], top_k=10, experts=True, blend=blend)[0]
    outputs = raw_outputs(classifier, png(2))
    mixed = blend * outputs["cls_logits"] + (1 - blend) * outputs["distillation_logits"]
    np.testing.assert_allclose(of_class(prediction), probabilities(mixed), atol=1e-6)
    assert prediction.experts is not None
    if blend in (0, 1):
        alone = prediction.experts.cls if blend else prediction.experts.dist
        assert prediction.top_k == alone


def test_every_kind_of_input_gives_the_same_answer(
    classifier: Classifier, png: Png, tmp_path: Path
) -> None:
    data = png(3)
    file = tmp_path / "a.png"
    file.write_bytes(data)
    image = Image.open(io.BytesIO(data))
    inputs: list[ImageLike] = [data, file, str(file), image, np.asarray(image)]
    answers = [classifier.predict([item])[0] for item in inputs]
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "I;16", "rotated"])
def test_an_opened_image_is_treated_as_its_bytes(
    mode: str, classifier: Classifier, pixels: Pixels, encode: Callable[..., bytes]
) -> None:
    exif = Image.Exif()
    if mode == "I;16":
        image = Image.fromarray(np.asarray(pixels(mode="L")).astype(np.uint16) * 256)
    else:
        image = pixels(mode="RGB" if mode == "rotated" else mode)
    if mode == "RGBA":
        image.putalpha(pixels(mode="L", seed=1))
    if mode == "rotated":
        exif[0x0112] = 6
    data = encode(image, exif=exif)
    from_bytes, from_image = (
        classifier.predict([data]),
        classifier.predict([Image.open(io.BytesIO(data))]),
    )
    assert from_bytes == from_image


def test_a_bad_image_fails_alone(classifier: Classifier, png: Png, tmp_path: Path) -> None:
    truncated = Image.open(io.BytesIO(png(2)[:-100]))  # opened, but its pixels are not there
    bad: dict[int, ImageLike] = {
        1: b"not an image",
        3: tmp_path / "missing.png",
        4: np.zeros((4, 4), dtype=np.uint8),
        5: np.zeros((4, 4, 3), dtype=np.float32),
        6: np.zeros((0, 4, 3), dtype=np.uint8),
        7: truncated,
        8: Image.new("RGB", (0, 0)),
    }
    images = [bad.get(number, png(number)) for number in range(10)]
    results = classifier.predict_each(images)
    assert {n for n, r in enumerate(results) if isinstance(r, ImageError)} == set(bad)
    assert isinstance(results[3], OpenFailed)
    assert all(isinstance(results[number], DecodeFailed) for number in (4, 5, 6, 7, 8))
    alone = classifier.predict([png(9)])[0]
    assert isinstance(results[9], Prediction)
    assert_close(results[9], alone)
    with pytest.raises(ImageError, match="not an image"):
        classifier.predict(images)


def test_only_bad_images(classifier: Classifier) -> None:
    assert [r.code for r in classifier.predict_each([b"", b"x"]) if isinstance(r, ImageError)] == [
        "decode_failed",
        "unsupported_image",
    ]
    assert classifier.predict([]) == []


def test_the_pixel_limit_holds_for_files_and_opened_images(
    classifier: Classifier, png: Png
) -> None:
    small = Classifier(classifier.bundle, classifier.runtime, max_pixels=100)
    for image in (png(0), Image.open(io.BytesIO(png(0)))):
        assert isinstance(small.predict_each([image])[0], ImageTooLarge)
        assert isinstance(next(small.predict_iter([image])), ImageTooLarge)


def test_a_permuted_list_gives_permuted_answers(classifier: Classifier, png: Png) -> None:
    images = [png(seed) for seed in range(MAX_BATCH + 5)]  # more than fits in one call
    order = np.random.default_rng(0).permutation(len(images))
    straight = classifier.predict(images, top_k=10)
    permuted = classifier.predict([images[i] for i in order], top_k=10)
    assert len(straight) == len(images)
    for position, source in enumerate(order):
        assert_close(permuted[position], straight[source])


def test_one_call_holds_a_bounded_number_of_images(classifier: Classifier, png: Png) -> None:
    sizes = []

    class Counting:
        provider = "counting"

        def run(self, pixels: np.ndarray) -> Outputs:
            sizes.append(len(pixels))
            return classifier.runtime.run(pixels)

    images = [png(0)] * (2 * MAX_BATCH + 1)
    for some in (images, iter(images)):
        assert len(Classifier(classifier.bundle, Counting()).predict(some)) == len(images)
        assert [sizes.pop(0) for _ in range(3)] == [MAX_BATCH, MAX_BATCH, 1]


@pytest.mark.parametrize(
    "options", [{"top_k": 0}, {"top_k": -1}, {"blend": -0.1}, {"blend": 1.1}, {"blend": np.nan}]
)
def test_options_out_of_range(options: dict[str, float], classifier: Classifier, png: Png) -> None:
    with pytest.raises(UsageError, match="must be") as caught:
        classifier.predict([png(0)], **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_one_image_instead_of_a_list_is_a_mistake(classifier: Classifier, png: Png) -> None:
    # A str would be read letter by letter, and bytes as open file descriptors.
    photo = Image.new("RGB", (4, 4))
    for image in (png(0), "photo.jpg", Path("photo.jpg"), photo, np.asarray(photo)):
        with pytest.raises(UsageError, match="list"):
            classifier.predict(image)  # type: ignore[arg-type]


def test_an_answer_is_plain_json(classifier: Classifier, png: Png) -> None:
    plain = json.loads(json.dumps(classifier.predict([png(0)])[0].to_dict()))
    fields = ["label", "index", "probability", "group", "experts_agree", "top_k"]
    assert list(plain) == fields
    with_logits = classifier.predict_each([png(0)], Options(logits=True))[0]
    assert isinstance(with_logits, Prediction)
    assert list(with_logits.to_dict()) == [*fields, "logits"]
    with_experts = classifier.predict_each([png(0)], Options(experts=True))[0]
    assert isinstance(with_experts, Prediction)
    assert set(with_experts.to_dict()["experts"]) == {"cls", "dist", "agree"}
    answer = classifier.predict_each([png(0)], Options(experts=True, logits=True))[0]
    assert isinstance(answer, Prediction)
    everything = dataclasses.replace(answer, embeddings={"a": [0.5]}, rollouts={"b": [[0.5]]})
    assert everything.to_dict() == dataclasses.asdict(everything)  # no field is forgotten


def test_load_takes_a_folder_or_the_packaged_bundle(bundle_path: Path, png: Png) -> None:
    own = deitlt.load(bundle_path, device="cpu", num_threads=1)
    packaged = deitlt.load(device="cpu", num_threads=1)
    assert [own.bundle.path, packaged.bundle.path] == [bundle_path, default_bundle()]
    assert packaged.predict([png(0)])[0].label in packaged.bundle.classes
    assert own.runtime.provider == packaged.runtime.provider == "CPUExecutionProvider"


def test_together_each_gets_what_it_gets_alone(classifier: Classifier, png: Png) -> None:
    images: list[ImageLike] = [png(0), b"no image", png(1), b"", png(2)]
    options = [Options(top_k=1), Options(), Options(experts=True), Options(), Options(blend=1.0)]
    timings = [Timing() for _ in images]
    found = classifier.predict_together(images, options, timings)
    for image, option, timing, outcome in zip(images, options, timings, found, strict=True):
        assert timing.decode_s > 0
        expected = classifier.predict_each([image], option)[0]
        if isinstance(expected, ImageError):
            assert (type(outcome), str(outcome)) == (type(expected), str(expected))
        else:
            assert outcome == expected
        assert (timing.infer_s > 0) == isinstance(expected, Prediction)
    nothing = classifier.predict_together([b""] * 2, options[:2], timings[:2])
    assert all(isinstance(outcome, ImageError) for outcome in nothing)


def test_what_one_call_cannot_do_together_is_done_one_by_one(
    classifier: Classifier, png: Png
) -> None:
    sizes = []

    class Small:
        provider = "small"

        def run(self, pixels: np.ndarray) -> Outputs:
            sizes.append(len(pixels))
            if len(pixels) > 1:
                raise MemoryError
            return classifier.runtime.run(pixels)

    images = [png(seed) for seed in range(3)]
    small = Classifier(classifier.bundle, Small())
    found = small.predict_together(images, [Options()] * 3, [Timing() for _ in images])
    assert found == classifier.predict_each(images)
    assert sizes == [3, 1, 1, 1]


def test_experts_of_a_graph_without_them_are_refused_for_who_asks(
    classifier: Classifier, png: Png
) -> None:
    class Average:
        provider = "average"

        def run(self, pixels: np.ndarray) -> Outputs:
            return Outputs(classifier.runtime.run(pixels).logits)

    average = Classifier(classifier.bundle, Average())
    options = [Options(), Options(experts=True)]
    one, other = average.predict_together([png(0)] * 2, options, [Timing(), Timing()])
    assert isinstance(one, Prediction)
    assert isinstance(other, UsageError)


def test_an_image_is_decoded_with_its_turn_held(classifier: Classifier, png: Png) -> None:
    turns, taken = Semaphore(1), []

    class Seen:
        def __enter__(self) -> None:
            assert turns.acquire(blocking=False)
            taken.append(True)

        def __exit__(self, *_: object) -> None:
            turns.release()

    class Free:
        provider = "free"

        def run(self, pixels: np.ndarray) -> Outputs:
            assert turns.acquire(blocking=False), "the turn is held while the model runs"
            turns.release()
            return classifier.runtime.run(pixels)

    held = Classifier(classifier.bundle, Free(), decoding=Seen())
    assert held.predict([png(0), png(1)])
    with pytest.raises(ImageError):
        held.predict([b"no image"])
    assert turns.acquire(blocking=False)
    assert len(taken) == 3
