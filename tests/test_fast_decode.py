"""Decoding with speed before exactness: near the exact pixels, with the same limits and errors."""

import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deitlt.batch.pipeline import predict_iter
from deitlt.batch.ray_engine import Actor
from deitlt.classifier import Classifier, load
from deitlt.cli import main
from deitlt.errors import ImageError, ImageTooLarge
from deitlt.prediction import Options
from deitlt.preprocess import PreprocessSpec, decode, load_batches, load_pixels, resize_crop
from tests.bundle_support import DIGITS
from tests.hostile_support import hostile_images
from tests.pipeline_support import Given
from tests.predict_support import predict, read_rows
from tests.service_support import CLASSIFY, in_process, without_envelope

Pixels = Callable[..., Image.Image]
Encode = Callable[..., bytes]
SPEC = PreprocessSpec(32, 0.875)  # resized to 36 px, of which 72 are to be left
FAST = replace(SPEC, fast_decode=True)


def difference(data: bytes, spec: PreprocessSpec = SPEC) -> NDArray[np.int64]:
    exact, fast = load_pixels(data, spec), load_pixels(data, replace(spec, fast_decode=True))
    assert fast.shape == exact.shape
    assert fast.dtype == np.uint8
    found: NDArray[np.int64] = np.abs(exact.astype(np.int64) - fast)
    return found


@pytest.fixture(scope="module")
def large(pixels: Pixels, encode: Encode) -> bytes:
    """A photograph that a fast decoder takes at an eighth."""
    return encode(pixels(900, 700), "JPEG", quality=95)


@pytest.mark.parametrize(
    ("size", "smaller"),
    [((900, 700), 8), ((576, 576), 8), ((575, 700), 4), ((300, 288), 4), ((144, 400), 2)],
)
def test_a_large_jpeg_is_decoded_at_a_fraction(
    size: tuple[int, int], smaller: int, pixels: Pixels, encode: Encode
) -> None:
    data = encode(pixels(*size), "JPEG")
    image = decode(data, min_side=FAST.min_side)
    assert image.size == tuple(-(-side // smaller) for side in size)
    assert min(image.size) >= 72
    assert decode(data, min_side=SPEC.min_side).size == size
    # A side of 700 px comes as 88 px of 8: what lies at its end moves by half a pixel of those.
    assert difference(data).mean() < 2.5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(32, 32), (20, 50), (33, 17), (31, 33)])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_what_is_enlarged_differs_by_rounding_alone(
    kind: str, size: tuple[int, int], crop_pct: float, pixels: Pixels, encode: Encode
) -> None:
    found = difference(encode(pixels(*size), kind), PreprocessSpec(32, crop_pct))
    assert found.max() <= 2
    assert found.mean() < 0.25


