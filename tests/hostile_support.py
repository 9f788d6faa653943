"""Hundreds of hostile images, made from a seed: every accepted format and every fault."""

import random
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from tests.hostile_pictures import (
    ANSWERED,
    DAMAGED,
    FOREIGN,
    SIZE,
    TOO_LARGE,
    Hostile,
    encoded,
    orientation,
    picture_of,
    png_chunk,
    png_of,
    unusual_pictures,
)

ANY = (ANSWERED, FOREIGN, DAMAGED, TOO_LARGE)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "lossless": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {}),
    "tiff": ("TIFF", {}),
    "lzw": ("TIFF", {"compression": "tiff_lzw"}),
}


def hostile_images(seed: int = 0) -> list[Hostile]:
    """All of them, the same for the same seed."""
    return [
        *unusual_pictures(),
        *_metadata(),
        *_truncated(seed),
        *_corrupted(seed),
        *_claims(),
        *_crowds(),
        *_foreign(),
        *_odd_jpegs(seed),
    ]


def _in_png(chunks: bytes) -> bytes:
    """A good PNG with chunks behind its header."""
    data = encoded(picture_of(), "PNG")
    return data[:33] + chunks + data[33:]


def _in_jpeg(*segments: tuple[int, bytes]) -> bytes:
    """A good JPEG with segments behind its first."""
    data = encoded(picture_of(), "JPEG")
    pieces = (struct.pack(">BBH", 255, kind, len(body) + 2) + body for kind, body in segments)
    return data[:2] + b"".join(pieces) + data[2:]


def _frame_in(gif: bytes) -> int:
    """Where the first frame of a GIF begins."""
    return gif.index(b"," + bytes(4) + struct.pack("<HH", *SIZE))


def _tiff(*tags: tuple[int, int, int, int], pixels: bytes = b"", rest: bytes = b"") -> bytes:
    """A grey TIFF of 16 x 1 whose other tags are given as (tag, type, count, value)."""
    base = {256: (3, 1, 16), 257: (3, 1, 1), 258: (3, 1, 8), 262: (3, 1, 1), 273: (4, 1, 8)}
    base |= {277: (3, 1, 1), 278: (3, 1, 1), 279: (4, 1, 16)}
    base |= {tag: (kind, count, value) for tag, kind, count, value in tags}
    table = b"".join(struct.pack("<HHII", tag, *base[tag]) for tag in sorted(base))
    pixels = pixels or bytes(16)
    start = 8 + len(pixels)
    head = b"II*\0" + struct.pack("<I", start) + pixels
    return head + struct.pack("<H", len(base)) + table + bytes(4) + rest


def _metadata() -> Iterator[Hostile]:
    exact = np.asarray(picture_of())
    bomb = zlib.compress(bytes(100 << 20), 1)
    latin = "é".encode("latin-1")
    for name, chunk in {
        "text": png_chunk(b"tEXt", b"Comment\0" + latin * 99),
        "text-keyword": png_chunk(b"tEXt", latin * 200),
        "text-international": png_chunk(b"iTXt", b"k\0\0\0\xff\xfe\0\xff\0\xff\xfe"),
        "text-packed": png_chunk(b"zTXt", b"k\0\0not zlib"),
        "profile": png_chunk(b"iCCP", b"p\0\0" + zlib.compress(b"no profile")),
        "profile-bomb": png_chunk(b"iCCP", b"p\0\0" + bomb),
        "exif": png_chunk(b"eXIf", b"\xff" * 500),
        "exif-tags": png_chunk(b"eXIf", _crowded_exif(1500, 300_000)),
        "resolution": png_chunk(b"pHYs", b"\xff" * 9),
        "xmp": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"\xff" * 99),
    }.items():
        codes = (ANSWERED, DAMAGED) if "text" in name or "bomb" in name else (ANSWERED,)
        yield Hostile(f"png-{name}", _in_png(chunk), codes, exact)
    for name, segment in {
        "comment": (0xFE, b"\xff\xfe" * 99),
        "exif": (0xE1, b"Exif\0\0" + b"\xff" * 99),
        "exif-tags": (0xE1, b"Exif\0\0" + _crowded_exif(900, 50_000)),
        "xmp": (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"\xff" * 99),
        "profile": (0xE2, b"ICC_PROFILE\0\x09\x01garbage"),
        "adobe": (0xED, b"Photoshop 3.0\x008BIM\xff\xff\xff\xff\xff"),
    }.items():
        yield Hostile(f"jpeg-{name}", _in_jpeg(segment), (ANSWERED,))
    profile = _in_jpeg(*[(0xE2, b"ICC_PROFILE\0\x01\x01" + bytes(60_000))] * 50)
    yield Hostile("jpeg-profile-3-MB", profile, (ANSWERED,))
    gif = encoded(picture_of(), "GIF", comment=b"\xff\xfe" * 99)
    yield Hostile("gif-comment", gif, (ANSWERED,))
    yield Hostile("tiff-text", _tiff((270, 2, 4, 0xFFFFFFFF)), (ANSWERED,))
    yield Hostile("webp-xmp", encoded(picture_of(), "WEBP", xmp=b"\xff" * 99), (ANSWERED,))


