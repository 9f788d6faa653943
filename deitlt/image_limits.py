"""What is counted in an encoded image before Pillow reads it.

Pillow is safe with hostile files but slow with some: it walks through a header in Python, so that
20 MB of empty JPEG segments take minutes and a gigabyte, and libjpeg goes over all pixels once for
every scan of a few bytes. Real files have some dozens of such parts; the limits are far above.
"""

import re
import struct

from deitlt.errors import ImageTooLarge

# An ICC profile may take 255 segments of a JPEG, extended XMP some hundred.
MAX_JPEG_SEGMENTS = 1_000
# jpegtran's own scripts make some 10; libtiff stops at 100 too.
MAX_JPEG_SCANS = 100
# Encoders that write small IDAT chunks make thousands.
MAX_PNG_CHUNKS = 50_000
MAX_GIF_BLOCKS = 10_000
MAX_TIFF_TAGS = 1_000
# Strips or tiles, mostly.
MAX_TIFF_VALUES = 100_000
# Run-length coding of BMP is decoded in Python.
MAX_RLE_PIXELS = 4_000_000
MAX_RLE_BYTES = 8_000_000

# Among coded pixels FF is followed by 00 or makes a restart marker.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_TIFF_BYTES = {1, 2, 6, 7}  # types that Pillow keeps as they are
_UNITS = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


def check_parts(data: bytes) -> None:
    """Refuse a file of more parts than any picture has; what else is wrong is left to Pillow.

    Raises:
        ImageTooLarge: with the kind of part and the limit.
    """
    if data[:3] == b"\xff\xd8\xff":
        _check_jpeg(data)
    elif data[:4] == b"\x89PNG":
        _check_png(data)
    elif data[:4] == b"GIF8":
        _check_gif(data)
    elif data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        _check_tiff(data)
    elif data[:2] == b"BM":
        _check_bmp(data)


def _check_jpeg(data: bytes) -> None:
    position, end = 2, len(data)
    num_channels = b""
    for _ in range(MAX_JPEG_SEGMENTS):
        if position + 4 > end:
            return
        if data[position] != 0xFF:  # junk, over which Pillow steps byte by byte
            position += 1
            continue
        marker = data[position + 1]
        if marker in (0xC0, 0xC1):  # sequential
            num_channels = data[position + 9 : position + 10]
        if marker == 0xDA:
            # A first scan of all channels of a sequential JPEG is all that is decoded.
            if data[position + 4 : position + 5] != num_channels:
                _check_scans(data, position)
            return
        alone = marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9
        step = 1 if marker == 0xFF else 2
        position += step if alone else 2 + int.from_bytes(data[position + 2 : position + 4])
    raise _too_many("JPEG segments", MAX_JPEG_SEGMENTS)


def _check_scans(data: bytes, position: int) -> None:
    """Count the scans from the first one, at `position`, to the end of the picture."""
    # Each begins with FF DA. So may bytes behind the picture, where phones put a video.
    if data.count(b"\xff\xda", position) <= MAX_JPEG_SCANS:
        return
    num_scans = 0
    for _ in range(MAX_JPEG_SEGMENTS):
        num_scans += data[position + 1] == 0xDA
        if num_scans > MAX_JPEG_SCANS:
            raise _too_many("JPEG scans", MAX_JPEG_SCANS)
        length = int.from_bytes(data[position + 2 : position + 4])
        found = _MARKER.search(data, position + 2 + length)
        if found is None or found.group() == b"\xff\xd9":
            return
        position = found.start()
    raise _too_many("JPEG segments", MAX_JPEG_SEGMENTS)


def _check_png(data: bytes) -> None:
    position = 8
    for _ in range(MAX_PNG_CHUNKS):
        if position + 8 > len(data):
            return
        position += 12 + int.from_bytes(data[position : position + 4])
    raise _too_many("PNG chunks", MAX_PNG_CHUNKS)


def _check_gif(data: bytes) -> None:
    """Count the blocks before the first frame: behind it nothing is read."""
    if len(data) < 13:
        return
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    inside = False  # an extension: a row of blocks, ended by an empty one
    for _ in range(MAX_GIF_BLOCKS):
        if position >= len(data) or (not inside and data[position] in b",;"):
            return
        size = data[position]
        if inside:
            inside, position = size > 0, position + 1 + size
        elif size == 0x21:
            inside, position = True, position + 2
        else:
            position += 1
    raise _too_many("GIF blocks", MAX_GIF_BLOCKS)


def _check_tiff(data: bytes) -> None:
    """Count the entries of the first directory and their values: the others are not read."""
    order = "<" if data[:1] == b"I" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    try:
        (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        (num_tags,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    except (struct.error, OverflowError):
        return
    if num_tags > MAX_TIFF_TAGS:
        raise _too_many("TIFF tags", MAX_TIFF_TAGS)
    entry = struct.Struct(order + ("HHQ8x" if big else "HHI4x"))
    first = start + (8 if big else 2)
    table = data[first : first + num_tags * entry.size]
    for _, kind, count in entry.iter_unpack(table[: len(table) // entry.size * entry.size]):
        # What the file is too short for is not read.
        fits = count * _UNITS.get(kind, 1) <= len(data)
        if kind not in _TIFF_BYTES and count > MAX_TIFF_VALUES and fits:
            raise _too_many("values of a TIFF tag", MAX_TIFF_VALUES)


def _check_bmp(data: bytes) -> None:
    if len(data) < 34 or int.from_bytes(data[30:34], "little") not in (1, 2):
        return
    width, height = struct.unpack_from("<ii", data, 18)
    if abs(width * height) > MAX_RLE_PIXELS or len(data) > MAX_RLE_BYTES:
        raise ImageTooLarge(
            f"a compressed BMP may have {MAX_RLE_PIXELS} pixels and {MAX_RLE_BYTES} bytes; "
            "save it as PNG"
        )


def _too_many(what: str, limit: int) -> ImageTooLarge:
    return ImageTooLarge(f"the image has more than {limit} {what}, the most accepted; save it anew")
