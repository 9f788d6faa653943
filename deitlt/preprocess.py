"""From untrusted image bytes to the pixels a model takes: hardened decoding, resize, crop.

The only implementation: training-time evaluation, export, batch prediction and the service call it.
Pixels leave here as `uint8` RGB, `(img_size, img_size, 3)`; mean and standard deviation are folded
into the exported graph, and only torch-side code needs `normalise`.
"""

import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from deitlt.errors import DecodeFailed, ImageError, ImageTooLarge, UnsupportedImage
from deitlt.image_files import MAX_BYTES, read_image_file
from deitlt.image_limits import check_parts

Pixels = NDArray[np.uint8]
# Encoded bytes, the path of a file, a picture, or RGB values `(H, W, 3)` uint8.
ImageLike = bytes | str | Path | Image.Image | NDArray[Any]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
# How files of these formats begin: what begins so and cannot be opened is damaged, not foreign.
SIGNATURE = re.compile(rb"\xff\xd8\xff|\x89PNG|RIFF....WEBP|BM|GIF8|II\*\x00|MM\x00\*", re.DOTALL)
MAX_PIXELS = 50_000_000
# A strip longer than this (long side over short side) is cut before it is resized: resizing by the
# short side would blow a 1 x 1,000,000 px image up to gigabytes.
MAX_ASPECT = 16
BAND_ROWS = 256
# A fast decoder leaves this many times the pixels a side that are needed, for the bicubic resize to
# average over. Pillow's own thumbnails have the same gap.
FAST_GAP = 2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """How an image becomes a model's input.

    Attributes:
        img_size: side of the square input, px.
        crop_pct: share of the resized short side that the centre crop keeps; 0.875 resizes to 256
            and crops 224.
        mean: per-channel mean on the [0, 1] scale.
        std: per-channel standard deviation on the [0, 1] scale.
        fast_decode: decode a large JPEG at a half, a quarter or an eighth of its size, reduce other
            large images by averaging, and resize only what the crop keeps, with a narrower window.
            Pixels then differ a little from timm's, and the right or lower end may move by a
            quarter of one.
    """

    img_size: int
    crop_pct: float = 1.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    fast_decode: bool = False

    @property
    def resized_side(self) -> int:
        """Short side of the resized image, of which the centre is kept, px."""
        return int(self.img_size / self.crop_pct)

    @property
    def min_side(self) -> int | None:
        """The fewest pixels a side that `decode` may leave of a JPEG; None leaves all of them."""
        return FAST_GAP * self.resized_side if self.fast_decode else None

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain JSON types, with what is fixed in code stated beside it."""
        return {
            **asdict(self),
            "interpolation": "bicubic",
            "colour_order": "RGB",
            "exif_orientation": "applied",
            "alpha": "composited on white",
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "PreprocessSpec":
        """The spec that `to_dict` wrote; ValueError if no image can be prepared by it."""
        spec = cls(
            img_size=int(fields["img_size"]),
            crop_pct=float(fields["crop_pct"]),
            mean=_three(fields["mean"]),
            std=_three(fields["std"]),
            fast_decode=bool(fields.get("fast_decode", False)),  # older bundles lack it
        )
        positive = all(0 < value < math.inf for value in (spec.img_size, spec.crop_pct, *spec.std))
        if not (positive and all(map(math.isfinite, spec.mean))):  # both are false of NaN
            raise ValueError(f"no image can be prepared by {fields}")
        return spec


def decode(
    source: bytes | str | Path,
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    min_side: int | None = None,
) -> Image.Image:
    """The image as 8-bit RGB, upright.

    EXIF orientation is applied, transparency is composited on white, 16-bit grey is scaled to
    8 bits, of an animation the first frame is taken. The pixel limit is checked on the header,
    before any pixel is decoded.

    Args:
        source: encoded bytes, or the path of a file.
        max_pixels: largest width times height; Pillow itself refuses more than 178 million.
        max_bytes: largest encoded size.
        min_side: a JPEG may come at a half, a quarter or an eighth of its size, as long as both
            sides keep so many pixels; by default it comes whole.

    Raises:
        OpenFailed: the file cannot be read, or is a pipe or device.
        UnsupportedImage: not one of `FORMATS`.
        DecodeFailed: damaged, or a pixel type without a meaning as a picture (float).
        ImageTooLarge: over `max_pixels`, `max_bytes` or a limit of `deitlt.image_limits`.
    """
    data = source if isinstance(source, bytes) else read_image_file(source, max_bytes)
    if len(data) > max_bytes:
        raise ImageTooLarge(f"the image has more than {max_bytes} bytes, the most accepted")
    if not data:
        raise DecodeFailed("the image is empty (0 bytes)")
    check_parts(data)
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        if SIGNATURE.match(data):
            raise DecodeFailed("the image header is damaged") from error
        accepted = ", ".join(FORMATS)
        raise UnsupportedImage(f"not an image this program reads ({accepted})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(f"the image has too many pixels ({_reason(error)})") from error
    except Exception as error:  # hostile headers raise whatever they like inside Pillow
        raise DecodeFailed(f"the image header is damaged ({_reason(error)})") from error
    if min_side is not None:
        _check_size(image, max_pixels)  # of the file, before it shrinks
        image.draft(None, (min_side, min_side))  # of other formats it does nothing
    return to_rgb(image, max_pixels=max_pixels)


def to_rgb(image: Image.Image, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An opened image as 8-bit RGB, upright: the half of `decode` that follows the header.

    Raises:
        DecodeFailed: damaged, without pixels, or of a pixel type without a meaning as a picture.
        ImageTooLarge: over `max_pixels`.
    """
    _check_size(image, max_pixels)
    try:
        image.load()
        return _flatten(_upright(image))
    except DecodeFailed:
        raise
    except Exception as error:  # damaged data raises OSError, SyntaxError, struct.error, zlib.error
        raise DecodeFailed(f"the image is damaged ({_reason(error)})") from error