def _crowded_exif(num_tags: int, size: int) -> bytes:
    """Tags that all point at the same bytes."""
    tags = (struct.pack("<HHII", 0x1000 + i, 7, size, 0) for i in range(num_tags))
    table = b"II*\0" + struct.pack("<IH", 8, num_tags) + b"".join(tags) + bytes(4)
    return table.ljust(size, b"\0")


def _truncated(seed: int) -> Iterator[Hostile]:
    generator = random.Random(seed)
    for name, (kind, options) in KINDS.items():
        data = encoded(picture_of(), kind, **options)
        for number in range(8):
            cut = data[: generator.randrange(1, len(data))]
            yield Hostile(f"cut-{name}-{number}", cut, (ANSWERED, FOREIGN, DAMAGED))


def _corrupted(seed: int) -> Iterator[Hostile]:
    generator = random.Random(seed)
    for name, (kind, options) in KINDS.items():
        for number in range(12):
            data = bytearray(encoded(picture_of(), kind, **options))
            reach = len(data) if number % 2 else min(64, len(data))
            for _ in range(generator.randrange(1, 8)):
                data[generator.randrange(reach)] = generator.randrange(256)
            yield Hostile(f"corrupted-{name}-{number}", bytes(data), ANY)


def _claims() -> Iterator[Hostile]:
    """Headers that claim other sizes than there are pixels."""
    for width, height in (
        (12_000, 9_000),
        (60_000, 60_000),
        (2**31 - 1, 1),
        (2**32 - 1, 2**32 - 1),
    ):
        for depth, colour in ((8, 2), (1, 0)):
            header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
            data = png_of(header, png_chunk(b"IDAT", zlib.compress(bytes(99))))
            yield Hostile(f"png-{width}x{height}-{depth}", data, (TOO_LARGE, DAMAGED))
    real = encoded(Image.new("1", (12_000, 9_000)), "PNG")  # 15 kB
    yield Hostile("png-108-megapixels", real, (TOO_LARGE,))
    gif = encoded(picture_of(), "GIF")
    huge, none = b"\xff\xff\xff\xff", bytes(4)
    yield Hostile("gif-huge", gif[:6] + huge + gif[10:], (TOO_LARGE,))
    frame = _frame_in(gif)
    yield Hostile("gif-huge-frame", gif[: frame + 5] + huge + gif[frame + 9 :], (TOO_LARGE,))
    jpeg = encoded(picture_of(), "JPEG")
    size = jpeg.index(b"\xff\xc0") + 5
    for name, height, width in (("huge", 65_500, 65_500), ("wide", 1, 65_500), ("none", 0, 60)):
        codes = {"huge": (TOO_LARGE,), "wide": (ANSWERED, DAMAGED), "none": (DAMAGED,)}[name]
        changed = struct.pack(">HH", height, width)
        yield Hostile(f"jpeg-{name}", jpeg[:size] + changed + jpeg[size + 4 :], codes)
    bmp = encoded(picture_of(), "BMP")
    for width, height in ((60_000, 60_000), (-1, -1), (60, -(2**31)), (0, 0), (60, -40)):
        data = bmp[:18] + struct.pack("<ii", width, height) + bmp[26:]
        yield Hostile(f"bmp-{width}x{height}", data, ANY)
    yield Hostile("tiff-huge", _tiff((256, 4, 1, 60_000), (257, 4, 1, 60_000)), (TOO_LARGE,))
    yield Hostile("tiff-none", _tiff((256, 4, 1, 0)), (DAMAGED,))
    webp = bytearray(encoded(picture_of(), "WEBP", lossless=True, exif=orientation(1)))
    webp[24:30] = b"\xfe\x3f\0\xfe\x3f\0"
    yield Hostile("webp-huge", bytes(webp), (TOO_LARGE, DAMAGED))
    header = struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)
    flood = png_chunk(b"IDAT", zlib.compress(bytes(100 << 20), 1))
    yield Hostile("png-data-bomb", png_of(header, flood), (ANSWERED, DAMAGED))
    yield Hostile("png-none", png_of(bytes(8) + header[8:], flood), (DAMAGED,))
    yield Hostile("gif-none", gif[:6] + none + gif[10 : frame + 5] + none + gif[frame + 9 :], ANY)


