"""`python -m export.to_triton BUNDLE REPOSITORY`: a model repository for NVIDIA's Triton server.

```
REPOSITORY/<name>/
  config.pbtxt      inputs, outputs, batching, instances, warm-up, and what clients must know
  labels.txt        class names, for Triton's classification extension
  warmup/           a real image that is run before the model is called ready
  1/model.onnx      --backend onnxruntime: what stock Triton images run
  1/model.py        --backend python: serves 1/bundle/ through deitlt, and takes JPEG and PNG too
```
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import onnx

from deitlt.bundle import (
    FEATURES,
    FLOAT32,
    GOLDEN,
    INPUT,
    MANIFEST,
    MODEL,
    NORMALISED_INPUT,
    OUTPUTS,
    Artefact,
    Bundle,
    open_bundle,
)
from deitlt.errors import BundleError, UsageError
from deitlt.files import new_folder, restore_stranded, write_text
from deitlt.preprocess import Pixels, normalise
from deitlt.program import OneLineParser, run_program, sigterm_raises
from export.triton_config import (
    ATTENTION_ON_CPU,
    ATTENTION_OPSET,
    CONFIG,
    LABELS,
    SERVER_NEEDS,
    WARMUP_FILE,
    WARMUP_FOLDER,
    Backend,
    Contract,
    Device,
    ServerOptions,
    Tensor,
    bundle_versions_in,
    check_names,
    config_text,
    default_variant,
)

PYTHON_MODEL = Path(__file__).with_name("triton_python_model.py")
TRITON_TYPES = {
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write a model; returns 0, or 2 with one line on what was wrong."""
    arguments = _parser().parse_args(argv)
    with sigterm_raises():
        return run_program("to_triton", lambda: _export(arguments))


