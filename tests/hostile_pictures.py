"""Pictures of every accepted format, mode and frame count, whose pixels are mostly known."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ANSWERED, FOREIGN, DAMAGED, TOO_LARGE = "", "unsupported_image", "decode_failed", "too_large"
SIZE = (60, 40)


@dataclass(frozen=True)
class Hostile:
    """An image, the error codes that it may get (`""`: an answer), and its pixels if known."""

    name: str
    data: bytes
    codes: tuple[str, ...]
    pixels: NDArray[np.uint8] | None = None


def picture_of(size: tuple[int, int] = SIZE, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def orientation(value: int) -> bytes:
    return b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, value, 0, 0)


def png_chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def png_of(ihdr: bytes, *chunks: bytes) -> bytes:
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", ihdr) + b"".join(chunks) + png_chunk(b"IEND", b"")
    )


def unusual_pictures() -> Iterator[Hostile]:
    """Pictures that are in order."""
    yield from _upright()
    yield from _modes()
    yield from _frames()
    yield from _thin()


def _upright() -> Iterator[Hostile]:
    turned = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    stored = picture_of()
    for value, method in turned.items():
        pixels = np.asarray(stored if method is None else stored.transpose(method))
        exif = {"exif": orientation(value)}
        for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
            data = encoded(stored, kind, **exif, **options)
            yield Hostile(f"orientation-{value}-{kind}", data, (ANSWERED,), pixels)
        yield Hostile(f"orientation-{value}-JPEG", encoded(stored, "JPEG", **exif), (ANSWERED,))


def _modes() -> Iterator[Hostile]:
    rgb = picture_of()
    modes = {
        "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
        "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "YCbCr", "I"),
        "BMP": ("1", "L", "P", "RGB", "RGBA"),
        "GIF": ("1", "L", "P", "RGBA"),
        "WEBP": ("RGB", "RGBA", "L"),
        "JPEG": ("L", "RGB", "CMYK"),
    }
    for kind, names in modes.items():
        for mode in names:
            image = rgb.convert("LAB" if mode == "LAB" else mode) if mode != "LAB" else None
            image = image or Image.merge("LAB", rgb.split())
            exact = np.asarray(rgb) if mode == "RGB" and kind in ("PNG", "TIFF", "BMP") else None
            yield Hostile(f"{kind}-{mode}", encoded(image, kind), (ANSWERED,), exact)
    clear = rgb.quantize(16)
    yield Hostile("P-clear", encoded(clear, "PNG", transparency=bytes(range(16))), (ANSWERED,))
    yield Hostile("RGB-clear", encoded(rgb, "PNG", transparency=(1, 2, 3)), (ANSWERED,))
    yield Hostile("L-clear", encoded(rgb.convert("L"), "PNG", transparency=7), (ANSWERED,))
    nothing = np.full((SIZE[1], SIZE[0], 3), 255, np.uint8)
    for kind in ("PNG", "WEBP", "TIFF"):
        data = encoded(Image.new("RGBA", SIZE), kind)
        yield Hostile(f"{kind}-invisible", data, (ANSWERED,), nothing)
    grey = np.asarray(rgb.convert("L"))
    grey_rgb = np.repeat(grey[:, :, None], 3, axis=2)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    for kind in ("PNG", "TIFF"):
        yield Hostile(f"{kind}-16-bit", encoded(deep, kind), (ANSWERED,), grey_rgb)
    rows = b"".join(b"\0" + np.repeat(row, 2).tobytes() for row in np.asarray(rgb))
    header = struct.pack(">IIBBBBB", *SIZE, 16, 2, 0, 0, 0)
    data = png_of(header, png_chunk(b"IDAT", zlib.compress(rows)))
    yield Hostile("PNG-RGB-16-bit", data, (ANSWERED,), np.asarray(rgb))
    float_pixels = Image.fromarray(np.ones((40, 60), np.float32))
    yield Hostile("TIFF-F", encoded(float_pixels, "TIFF"), (DAMAGED,))
    for name in ("packbits", "tiff_adobe_deflate", "jpeg", "tiff_lzw"):
        yield Hostile(f"TIFF-{name}", encoded(rgb, "TIFF", compression=name), (ANSWERED,))
    bitonal = encoded(rgb.convert("1"), "TIFF", compression="group4")
    yield Hostile("TIFF-group4", bitonal, (ANSWERED,))
    cmyk = bytearray(encoded(rgb.convert("CMYK"), "JPEG"))
    cmyk[cmyk.index(b"Adobe") + 11] = 2  # YCCK
    yield Hostile("JPEG-YCCK", bytes(cmyk), (ANSWERED,))
    for subsampling in (0, 1, 2):
        yield Hostile(
            f"JPEG-{subsampling}", encoded(rgb, "JPEG", subsampling=subsampling), (ANSWERED,)
        )


def _frames() -> Iterator[Hostile]:
    first, *others = (picture_of(seed=seed) for seed in range(4))
    options: dict[str, Any] = {"save_all": True, "append_images": others}
    exact = np.asarray(first)
    for kind, more in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        data = encoded(first, kind, **options, **more)
        yield Hostile(f"frames-{kind}", data, (ANSWERED,), exact)
        yield Hostile(f"frames-cut-{kind}", data[: len(data) * 6 // 10], (ANSWERED, DAMAGED))
    gif = encoded(first, "GIF", **options)
    yield Hostile("frames-GIF", gif, (ANSWERED,))
    yield Hostile("frames-cut-GIF", gif[: len(gif) * 6 // 10], (ANSWERED,))
    mpo = encoded(first, "MPO", **options)
    yield Hostile("frames-MPO", mpo, (ANSWERED,))
    yield Hostile("frames-cut-MPO", mpo[: len(mpo) // 2], (ANSWERED, DAMAGED))
    start = mpo.index(b"MPF\0")
    yield Hostile(
        "MPO-garbage", mpo[: start + 8] + b"\xff" * 40 + mpo[start + 48 :], (ANSWERED, DAMAGED)
    )


def _thin() -> Iterator[Hostile]:
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"):
        for size in ((1, 1), (1, 3000), (3000, 1)):
            data = encoded(Image.new("RGB", size, "white"), kind)
            yield Hostile(f"{size[0]}x{size[1]}-{kind}", data, (ANSWERED,))
