"""Whether a model on a Triton server, or on another KServe v2 server, is a bundle's."""

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from deitlt.bundle import INPUT, MODEL, OUTPUTS, Bundle
from deitlt.errors import RuntimeUnavailable
from deitlt.preprocess import PreprocessSpec

logger = logging.getLogger("deitlt.runtimes")

FLOATS = ("FP32", "FP16")
VERSION_KEY = re.compile(r"bundle_version_(\d+)")


def check_parameters(
    place: str, bundle: Bundle, parameters: Mapping[str, Any], version: str
) -> None:
    """Refuse a model that `export.to_triton` wrote for other images or classes.

    One of another export, whose weights may differ, is taken: a server may be ahead of its clients
    or behind them. As answers bear the version of the bundle here, a warning says so.

    Args:
        place: of the model, for the error.
        bundle: what it should be.
        parameters: of its config.
        version: of the model; empty for the newest, which `export.to_triton` has served.

    Raises:
        RuntimeUnavailable: it is another bundle's.
    """
    stated = {key: value.get("string_value") for key, value in parameters.items()}
    if stated.get("classes_sha256", bundle.classes_sha256) != bundle.classes_sha256:
        raise RuntimeUnavailable(f"{place} has other classes than the bundle {bundle.path}")
    fields = stated.get("preprocess")
    if fields and PreprocessSpec.from_dict(json.loads(fields)) != bundle.preprocess:
        raise RuntimeUnavailable(f"{place} prepares images otherwise than the bundle {bundle.path}")
    exported = {m[1]: str(stated[key]) for key in stated if (m := VERSION_KEY.fullmatch(key))}
    served = exported.get(version or max(exported, key=int, default=""), bundle.version)
    # A repository inside a bundle is written before that has a version, and bears its graph's.
    if served not in (bundle.version, bundle.manifest["files"][MODEL]["sha256"][: len(served)]):
        logger.warning(
            "%s was exported from version %s of the bundle; its answers bear version %s of %s",
            place,
            served,
            bundle.version,
            bundle.path,
        )


def check_tensors(place: str, bundle: Bundle, metadata: Mapping[str, Any]) -> list[str]:
    """The names of the outputs there are; the mean of both experts is one of them.

    Args:
        place: of the model, for the error.
        bundle: what it should be.
        metadata: of the model.

    Raises:
        RuntimeUnavailable: it takes or gives something else than the bundle's.
    """
    size = bundle.preprocess.img_size
    # Type and shape by name; gRPC's numbers come as text.
    inputs, outputs = (
        {t["name"]: f"{t['datatype']} {[int(n) for n in t['shape']]}" for t in tensors}
        for tensors in (metadata.get("inputs", ()), metadata.get("outputs", ()))
    )
    names = [name for name in OUTPUTS if name in outputs] or [OUTPUTS[0]]
    wanted = {name: [f"{t} [-1, {len(bundle.classes)}]" for t in FLOATS] for name in names}
    wanted[INPUT] = [f"UINT8 [-1, {size}, {size}, 3]"]
    for name, kinds in wanted.items():
        there, verb = (inputs, "takes") if name == INPUT else (outputs, "gives")
        if there.get(name) not in kinds:
            stated = ", ".join(f"{n} {kind}" for n, kind in there.items()) or "nothing"
            raise RuntimeUnavailable(f"{place} {verb} {stated}; the bundle's has {name} {kinds[0]}")
    return names