def _parser() -> OneLineParser:
    options = ServerOptions()
    parser = OneLineParser(
        prog="python -m export.to_triton",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle folder")
    parser.add_argument(
        "repository", type=Path, metavar="REPOSITORY", help="may hold other models already"
    )
    parser.add_argument(
        "--backend",
        choices=get_args(Backend),
        default=options.backend,
        help="onnxruntime (default): stock Triton; python: also takes encoded images, and needs "
        "deitlt in the server's Python",
    )
    parser.add_argument(
        "--variant",
        default=None,
        help=f"which form of the model (default {FLOAT32}; for a GPU fp16, if there is one)",
    )
    parser.add_argument("--name", default=None, help="model name; default: the bundle's")
    parser.add_argument(
        "--model-version", type=int, default=None, help="default 1; on an existing model: add it"
    )
    parser.add_argument(
        "--max-batch-size",
        type=int,
        default=options.max_batch_size,
        help=f"most images in a request or a batch (default {options.max_batch_size})",
    )
    parser.add_argument(
        "--device",
        choices=get_args(Device),
        default=options.device,
        help=f"where it will run (default {options.device})",
    )
    parser.add_argument(
        "--instances",
        type=int,
        default=None,
        help="copies that work at once (default 2 on a CPU, best is the server's cores; 1 a GPU)",
    )
    parser.add_argument(
        "--max-queue-delay-us",
        type=int,
        default=None,
        help="wait for others to share a batch (default 0 on a CPU, 2000 on a GPU)",
    )
    parser.add_argument(
        "--max-queue-size",
        type=int,
        default=None,
        help="requests that may wait; more are refused (default 64 on a CPU, 256 on a GPU)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model of that name")
    return parser


def _export(arguments: argparse.Namespace) -> None:
    bundle = open_bundle(arguments.bundle)
    model = export_triton(
        bundle,
        arguments.repository,
        ServerOptions(
            backend=arguments.backend,
            device=arguments.device,
            max_batch_size=arguments.max_batch_size,
            instances=arguments.instances,
            max_queue_delay_us=arguments.max_queue_delay_us,
            max_queue_size=arguments.max_queue_size,
        ),
        variant=arguments.variant,
        name=arguments.name,
        model_version=arguments.model_version,
        overwrite=arguments.overwrite,
    )
    print(f"wrote {model}; serve it with: tritonserver --model-repository {model.parent}")
    variant = arguments.variant or default_variant(bundle, arguments.device)
    opsets = bundle.manifest["artefacts"][variant].get("opset", {})
    if arguments.backend == "onnxruntime" and opsets.get("ai.onnx", 0) >= ATTENTION_OPSET:
        print(SERVER_NEEDS)
        if arguments.device == "gpu":
            print(ATTENTION_ON_CPU)


def export_triton(
    bundle: Bundle,
    repository: Path,
    options: ServerOptions = ServerOptions(),
    *,
    variant: str | None = None,
    name: str | None = None,
    model_version: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a bundle as a Triton model, whole or not at all; returns the model's folder.

    Args:
        bundle: what to serve.
        repository: folder of models, made if it is not there.
        options: backend, device, batching.
        variant: which form of the model; by default float32, for a GPU fp16 if there is one.
        name: the model's name; the bundle's by default.
        model_version: 1 by default. On an existing model the version is added to it.
        overwrite: replace an existing model with all its versions.

    Raises:
        DeitLTError: one of its kinds; the repository is as it was.
    """
    name = bundle.name if name is None else name
    check_names(name, bundle.classes)
    # Triton takes folders named by a number without leading zeros, kept in 64 bits, for versions.
    if model_version is not None and not 1 <= model_version < 2**63:
        raise UsageError(f"model version is {model_version}; it must be at least 1")
    artefact = bundle.artefact(variant or default_variant(bundle, options.device))
    contract = _contract(bundle, artefact, options.backend)
    model = repository.resolve() / name
    number = model_version or 1
    restore_stranded(model)
    if _is_taken(model) and not overwrite:
        if model_version is None:
            raise UsageError(
                f"{model}: exists already; pass --model-version N to add a version, "
                "or --overwrite to replace the model"
            )
        _add_version(model, number, bundle, artefact, contract, options)
        return model
    with new_folder(model, overwrite=overwrite) as folder:
        write_text(folder / CONFIG, config_text(name, contract, options, {number: bundle.version}))
        write_text(folder / LABELS, bundle.class_lines)
        (folder / WARMUP_FOLDER).mkdir()
        (folder / WARMUP_FOLDER / WARMUP_FILE).write_bytes(_golden_image(bundle, contract.image))
        (folder / str(number)).mkdir()
        _fill_version(folder / str(number), bundle, artefact, options.backend)
    return model


def _add_version(
    model: Path,
    number: int,
    bundle: Bundle,
    artefact: Artefact,
    contract: Contract,
    options: ServerOptions,
) -> None:
    """Add a version that differs in nothing that clients see."""
    if (model / str(number)).exists():
        raise UsageError(
            f"{model}: has a version {number} already; take another number, "
            "or pass --overwrite to replace the model"
        )
    labels = bundle.class_lines.encode()
    if not (model / LABELS).is_file() or (model / LABELS).read_bytes() != labels:
        raise UsageError(f"{model / LABELS}: other classes than the bundle's; pass another --name")
    old = (model / CONFIG).read_bytes().decode(errors="replace")
    versions = bundle_versions_in(old)
    expected = config_text(model.name, contract, options, versions)
    if old != expected:
        there = set(old.splitlines())
        line = next((line for line in expected.splitlines() if line not in there), "fewer lines")
        raise UsageError(
            f"{model / CONFIG}: does not agree with this export, which has {line.strip()!r}; "
            "pass the same options, or another --name"
        )
    with new_folder(model / str(number), overwrite=False) as folder:
        _fill_version(folder, bundle, artefact, options.backend)
    try:
        versions[number] = bundle.version
        write_text(model / CONFIG, config_text(model.name, contract, options, versions))
    except BaseException:
        shutil.rmtree(model / str(number))
        raise


def _fill_version(folder: Path, bundle: Bundle, artefact: Artefact, backend: Backend) -> None:
    if backend == "onnxruntime":
        shutil.copyfile(artefact.path, folder / MODEL)
        return
    shutil.copyfile(PYTHON_MODEL, folder / "model.py")
    for name in (MANIFEST, *bundle.manifest["files"]):
        target = folder / "bundle" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / name, target)


def _is_taken(model: Path) -> bool:
    """Whether a Triton model stands there.

    Raises:
        UsageError: something else does, or the repository is no folder of models.
    """
    repository = model.parent
    if repository.exists() and not repository.is_dir():
        raise UsageError(f"{repository}: is a file; name a folder for the models")
    if (repository / CONFIG).exists():
        raise UsageError(f"{repository}: is a Triton model; name the folder that is to hold models")
    for folder in (repository, *repository.parents):
        if (folder / MANIFEST).exists():  # which nothing would open any more
            where = "is a bundle" if folder == repository else f"is inside the bundle {folder}"
            raise UsageError(f"{repository}: {where}; name the folder that is to hold models")
    if not model.exists():
        return False
    if (model / CONFIG).is_file():
        return True
    if not model.is_dir() or any(model.iterdir()):
        raise UsageError(f"{model}: holds something else than a Triton model; pass another --name")
    return False


def _contract(bundle: Bundle, artefact: Artefact, backend: Backend) -> Contract:
    parameters = {
        "preprocess": json.dumps(bundle.preprocess.to_dict()),
        "classes_sha256": bundle.classes_sha256,
        "answers": "logits, not probabilities: the mean of both experts, CLS (head), DIST (tail)",
        "variant": artefact.variant,
    }
    side = bundle.preprocess.img_size
    pixels = image = Tensor(INPUT, "TYPE_UINT8", (side, side, 3))
    kinds = dict.fromkeys(OUTPUTS, "TYPE_FP32")
    if artefact.format == "onnx":
        image, kinds = _signature(artefact.path, pixels)
    elif backend == "onnxruntime":
        raise BundleError(
            f"{artefact.path}: is {artefact.format}, which ONNX Runtime does not run; "
            "pass --backend python, or an onnx --variant"
        )
    if backend == "python":  # deitlt normalises where the graph does not, and answers in float32
        image, kinds = pixels, dict.fromkeys(kinds, "TYPE_FP32")
    classes = (len(bundle.classes),)
    outputs = tuple(Tensor(name, kind, classes) for name, kind in kinds.items())
    return Contract(image, outputs, parameters)


def _signature(graph: Path, pixels: Tensor) -> tuple[Tensor, dict[str, str]]:
    """A graph's input, and the types of its outputs by name.

    Raises:
        BundleError: it takes neither `pixels` nor normalised images, or has other outputs.
    """
    loaded = onnx.load(str(graph), load_external_data=False).graph
    found = []
    for value in (*loaded.input, *loaded.output):
        tensor = value.type.tensor_type
        dims = tuple(d.dim_value for d in tensor.shape.dim)[1:]  # without the batch
        found.append(Tensor(value.name, TRITON_TYPES.get(tensor.elem_type, "other"), dims))
    image, given = found[0], found[len(loaded.input) :]
    # Features are not served: a graph that gives them is asked for its logits alone.
    outputs = {tensor.name: tensor.kind for tensor in given if tensor.name not in FEATURES}
    normalised = Tensor(NORMALISED_INPUT, "TYPE_FP32", (3, *pixels.dims[:2]))
    if (
        len(loaded.input) != 1
        or image not in (pixels, normalised)
        or tuple(outputs) not in (OUTPUTS, OUTPUTS[:1])
        or not set(outputs.values()) <= {"TYPE_FP32", "TYPE_FP16"}
    ):
        raise BundleError(
            f"{graph}: does not map {pixels.name} {list(pixels.dims)} or {normalised.name} "
            f"{list(normalised.dims)} to {', '.join(OUTPUTS)}; export the bundle again"
        )
    return image, outputs


def _golden_image(bundle: Bundle, image: Tensor) -> bytes:
    """The first golden image as Triton wants warm-up data: raw, in row-major order."""
    with np.load(bundle.path / GOLDEN, allow_pickle=False) as golden:
        pixels: Pixels = golden["pixels"][:1]
    if image.name == NORMALISED_INPUT:
        return normalise(pixels, bundle.preprocess).tobytes()
    return pixels.tobytes()


if __name__ == "__main__":
    sys.exit(main())
