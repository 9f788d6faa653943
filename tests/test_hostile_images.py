"""Damaged and hostile input: always an `ImageError` with the right code, never more memory."""

import io
import os
import re
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deitlt.errors import DecodeFailed, ImageError, ImageTooLarge, OpenFailed, UnsupportedImage
from deitlt.preprocess import PreprocessSpec, decode, resize_crop
from tests.hostile_pictures import png_chunk

Pixels = Callable[..., Image.Image]
Encode = Callable[..., bytes]

KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "jpeg": ("JPEG", {}),
    "progressive-jpeg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "lossless-webp": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {}),
    "tiff": ("TIFF", {}),
    "lzw-tiff": ("TIFF", {"compression": "tiff_lzw"}),
}
# The warnings of Pillow about what these tests do on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


@pytest.fixture(params=KINDS)
def file(request: pytest.FixtureRequest, pixels: Pixels, encode: Encode) -> bytes:
    """A good 60 x 40 picture in each of the accepted formats."""
    kind, options = KINDS[request.param]
    return encode(pixels(60, 40), kind, **options)


def png_with(file: bytes, width: int, height: int) -> bytes:
    """A PNG that claims another size, with a right checksum."""
    header = b"IHDR" + struct.pack(">II", width, height) + file[24:29]
    return file[:12] + header + struct.pack(">I", zlib.crc32(header)) + file[33:]


def outcome(data: bytes, max_pixels: int = 200_000) -> Image.Image | ImageError:
    """The picture or its error; any other exception is a failure of the test."""
    try:
        return decode(data, max_pixels=max_pixels)
    except ImageError as error:
        return error


def test_the_whole_file_is_good(file: bytes) -> None:
    assert decode(file).size == (60, 40)


@pytest.mark.parametrize("tenth", range(10))
def test_a_truncated_file(tenth: int, file: bytes) -> None:
    result = outcome(file[: len(file) * tenth // 10])
    if isinstance(result, ImageError):
        assert result.code == "decode_failed"
        assert "\n" not in str(result)
    else:  # the last bytes of some formats hold no pixels
        assert tenth >= 9
        assert result.size == (60, 40)


def test_random_byte_flips(file: bytes) -> None:
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(file)
        # Half of the damage goes to the header, where it does most.
        reach = len(file) if generator.random() < 0.5 else 64
        for position in generator.integers(0, reach, generator.integers(1, 6)):
            damaged[position] ^= int(generator.integers(1, 256))
        result = outcome(bytes(damaged))
        if isinstance(result, ImageError):
            refused += 1
            assert type(result) in (DecodeFailed, UnsupportedImage, ImageTooLarge)
        else:
            assert resize_crop(result, PreprocessSpec(16)).shape == (16, 16, 3)
    assert refused, "no damage was noticed at all"


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("zeros", b"\0" * 1_000_000)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"\0" * 100,
        b"<!doctype html><html><body>403</body></html>",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"%PDF-1.7\n",
        b"P6 1 1 255\n\0\0\0",
        archive(),
        bytes(range(256)) * 20,
    ],
    ids=["text", "zeros", "html", "svg", "pdf", "ppm", "zip", "bytes"],
)
def test_what_is_no_accepted_image(data: bytes) -> None:
    with pytest.raises(UnsupportedImage, match="JPEG, PNG") as caught:
        decode(data)
    assert caught.value.code == "unsupported_image"


@pytest.mark.parametrize("kind", ["ICO", "PPM", "TGA", "PCX"])
def test_pillows_other_formats_stay_shut(kind: str, pixels: Pixels, encode: Encode) -> None:
    with pytest.raises(UnsupportedImage):
        decode(encode(pixels(), kind))


def test_no_bytes_at_all(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    for source in (b"", tmp_path / "empty.png"):
        with pytest.raises(DecodeFailed, match="0 bytes"):
            decode(source)


def test_the_pixel_limit_is_checked_before_the_pixels(pixels: Pixels, encode: Encode) -> None:
    # The data are those of a small picture: anyone who decoded them would call it damaged.
    small = encode(pixels())
    for size in ((12000, 9000), (60000, 60000)):
        with pytest.raises(ImageTooLarge, match="pixels") as caught:
            decode(png_with(small, *size))
        assert caught.value.code == "too_large"
    gif = encode(pixels(), "GIF")
    with pytest.raises(ImageTooLarge):
        decode(gif[:6] + struct.pack("<HH", 65535, 65535) + gif[10:])


def test_too_large_stays_too_large_where_warnings_are_errors(
    pixels: Pixels, encode: Encode
) -> None:
    data = png_with(encode(pixels()), 12000, 9000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageTooLarge):
            decode(data)


def test_the_pixel_limit_itself_is_accepted(pixels: Pixels, encode: Encode) -> None:
    data = encode(pixels(24, 20))
    assert decode(data, max_pixels=480).size == (24, 20)
    with pytest.raises(ImageTooLarge, match="24 x 20"):
        decode(data, max_pixels=479)


def test_the_byte_limit(tmp_path: Path, png: Callable[[int], bytes]) -> None:
    data = png(0)
    assert decode(data, max_bytes=len(data)).mode == "RGB"
    (tmp_path / "a.png").write_bytes(data)
    for source in (data, tmp_path / "a.png"):
        with pytest.raises(ImageTooLarge, match="bytes"):
            decode(source, max_bytes=len(data) - 1)


def test_a_huge_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    sparse = tmp_path / "huge.png"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)  # a terabyte that takes no room
    with pytest.raises(ImageTooLarge):
        decode(sparse, max_bytes=1000)


