"""Every setting of the service, read from the environment once, at start."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar, cast, get_args

from deitlt.bundle import MANIFEST, default_bundle
from deitlt.errors import UsageError
from deitlt.preprocess import MAX_PIXELS
from deitlt.runtimes import Device

Number = TypeVar("Number", int, float)

MAX_TIMEOUT_S = 300
# Folder beside this file; it exists in a Bento alone.
PACKED = "bundles"
# Pillow refuses larger images by itself, whatever it is asked.
PILLOW_MAX_PIXELS = 178_956_970
# What Kubernetes tells each container of a Service named deitlt, or deitlt-something.
OF_KUBERNETES = re.compile(r"DEITLT_(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT(_\d+_\w+)?)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The service's settings, each with its environment variable, unit and default.

    A variable that is unset or empty means its default.
    """

    models: tuple[Path, ...]
    """`DEITLT_MODEL`: bundle folder, or several with `:` between them (`;` on Windows), the first
    being the default; unset: what a Bento carries, or the one that comes with the package."""

    variant: str
    """`DEITLT_VARIANT`: which form of the models: `float32`, `int8` or another they have; unset:
    `fp16` on a GPU for each bundle that has it, else `float32`."""

    explain: bool
    """`DEITLT_EXPLAIN`: answer `POST /v1/explain` from the variant `explain` of the bundles that
    have it: true or false (default). It is a second graph beside the one of `variant`, so a model
    takes twice the memory. A graph of its own and not PyTorch: the service needs no second runtime,
    and what it shows was held to PyTorch's maps when it was exported."""

    device: Device
    """`DEITLT_DEVICE`: `auto` (default; the CPU where no GPU works), `cpu`, or `cuda`, which
    refuses to start without a GPU that works."""

    triton: str
    """`DEITLT_TRITON`: `grpc://host:port` or `http://host:port` of a Triton server that runs the
    models, named as the bundles are (`export.to_triton`); unset: they run here."""

    triton_binary: bool
    """`DEITLT_TRITON_BINARY`: send tensors over HTTP as bytes: true (default), or false for servers
    without that extension."""

    num_workers: int
    """`DEITLT_WORKERS`: threads that decode and call the model, each a few images at a time; 0
    (default): the usable cores (a container's CPU limit counts), on a GPU two batches more. As many
    images are decoded at once, by default as there are usable cores."""

    max_batch: int
    """`DEITLT_MAX_BATCH`: most images in one call of the model; 0 (default): 32 on a GPU, and on a
    CPU 512 patches of images, which is 2 at 224 px and patch 16."""

    queue_size: int
    """`DEITLT_QUEUE_SIZE`: images that may wait beyond those in work (64); then answers are 429."""

    max_bytes: int
    """`DEITLT_MAX_BYTES`: largest request body, bytes (20 MiB)."""

    max_held_bytes: int
    """`DEITLT_MAX_HELD_BYTES`: bytes of request bodies in memory at once, unfinished ones too (128
    MiB, or twice `DEITLT_MAX_BYTES` where that is more); beyond it answers are 429."""

    max_pixels: int
    """`DEITLT_MAX_PIXELS`: largest width times height of an image (50 million)."""

    fast_decode: bool
    """`DEITLT_FAST_DECODE`: decode large JPEGs at a fraction of their size and resize only what is
    kept: true, or false (default). Pixels, and so scores, then differ a little."""

    max_images: int
    """`DEITLT_MAX_IMAGES`: images in one request (64), and never more than the engine holds."""

    timeout_s: float
    """`DEITLT_TIMEOUT_S`: seconds from a request's headers to its answer (30); then it is 504."""

    drain_s: float
    """`DEITLT_DRAIN_S`: seconds, at least, between SIGTERM and the end of a worker (1), in which it
    is not ready and answers new requests with 503; what is in work is finished anyway."""

    reload_s: float
    """`DEITLT_RELOAD_S`: seconds between looks whether a bundle was written again, which is then
    taken over without dropping a request; 0 (default) never looks."""

    api_key: str
    """`DEITLT_API_KEY`: what callers must send as `X-API-Key` or `Authorization: Bearer`; unset:
    nothing is asked."""

    cors_origins: tuple[str, ...]
    """`DEITLT_CORS_ORIGINS`: other origins, with commas between them, whose pages may call this
    service; unset: none."""

    access_log: bool
    """`DEITLT_ACCESS_LOG`: a line of JSON for each request on standard output: true or false
    (default)."""

    tracing: bool
    """`DEITLT_TRACING`: an OpenTelemetry span for each request: true or false (default). Where to
    is said by OpenTelemetry's own variables, such as `OTEL_EXPORTER_OTLP_ENDPOINT`."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """The settings that the variables in `environ` give.

        Raises:
            UsageError: a variable has a wrong value; the text names it and says what is allowed.
        """
        explain = _flag(environ, "DEITLT_EXPLAIN")
        triton = environ.get("DEITLT_TRITON", "")
        if explain and triton:
            raise UsageError(
                "DEITLT_EXPLAIN is true and DEITLT_TRITON is set; explanations are made here, not "
                "on Triton, so leave one of the two out"
            )
        paths = filter(None, environ.get("DEITLT_MODEL", "").split(os.pathsep))
        max_bytes = _number(environ, "DEITLT_MAX_BYTES", 20 * 2**20, 1, 2**30)
        # A body that comes compressed is held twice.
        least = 2 * max_bytes
        held = max(128 * 2**20, least)
        origins = (origin.strip() for origin in environ.get("DEITLT_CORS_ORIGINS", "").split(","))
        return cls(
            models=tuple(map(Path, paths)) or packed_bundles(),
            variant=environ.get("DEITLT_VARIANT", ""),
            explain=explain,
            device=_device(environ, "DEITLT_DEVICE"),
            triton=triton,
            triton_binary=_flag(environ, "DEITLT_TRITON_BINARY", default=True),
            num_workers=_number(environ, "DEITLT_WORKERS", 0, 0, 1024),
            max_batch=_number(environ, "DEITLT_MAX_BATCH", 0, 0, 1024),
            queue_size=_number(environ, "DEITLT_QUEUE_SIZE", 64, 0, 100_000),
            max_bytes=max_bytes,
            max_held_bytes=_number(environ, "DEITLT_MAX_HELD_BYTES", held, least, 2**40),
            max_pixels=_number(environ, "DEITLT_MAX_PIXELS", MAX_PIXELS, 1, PILLOW_MAX_PIXELS),
            fast_decode=_flag(environ, "DEITLT_FAST_DECODE"),
            max_images=_number(environ, "DEITLT_MAX_IMAGES", 64, 1, 10_000),
            timeout_s=_number(environ, "DEITLT_TIMEOUT_S", 30.0, 0.01, float(MAX_TIMEOUT_S)),
            drain_s=_number(environ, "DEITLT_DRAIN_S", 1.0, 0.0, 600.0),
            reload_s=_number(environ, "DEITLT_RELOAD_S", 0.0, 0.0, 86_400.0),
            api_key=_key(environ),
            cors_origins=tuple(filter(None, origins)),
            access_log=_flag(environ, "DEITLT_ACCESS_LOG"),
            tracing=_flag(environ, "DEITLT_TRACING"),
        )


def packed_bundles() -> tuple[Path, ...]:
    """The bundles that a Bento carries (`serving.to_bento`); elsewhere the package's own."""
    packed = sorted((Path(__file__).parent / PACKED).glob(f"*/{MANIFEST}"))
    return tuple(manifest.parent for manifest in packed) or (default_bundle(),)


