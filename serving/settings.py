"""Every setting of the service, read from the environment once, at start."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast, get_args

from deitlt.bundle import FLOAT32, default_bundle
from deitlt.engine import usable_cores
from deitlt.errors import UsageError
from deitlt.preprocess import MAX_PIXELS
from deitlt.runtimes import Device

Number = TypeVar("Number", int, float)

MAX_TIMEOUT_S = 300
# Pillow refuses larger images by itself, whatever it is asked.
PILLOW_MAX_PIXELS = 178_956_970


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The service's settings, each with its environment variable, unit and default.

    A variable that is unset or empty means its default.
    """

    model: Path
    """`DEITLT_MODEL`: the bundle folder; default: the digits bundle that comes with the package."""

    variant: str
    """`DEITLT_VARIANT`: which form of the model: `float32` (default), `int8` or another it has."""

    device: Device
    """`DEITLT_DEVICE`: `auto` (default), `cpu`, or `cuda`, which refuses to start without a GPU."""

    num_workers: int
    """`DEITLT_WORKERS`: images in work at once; default: the usable cores."""

    queue_size: int
    """`DEITLT_QUEUE_SIZE`: images that may wait beyond those in work (64); then answers are 429."""

    max_bytes: int
    """`DEITLT_MAX_BYTES`: largest request body, bytes (20 MiB)."""

    max_pixels: int
    """`DEITLT_MAX_PIXELS`: largest width times height of an image (50 million)."""

    max_images: int
    """`DEITLT_MAX_IMAGES`: images in one request (64), and never more than the engine holds."""

    timeout_s: float
    """`DEITLT_TIMEOUT_S`: seconds from a request's headers to its answer (30); then it is 504."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """The settings that the variables in `environ` give.

        Raises:
            UsageError: a variable has a wrong value; the text names it and says what is allowed.
        """
        model = environ.get("DEITLT_MODEL")
        return cls(
            model=Path(model) if model else default_bundle(),
            variant=environ.get("DEITLT_VARIANT") or FLOAT32,
            device=_device(environ, "DEITLT_DEVICE"),
            num_workers=_number(environ, "DEITLT_WORKERS", usable_cores(), 1, 1024),
            queue_size=_number(environ, "DEITLT_QUEUE_SIZE", 64, 0, 100_000),
            max_bytes=_number(environ, "DEITLT_MAX_BYTES", 20 * 2**20, 1, 2**30),
            max_pixels=_number(environ, "DEITLT_MAX_PIXELS", MAX_PIXELS, 1, PILLOW_MAX_PIXELS),
            max_images=_number(environ, "DEITLT_MAX_IMAGES", 64, 1, 10_000),
            timeout_s=_number(environ, "DEITLT_TIMEOUT_S", 30.0, 0.01, float(MAX_TIMEOUT_S)),
        )


def _number(
    environ: Mapping[str, str], name: str, default: Number, low: Number, high: Number
) -> Number:
    text = environ.get(name)
    if not text:
        return default
    kind = type(default)
    value: Number | None = None
    with suppress(ValueError):
        value = kind(text)
    if value is None or not low <= value <= high:  # not a number (nan) fails this too
        noun = "a whole number" if kind is int else "a number"
        raise UsageError(f"{name} is {text!r}; it must be {noun} from {low} to {high}")
    return value


def _device(environ: Mapping[str, str], name: str) -> Device:
    text = environ.get(name) or "auto"
    choices = get_args(Device)
    if text not in choices:
        raise UsageError(f"{name} is {text!r}; it must be one of {', '.join(choices)}")
    return cast(Device, text)