def _crowds() -> Iterator[Hostile]:
    """Millions of parts, each of which costs a reader a little."""
    count = 101_000
    yield Hostile("jpeg-segments", _in_jpeg(*[(0xE5, b"")] * count), (TOO_LARGE,))
    yield Hostile("jpeg-exif-pieces", _in_jpeg(*[(0xE1, b"Exif\0\0x")] * count), (TOO_LARGE,))
    yield Hostile("jpeg-profiles", _in_jpeg(*[(0xE2, b"ICC_PROFILE\0\1\1")] * count), (TOO_LARGE,))
    jpeg = encoded(picture_of(), "JPEG")
    for name, junk in (("padding", b"\xff"), ("junk", b"\0"), ("escapes", b"\xff\0")):
        yield Hostile(f"jpeg-{name}", jpeg[:20] + junk * 3_000_000 + jpeg[20:], ANY)
    big = encoded(picture_of((2000, 2000)), "JPEG", progressive=True)
    scans = [found.start() for found in re.finditer(b"\xff\xda", big)]
    again = big[scans[1] : scans[2]]
    end = big[scans[2] :]
    yield Hostile("jpeg-scans", big[: scans[2]] + again * 700 + end, (TOO_LARGE,))
    yield Hostile("jpeg-scans-90", big[: scans[2]] + again * 85 + end, (ANSWERED,))
    yield Hostile("png-chunks", _in_png(png_chunk(b"tEXt", b"k\0v") * count), (TOO_LARGE,))
    yield Hostile("png-empty-data", _in_png(png_chunk(b"IDAT", b"") * count), (TOO_LARGE,))
    png = encoded(picture_of(), "PNG")
    rows = png[png.index(b"IDAT") + 4 : -16]
    small = b"".join(png_chunk(b"IDAT", rows[i : i + 1]) for i in range(len(rows)))
    many = png[:33] + small + png[-12:]
    yield Hostile("png-small-data", many, (ANSWERED,), np.asarray(picture_of()))
    profile = [(0xE2, b"ICC_PROFILE\0" + bytes([i, 255])) for i in range(1, 256)]
    yield Hostile("jpeg-profile-255", _in_jpeg(*profile), (ANSWERED,))
    gif = encoded(picture_of(), "GIF")
    at = _frame_in(gif)
    yield Hostile("gif-comments", gif[:at] + b"!\xfe\1a\0" * count + gif[at:], (TOO_LARGE,))
    yield Hostile(
        "gif-blocks", gif[:at] + b"!\xfe" + b"\1a" * count + b"\0" + gif[at:], (TOO_LARGE,)
    )
    yield Hostile("gif-nothing", gif[:at] + bytes(3 * count) + gif[at:], (TOO_LARGE,))
    values = b"\x08\0\0\0" * count
    strips = ((273, 4, count, 138), (279, 4, count, 138))
    yield Hostile("tiff-strips", _tiff(*strips, rest=values), (TOO_LARGE,))
    tags = [(0x1000 + i, 7, 300_000, 8) for i in range(990)]
    yield Hostile("tiff-same-bytes", _tiff(*tags, rest=bytes(300_000)), (ANSWERED,))
    tags = [(0x1000 + i, 3, 1, 8) for i in range(30_000)]
    yield Hostile("tiff-tags", _tiff(*tags), (TOO_LARGE,))
    table = struct.pack("<HHQQ", 256, 3, 1, 1) * count
    big_tiff = b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, count) + table
    yield Hostile("bigtiff-tags", big_tiff, (TOO_LARGE,))
    bmp = bytearray(encoded(picture_of((60, 40)).quantize(16), "BMP"))
    bmp[18:26], bmp[30:34] = struct.pack("<ii", 30_000, 3_000), struct.pack("<I", 1)
    yield Hostile("bmp-runs", bytes(bmp) + b"\0\0" * count, (TOO_LARGE,))