def absolute_models(environ: Mapping[str, str]) -> str:
    """What `DEITLT_MODEL` says, with whole paths; links in them stay."""
    paths = filter(None, environ.get("DEITLT_MODEL", "").split(os.pathsep))
    return os.pathsep.join(str(Path(path).absolute()) for path in paths)


def misspelt(environ: Mapping[str, str]) -> Iterator[str]:
    """A line for each variable that looks like a setting and is none."""
    others = {"models": "DEITLT_MODEL", "num_workers": "DEITLT_WORKERS"}
    names = [others.get(f.name, f"DEITLT_{f.name.upper()}") for f in fields(Settings)]
    for name in sorted(environ.keys() - names):
        if name.startswith("DEITLT_") and not OF_KUBERNETES.fullmatch(name):
            meant = get_close_matches(name, names, n=1)
            hint = f"; did you mean {meant[0]}?" if meant else ""
            yield f"{name} is set, but there is no such setting{hint}"


def _key(environ: Mapping[str, str]) -> str:
    key = environ.get("DEITLT_API_KEY", "")
    if not (key.isascii() and key.isprintable() and key == key.strip()):
        # No client could send it: a line break at the end of a secret's file is the usual reason.
        raise UsageError("DEITLT_API_KEY must be printable ASCII, without blanks at either end")
    return key


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


def _flag(environ: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    text = environ.get(name) or str(default).lower()
    if text not in ("true", "false"):
        raise UsageError(f"{name} is {text!r}; it must be true or false")
    return text == "true"


def _device(environ: Mapping[str, str], name: str) -> Device:
    text = environ.get(name) or "auto"
    choices = get_args(Device)
    if text not in choices:
        raise UsageError(f"{name} is {text!r}; it must be one of {', '.join(choices)}")
    return cast(Device, text)