def resize_crop(image: Image.Image, spec: PreprocessSpec) -> Pixels:
    """The centre of an RGB image, `(img_size, img_size, 3)` uint8.

    Bicubic resize of the short side to `floor(img_size / crop_pct)`, then a centre crop: timm's
    evaluation transform, pixel for pixel, for images up to 16 times as long as wide, unless the
    spec asks for speed.
    """
    image = _cut_strip(image)
    width, height = image.size
    short = spec.resized_side
    if width <= height:
        size = (short, int(short * height / width))
    else:
        size = (int(short * width / height), short)
    left = round((size[0] - spec.img_size) / 2.0)
    top = round((size[1] - spec.img_size) / 2.0)
    box = (left, top, left + spec.img_size, top + spec.img_size)
    if spec.fast_decode:
        return np.asarray(_resize_box(image, size, box), dtype=np.uint8)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image.crop(box), dtype=np.uint8)


def load_pixels(
    source: bytes | str | Path,
    spec: PreprocessSpec,
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> Pixels:
    """`decode` then `resize_crop`; raises what `decode` raises."""
    image = decode(source, max_pixels=max_pixels, max_bytes=max_bytes, min_side=spec.min_side)
    return resize_crop(image, spec)


def image_pixels(image: ImageLike, spec: PreprocessSpec, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """The model's input `(img_size, img_size, 3)` from any kind of image; raises `ImageError`."""
    if isinstance(image, Image.Image):
        return resize_crop(to_rgb(image, max_pixels=max_pixels), spec)
    check_kind(image)
    if not isinstance(image, np.ndarray):
        return load_pixels(image, spec, max_pixels=max_pixels)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DecodeFailed(
            f"an array must be uint8 of shape (H, W, 3), not {image.dtype} {image.shape}"
        )
    if image.size == 0:
        raise DecodeFailed(f"the array has no pixels, its shape is {image.shape}")
    return resize_crop(Image.fromarray(image), spec)


def check_kind(image: object) -> None:
    """Refuse what is no image of any kind; raises `UnsupportedImage`."""
    if not isinstance(image, bytes | str | Path | Image.Image | np.ndarray):
        raise UnsupportedImage(
            f"not an image but {type(image).__name__}; give bytes, a path, a PIL image or an array"
        )


def load_batches(paths: Sequence[Path], spec: PreprocessSpec, batch_size: int) -> Iterator[Pixels]:
    """Preprocessed `(B, img_size, img_size, 3)` batches of image files, decoded on all cores.

    Raises:
        ImageError: of the first file that cannot be decoded; the text names the file.
    """

    def load(path: Path) -> Pixels:
        return resize_crop(decode_file(path, min_side=spec.min_side), spec)

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), batch_size):
            yield np.stack(list(pool.map(load, paths[start : start + batch_size])))


