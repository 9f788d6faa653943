"""The images that are sent: photographs' sizes and noise made from a seed, or a folder's files."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from deitlt.errors import DataError

SEED = 0
# Width and height, px: what telephones, web pages and thumbnails have.
PHOTOS = ((640, 480), (480, 640), (1024, 768), (500, 375), (800, 533), (320, 240))
THUMBNAILS = 2
THUMBNAIL_PX = 32
QUALITY = 85
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def made_up_photos() -> list[bytes]:
    """JPEG files of mixed sizes and two of CIFAR's size as PNG, the same ones every time."""
    generator = np.random.default_rng(SEED)
    files = [_encode(_scene(generator, size), "JPEG") for size in PHOTOS]
    small = (THUMBNAIL_PX, THUMBNAIL_PX)
    return files + [_encode(_scene(generator, small), "PNG") for _ in range(THUMBNAILS)]


def read_photos(folder: Path, most: int) -> list[bytes]:
    """Image files of a folder and those in it, spread evenly over their sorted names.

    Raises:
        DataError: there is none.
    """
    found = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    if not found:
        raise DataError(f"{folder}: no image file in it ({', '.join(sorted(SUFFIXES))})")
    chosen = np.linspace(0, len(found) - 1, min(most, len(found))).astype(int)
    return [found[index].read_bytes() for index in chosen]


def _scene(generator: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Soft shapes under a little noise, which compress as photographs do."""
    coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    soft = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.int16)
    noisy = soft + generator.normal(0, 6, soft.shape).astype(np.int16)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=QUALITY)
    return buffer.getvalue()
