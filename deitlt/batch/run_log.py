"""The record of a run: what was asked, of what, with which versions, and what came of it."""

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import deitlt
from deitlt.batch.output import Summary
from deitlt.bundle import Bundle

PACKAGES = ("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "pyarrow", "fsspec", "torch")


def run_record(
    *,
    command: list[str],
    bundle: Bundle,
    run: dict[str, Any],
    status: str,
    summary: Summary,
    num_before: int,
    started: datetime,
    seconds: float,
) -> dict[str, Any]:
    """The record as plain JSON types.

    Args:
        command: program and arguments.
        bundle: what was asked.
        run: what tells this run from others, as `Output` compares it.
        status: finished, interrupted or failed.
        summary: what has rows now.
        num_before: images of these that an earlier run had done.
        started: when it began.
        seconds: how long this run took, without loading the model.
    """
    num_done = summary.num_images - num_before
    return {
        "status": status,
        "command": command,
        "started": started.astimezone(UTC).isoformat(timespec="seconds"),
        "bundle": {"name": bundle.name, "version": bundle.version, "path": str(bundle.path)},
        "run": run,
        "files": {name: entry["sha256"] for name, entry in bundle.manifest["files"].items()},
        "num_images": summary.num_images,
        "num_images_before": num_before,
        "num_failed": summary.num_failed,
        "errors": dict(summary.errors),
        "seconds": round(seconds, 3),
        "images_per_s": round(num_done / seconds, 3) if seconds else None,
        "versions": {"deitlt": deitlt.__version__, "python": platform.python_version()}
        | _installed(),
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
    }


def _installed() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