@pytest.mark.parametrize("width", [0, 60])
def test_an_image_without_pixels(width: int, pixels: Pixels, encode: Encode) -> None:
    with pytest.raises(DecodeFailed):
        decode(png_with(encode(pixels()), width, 0))
    jpeg = bytearray(encode(pixels(), "JPEG"))
    frame = jpeg.find(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 0, width)
    with pytest.raises(DecodeFailed):
        decode(bytes(jpeg))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 9999, 0x0112, 3, 1, 6),
        b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 2, 4, 0x31323334, 0),
        b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, 99, 0),
    ],
    ids=["garbage", "far-directory", "cut-directory", "text-orientation", "orientation-99"],
)
def test_broken_exif_does_not_cost_the_picture(
    exif: bytes, kind: str, pixels: Pixels, encode: Encode
) -> None:
    assert sorted(decode(encode(pixels(), kind, exif=exif)).size) == [20, 24]


def test_orientation_counts_although_another_tag_is_broken(pixels: Pixels, encode: Encode) -> None:
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHII", 0x8769, 4, 1, 9_999_999)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    assert decode(encode(pixels(24, 20), "JPEG", exif=exif)).size == (20, 24)


@pytest.mark.parametrize("name", ["missing.png", ".", "a\0b.png", "x" * 5000])
def test_a_path_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(OpenFailed) as caught:
        decode(tmp_path / name)
    assert caught.value.code == "open_failed"
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux says the peak")
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [("WEBP", "RGBA", {"method": 0}), ("JPEG", "CMYK", {"progressive": True})],
    ids=["webp", "progressive-jpeg"],
)
def test_a_pixel_takes_as_many_bytes_as_the_readme_says(
    kind: str, mode: str, options: dict[str, object], tmp_path: Path, encode: Encode, pixels: Pixels
) -> None:
    side = 2000
    (tmp_path / "picture").write_bytes(encode(pixels(side, side, mode=mode), kind, **options))
    script = """
import re, sys
from pathlib import Path
from deitlt.preprocess import PreprocessSpec, load_pixels
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")
before = peak()
load_pixels(Path(sys.argv[1]).read_bytes(), PreprocessSpec(32))
print(peak() - before)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "picture")]
    taken = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    figures = re.search(r"up to (\d+) bytes a pixel \(WebP; progressive JPEG (\d+),", readme)
    assert figures is not None
    most = int(figures[1 if kind == "WEBP" else 2])
    assert most / 2 < taken / side**2 < most + 1


def test_strips_and_bombs_take_bounded_memory(tmp_path: Path, encode: Encode) -> None:
    for number, size in enumerate([(1, 1_000_000), (1_000_000, 1)]):
        (tmp_path / f"strip{number}").write_bytes(encode(Image.new("RGB", size, "red")))
    signature, zeros = b"\x89PNG\r\n\x1a\n", bytes(1 << 20)
    # A gigabyte of text, and of pixels in a picture that says it has four.
    compressor = zlib.compressobj(9)
    gigabyte = b"".join(compressor.compress(zeros) for _ in range(1024)) + compressor.flush()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0))
    text = png_chunk(b"zTXt", b"Comment\0\0" + gigabyte)
    small = png_chunk(b"IDAT", zlib.compress(bytes(14)))
    (tmp_path / "text").write_bytes(signature + header + text + small + png_chunk(b"IEND", b""))
    (tmp_path / "data").write_bytes(
        signature + header + png_chunk(b"IDAT", gigabyte) + png_chunk(b"IEND", b"")
    )
    # Resized by its short side to 64 px, a strip would take 64 x 64,000,000 pixels.
    script = """
import resource, sys
from deitlt.errors import DecodeFailed
from deitlt.preprocess import PreprocessSpec, load_pixels
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
folder, spec = sys.argv[1], PreprocessSpec(64)
for name in ("strip0", "strip1"):
    assert (load_pixels(f"{folder}/{name}", spec) == (255, 0, 0)).all()
for name in ("text", "data"):
    try:
        load_pixels(f"{folder}/{name}", spec)
    except DecodeFailed as error:
        assert "Memory" not in repr(error.__cause__), error
"""
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