def _foreign() -> Iterator[Hostile]:
    for kind in ("AVIF", "DDS", "EPS", "ICNS", "ICO", "JPEG2000", "PCX", "PDF", "PPM", "QOI"):
        size = (64, 64) if kind in ("ICNS", "ICO") else SIZE
        yield Hostile(kind, encoded(picture_of(size), kind), (FOREIGN,))
    yield Hostile("TGA", encoded(picture_of(), "TGA"), (FOREIGN,))
    yield Hostile("XBM", encoded(picture_of().convert("1"), "XBM"), (FOREIGN,))
    for name, start in {
        "text": b"hello",
        "html": b"<!doctype html><img src='http://127.0.0.1/'>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "heif": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "jxl": b"\0\0\0\x0cJXL \r\n\x87\n",
        "psd": b"8BPS\0\1",
        "wave": b"RIFF\x24\0\0\0WAVEfmt ",
        "zip": b"PK\3\4",
        "gzip": b"\x1f\x8b\x08\0",
        "pickle": b"\x80\x04cos\nsystem\n",
        "elf": b"\x7fELF",
        "zero": b"\0",
        "zeros": bytes(9999),
        "url": b"http://127.0.0.1:9/image.png",
    }.items():
        yield Hostile(name, start + b"\n" * 99, (FOREIGN,))


def _odd_jpegs(seed: int) -> Iterator[Hostile]:
    generator = random.Random(seed)
    restarts = bytearray(encoded(picture_of(), "JPEG", restart_marker_blocks=1))
    places = [
        at
        for at in range(len(restarts) - 1)
        if restarts[at] == 255 and 0xD0 <= restarts[at + 1] <= 0xD7
    ]
    for at in places:
        restarts[at + 1] = 0xD0 + generator.randrange(8)
    yield Hostile("jpeg-restarts-mixed", bytes(restarts), (ANSWERED, DAMAGED))
    data = encoded(picture_of(), "JPEG")
    scan = data.index(b"\xff\xda") + 14
    for number in range(4):
        at = generator.randrange(scan, len(data))
        garbage = bytes(b for _ in range(200) for b in (255, 0xD0 + generator.randrange(8)))
        yield Hostile(
            f"jpeg-restarts-{number}", data[:at] + garbage + data[at:], (ANSWERED, DAMAGED)
        )
    for name, marker in (("arithmetic", 0xC9), ("lossless", 0xC3), ("hierarchical", 0xC5)):
        frame = data.index(b"\xff\xc0")
        changed = data[: frame + 1] + bytes([marker]) + data[frame + 2 :]
        yield Hostile(f"jpeg-{name}", changed, (ANSWERED, DAMAGED))
    frame = data.index(b"\xff\xc0") + 4
    yield Hostile("jpeg-12-bit", data[:frame] + b"\x0c" + data[frame + 1 :], (DAMAGED,))
    yield Hostile("jpeg-no-end", data[:-2], (ANSWERED, DAMAGED))
    # What phones append, in which FF DA comes up by chance.
    video = generator.randbytes(500_000) + b"\xff\xda" * 200
    yield Hostile("jpeg-with-video", data + video, (ANSWERED,))
    progressive = encoded(picture_of(), "JPEG", progressive=True)
    yield Hostile("progressive-with-video", progressive + video, (ANSWERED,))
