"""Decoding of every kind of picture, and resize and crop against torchvision and timm."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torchvision import transforms

from deitlt.errors import DecodeFailed
from deitlt.preprocess import (
    CIFAR_MEAN,
    CIFAR_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    PreprocessSpec,
    decode,
    load_batches,
    load_pixels,
    normalise,
    resize_crop,
    to_rgb,
)

Pixels = Callable[..., Image.Image]
Encode = Callable[..., bytes]

SIZES = [(1, 1), (7, 5), (33, 17), (17, 33), (64, 64), (99, 101), (150, 149), (31, 480), (480, 31)]
# From its stored form to how it should be shown; EXIF 2.32, tag 0x0112.
UPRIGHT: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("side", "crop_pct"), [(16, 1.0), (32, 0.875), (32, 0.9), (33, 0.95)])
def test_resize_crop_is_torchvisions(
    size: tuple[int, int], side: int, crop_pct: float, pixels: Pixels
) -> None:
    image = pixels(*size)
    oracle = transforms.Compose(
        [
            transforms.Resize(
                int(side / crop_pct), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.CenterCrop(side),
        ]
    )
    result = resize_crop(image, PreprocessSpec(side, crop_pct))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, np.asarray(oracle(image)))


@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
def test_the_whole_transform_is_timms(crop_pct: float, pixels: Pixels) -> None:
    oracle = create_transform(
        (3, 32, 32), interpolation="bicubic", crop_pct=crop_pct, mean=CIFAR_MEAN, std=CIFAR_STD
    )
    spec = PreprocessSpec(32, crop_pct, CIFAR_MEAN, CIFAR_STD)
    for size in SIZES:
        image = pixels(*size, seed=1)
        result = normalise(resize_crop(image, spec)[None], spec)
        assert result.dtype == np.float32
        expected: torch.Tensor = oracle(image)
        torch.testing.assert_close(torch.from_numpy(result)[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(10, 400), (400, 10)])
def test_a_strip_shows_its_middle(size: tuple[int, int]) -> None:
    array = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    array[size[1] // 2 - 5 : size[1] // 2 + 5, size[0] // 2 - 5 : size[0] // 2 + 5] = 255
    assert resize_crop(Image.fromarray(array), PreprocessSpec(8)).min() > 200


def test_spec_survives_json() -> None:
    spec = PreprocessSpec(224, 0.875, CIFAR_MEAN, CIFAR_STD)
    assert PreprocessSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_lossless_formats_come_back_exactly(kind: str, pixels: Pixels, encode: Encode) -> None:
    image = pixels().quantize(64).convert("RGB")
    options = {"lossless": True} if kind == "WEBP" else {}
    saved = image.quantize(64) if kind == "GIF" else image
    result = decode(encode(saved, kind, **options))
    assert result.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(result), np.asarray(image))


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grey_bilevel_and_palette_pictures(mode: str, pixels: Pixels, encode: Encode) -> None:
    image = pixels().convert(mode)
    result = np.asarray(decode(encode(image)))
    if mode == "P":
        palette = np.array(image.getpalette()).reshape(-1, 3)
        expected = palette[np.asarray(image)]
    else:
        grey = np.asarray(image).astype(np.uint8) * (255 if mode == "1" else 1)
        expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "TIFF")])
def test_alpha_is_composited_on_white(mode: str, kind: str, pixels: Pixels, encode: Encode) -> None:
    image = pixels(mode=mode)
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 24).astype(np.uint8), (20, 1)))
    image.putalpha(ramp)
    layers = np.asarray(image).astype(float)
    colour, alpha = layers[..., :-1], layers[..., -1:] / 255
    expected = colour * alpha + 255 * (1 - alpha)
    result = np.asarray(decode(encode(image, kind))).astype(float)
    np.testing.assert_allclose(result, np.broadcast_to(expected, result.shape), atol=1)


def test_every_row_of_a_tall_picture_is_laid_on_white() -> None:
    rows = np.arange(600)
    layers = np.stack([rows % 256, rows // 256, 0 * rows, 255 * (rows % 3 > 0)], axis=1)
    image = Image.fromarray(np.repeat(layers[:, None], 4, axis=1).astype(np.uint8))
    expected = np.where(layers[:, 3:] > 0, layers[:, :3], 255)
    np.testing.assert_array_equal(np.asarray(to_rgb(image))[:, 2], expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_transparent_colour_is_white(mode: str, encode: Encode) -> None:
    image = Image.new("RGB", (6, 6), (10, 20, 30))
    image.paste((200, 100, 50), (0, 0, 3, 6))
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    result = decode(encode(image, transparency=image.getpixel((5, 5))))
    assert result.getpixel((5, 5)) == (255, 255, 255)
    assert result.getpixel((0, 0)) == image.convert("RGB").getpixel((0, 0))


def test_sixteen_bit_grey_keeps_its_high_byte(encode: Encode) -> None:
    ramp = np.linspace(0, 65535, 24 * 20).astype(np.uint16).reshape(20, 24)
    for kind in ("PNG", "TIFF"):
        result = np.asarray(decode(encode(Image.fromarray(ramp), kind)))
        np.testing.assert_array_equal(result, np.repeat((ramp // 256)[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_dark_sixteen_bit_picture_stays_dark(kind: str, encode: Encode) -> None:
    ramp = np.arange(24 * 20, dtype=np.uint16).reshape(20, 24)
    for dark in (ramp, np.minimum(ramp, 255)):  # also where no value needs more than 8 bits
        result = np.asarray(decode(encode(Image.fromarray(dark), kind)))
        expected = np.repeat((dark // 256)[..., None], 3, axis=2)
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(("highest", "divisor"), [(255, 1), (256, 256), (65535, 256)])
def test_of_32_bit_grey_the_values_tell_the_depth(highest: int, divisor: int) -> None:
    ramp = np.linspace(0, highest, 24 * 20).astype(np.int32).reshape(20, 24)
    image = Image.fromarray(ramp)
    assert image.mode == "I"
    expected = np.repeat((ramp // divisor)[..., None], 3, axis=2)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), expected)


def test_cmyk_jpeg(encode: Encode) -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    result = np.asarray(decode(encode(red, "JPEG", quality=95))).astype(int)
    assert np.abs(result - (255, 0, 0)).max() < 10


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation_is_applied(
    orientation: int, kind: str, pixels: Pixels, encode: Encode
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, dict[str, int]] = {
        "WEBP": {"lossless": True},
        "JPEG": {"quality": 100, "subsampling": 0},
    }
    image = pixels()
    data = encode(image, kind, exif=exif, **options.get(kind, {}))
    expected = UPRIGHT[orientation](np.asarray(image)).astype(int)
    result = np.asarray(decode(data)).astype(int)
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= (4 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG", "MPO"])
def test_of_several_frames_the_first_is_taken(kind: str, encode: Encode) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    result = np.asarray(decode(data)).astype(int)
    assert np.abs(result - (255, 0, 0)).max() <= 2


def test_floating_point_pixels_are_refused(encode: Encode) -> None:
    with pytest.raises(DecodeFailed, match="floating-point"):
        decode(encode(Image.new("F", (4, 4), 0.5), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_an_opened_image_is_treated_as_its_file(mode: str, pixels: Pixels) -> None:
    image = pixels(mode="RGBA")
    image.putalpha(0)
    assert np.asarray(to_rgb(image.convert(mode))).min() == 255


def test_normalisations_are_those_that_others_publish() -> None:
    assert (IMAGENET_MEAN, IMAGENET_STD) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    # LDAM-DRW's and the official DeiT-LT's CIFAR programs.
    assert CIFAR_MEAN == (0.4914, 0.4822, 0.4465)
    assert CIFAR_STD == (0.2023, 0.1994, 0.2010)


def test_bytes_and_path_agree(tmp_path: Path, pixels: Pixels, encode: Encode) -> None:
    data = encode(pixels())
    file = tmp_path / "ünïcode name"  # the content says what it is, not the suffix
    file.write_bytes(data)
    spec = PreprocessSpec(16, 0.875)
    expected = load_pixels(data, spec)
    np.testing.assert_array_equal(load_pixels(file, spec), expected)
    np.testing.assert_array_equal(load_pixels(str(file), spec), expected)


def test_batches_come_in_order_and_name_a_bad_file(tmp_path: Path, pixels: Pixels) -> None:
    files = [tmp_path / f"{number}.png" for number in range(7)]
    for number, file in enumerate(files):
        pixels(seed=number).save(file)
    spec = PreprocessSpec(16)
    batches = list(load_batches(files, spec, 3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    expected = [load_pixels(file, spec) for file in files]
    np.testing.assert_array_equal(np.concatenate(batches), np.stack(expected))
    files[5].write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(DecodeFailed, match=r"5\.png"):
        list(load_batches(files, spec, 3))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_eight_threads_decode_the_same_pixels(kind: str, pixels: Pixels, encode: Encode) -> None:
    data = encode(pixels(300, 200), kind)
    expected = load_pixels(data, PreprocessSpec(64))
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: load_pixels(data, PreprocessSpec(64)), range(64)):
            np.testing.assert_array_equal(result, expected)