@pytest.mark.parametrize("size", [(143, 90), (33, 71), (70, 33), (64, 48)])
def test_what_shrinks_is_pillows_hamming_resize(size: tuple[int, int], pixels: Pixels) -> None:
    image, side = pixels(*size), 32
    short = min(size)
    resized = image.resize(
        (side * size[0] // short, side * size[1] // short), Image.Resampling.HAMMING
    )
    left, top = (round((length - side) / 2) for length in resized.size)
    expected = np.asarray(resized.crop((left, top, left + side, top + side)), np.int64)
    found = np.abs(resize_crop(image, PreprocessSpec(side, fast_decode=True)) - expected)
    assert found.max() <= 2
    assert found.mean() < 0.25


def test_the_last_digit_does_not_put_the_box_outside_the_image() -> None:
    # 224 * (942 / 224) is above 942 in double precision; Pillow takes the box in single.
    result = resize_crop(Image.new("RGB", (945, 942)), PreprocessSpec(224, fast_decode=True))
    assert result.shape == (224, 224, 3)


def test_other_formats_are_averaged_before_the_resize(pixels: Pixels, encode: Encode) -> None:
    found = difference(encode(pixels(900, 700)))
    assert 0 < found.mean() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_upright(orientation: int, pixels: Pixels, encode: Encode) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert difference(encode(pixels(900, 700), "JPEG", exif=exif)).mean() < 2.5


def test_the_limit_is_on_the_pixels_of_the_file(large: bytes) -> None:
    load_pixels(large, FAST, max_pixels=900 * 700)
    with pytest.raises(ImageTooLarge, match="900 x 700"):
        load_pixels(large, FAST, max_pixels=900 * 700 - 1)


def test_hostile_images_end_as_they_do_otherwise() -> None:
    def outcome(data: bytes, spec: PreprocessSpec) -> str:
        try:
            return str(load_pixels(data, spec).shape)
        except ImageError as error:
            return error.code

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about what these files do on purpose
        for image in hostile_images():
            assert outcome(image.data, FAST) == outcome(image.data, SPEC), image.name


def test_a_cut_photograph_is_damaged(large: bytes) -> None:
    with pytest.raises(ImageError, match="damaged"):
        load_pixels(large[: len(large) // 2], FAST)


def test_files_in_batches_are_decoded_fast_too(tmp_path: Path, large: bytes) -> None:
    file = tmp_path / "large.jpg"
    file.write_bytes(large)
    (batch,) = load_batches([file], FAST, 8)
    np.testing.assert_array_equal(batch[0], load_pixels(large, FAST))
    assert (batch[0] != load_pixels(large, SPEC)).any()


def test_the_spec_says_it_and_older_ones_mean_no() -> None:
    assert PreprocessSpec.from_dict(FAST.to_dict()) == FAST
    older = {key: value for key, value in SPEC.to_dict().items() if key != "fast_decode"}
    assert PreprocessSpec.from_dict(older) == SPEC


@pytest.fixture(scope="module")
def fast() -> Classifier:
    return load(DIGITS, device="cpu", num_threads=1, fast_decode=True)


def test_every_way_to_classify_agrees(
    large: bytes, fast: Classifier, classifier: Classifier, tmp_path: Path
) -> None:
    options = Options(top_k=10, logits=True)
    wanted = fast.predict_one(large, options)
    assert wanted != classifier.predict_one(large, options)
    sources = [Given(large)]
    assert [result for _, result in predict_iter(fast, sources, options)] == [wanted]
    model = {"model": str(DIGITS), "device": "cpu", "fast_decode": True}
    actor = Actor(model, options, batch_size=1, cores=1)
    task = {"first": [0], "sources": [pickle.dumps(sources)]}
    assert pickle.loads(actor(task)["results"][0]) == [wanted]
    (tmp_path / "large.jpg").write_bytes(large)
    output, log = tmp_path / "rows.jsonl", tmp_path / "log.json"
    arguments = (tmp_path / "large.jpg", "--output", output, "--topk", 10, "--log", log)
    assert predict(*arguments, "--fast-decode", "--output-type", "logit") == 0
    logits = wanted.logits["logits"] if wanted.logits else []
    rows = [row["logit"] for row in read_rows(output)]
    assert rows == pytest.approx(sorted(logits, reverse=True), abs=1e-5)
    assert json.loads(log.read_text())["run"]["fast-decode"] is True
    with in_process(DEITLT_FAST_DECODE="true") as client:
        answer = client.post(CLASSIFY, content=large, params={"logits": True}).json()
        assert without_envelope(answer)["logits"] == wanted.logits
        (card,) = client.get("/v1/models").json()["models"]
        assert card["preprocess"]["fast_decode"] is True


def test_an_evaluation_says_how_images_were_decoded(
    tmp_path: Path, class_tree: Callable[[Path, Mapping[str, int]], Path]
) -> None:
    data = class_tree(tmp_path / "data" / "test", {"0": 2, "1": 2}).parent
    for name, flags in (("fast", ["--fast-decode"]), ("exact", [])):
        output = tmp_path / name
        arguments = ["--data", data, "--output", output, "--device", "cpu", "--no-plots", *flags]
        assert main(["evaluate", str(DIGITS), *map(str, arguments)]) == 0
        metrics = json.loads((output / "metrics.json").read_text())
        assert metrics["fast_decode"] is (name == "fast")