def decode_file(path: Path, *, min_side: int | None = None) -> Image.Image:
    """`decode` for labelled data, whose errors must name the file."""
    try:
        return decode(path, min_side=min_side)
    except ImageError as error:
        text = str(error)
        raise type(error)(text if str(path) in text else f"{path}: {text}") from error


def normalise(pixels: Pixels, spec: PreprocessSpec) -> NDArray[np.float32]:
    """`(B, H, W, 3)` uint8 to the `(B, 3, H, W)` float32 input of the un-fused torch model."""
    scaled = pixels.astype(np.float32) / np.float32(255)
    mean, std = (np.array(channel, dtype=np.float32) for channel in (spec.mean, spec.std))
    standard = (scaled - mean) / std
    return np.ascontiguousarray(standard.transpose(0, 3, 1, 2), dtype=np.float32)


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"the image has {width} x {height} pixels; at most {max_pixels} are accepted"
        )
    if width * height == 0:
        raise DecodeFailed(f"the image has {width} x {height} pixels")


def _resize_box(
    image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]
) -> Image.Image:
    """`image.resize(size).crop(box)`, of which only what the box keeps is computed.

    A pixel may differ by two levels: Pillow takes the box as float32, and may resize the other side
    first. What shrinks goes through Hamming's window, nearly as sharp as the bicubic and of half
    its width, so in two thirds of its time.
    """
    (width, height), (left, top, right, bottom) = image.size, box
    across, down = width / size[0], height / size[1]
    source = (left * across, top * down, right * across, bottom * down)
    shrinks = size[0] <= width and size[1] <= height
    window = Image.Resampling.HAMMING if shrinks else Image.Resampling.BICUBIC
    return image.resize((right - left, bottom - top), window, box=source, reducing_gap=FAST_GAP)


def _upright(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image  # exif_transpose would make a copy
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block must not cost a good picture; it has no orientation
        return image


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        # "I;16..." is 16-bit, however dark; 32-bit "I" holds 16-bit values where any needs them.
        if image.mode.startswith("I;16") or grey.max(initial=0) > 255:
            grey = grey >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DecodeFailed("floating-point pixels have no defined brightness; save it as 8 bits")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa"):
        return _on_white(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """An image with transparency on white, band by band: whole, it takes four more of its size."""
    result = Image.new("RGB", image.size)
    width, height = image.size
    for top in range(0, height, BAND_ROWS):
        band = image.crop((0, top, width, min(top + BAND_ROWS, height))).convert("RGBA")
        white = Image.new("RGBA", band.size, "white")
        result.paste(Image.alpha_composite(white, band).convert("RGB"), (0, top))
    return result


def _cut_strip(image: Image.Image) -> Image.Image:
    width, height = image.size
    longest = MAX_ASPECT * min(width, height)
    if max(width, height) <= longest:
        return image
    new_width, new_height = min(width, longest), min(height, longest)
    left, top = (width - new_width) // 2, (height - new_height) // 2
    return image.crop((left, top, left + new_width, top + new_height))


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:160] or type(error).__name__


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
