"""`python -m export.to_bundle RUN --output BUNDLE --data VAL`: a verified, deployable bundle.

--variants adds forms of the model beside model.onnx:

```
fp16         for GPUs;  int8  for CPUs: smaller and faster, kept only if the accuracy gate passes
torchscript  for PyTorch, its legacy format;  pt2  its successor
average      the ONNX graph without the experts' own logits
nchw         the ONNX graph for normalised float32 images
explain      the ONNX graph that also gives where both experts looked
triton       a model repository for Triton in triton/
```
"""

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from deitlt.bundle import Bundle
from deitlt.errors import UsageError
from deitlt.program import OK, SOME_FAILED, OneLineParser, run_program, sigterm_raises
from export.bundle_writer import Options, export_bundle
from export.fuse import Attention
from export.gate import MAX_GROUP_LOSS_POINTS, MAX_LOSS_POINTS
from export.variants import INT8, OPTIONAL


def main(argv: Sequence[str] | None = None) -> int:
    """Export a student.

    Returns:
        0; 3 if a variant was refused by its gate and the bundle written without it; 2 with one
        line on what was wrong.
    """
    arguments = _parser().parse_args(argv)
    # What Pillow warns of, as of a broken EXIF block, is decoded all the same.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with sigterm_raises():
        return run_program("export", lambda: _export(arguments), output=arguments.output)


def _export(arguments: argparse.Namespace) -> int:
    if arguments.calibration is not None and INT8 not in arguments.variants:
        raise UsageError("--calibration is for int8; add --variants int8, or leave it out")
    if arguments.name is not None and "/" in arguments.name:
        raise UsageError(f"--name is {arguments.name!r}; URLs hold it, so leave the slash out")
    start = time.perf_counter()
    bundle = export_bundle(
        arguments.checkpoint,
        arguments.output,
        arguments.data,
        Options(
            variants=tuple(arguments.variants),
            split=arguments.split,
            name=arguments.name,
            attention=arguments.attention,
            calibration=arguments.calibration,
            max_images=arguments.max_images,
            max_loss_points=arguments.max_loss,
            max_group_loss_points=arguments.max_group_loss,
            weights=arguments.weights,
        ),
        overwrite=arguments.overwrite,
    )
    print(bundle.describe())
    print(f"exported in {time.perf_counter() - start:.1f} s")
    return _report_refused(bundle)


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m export.to_bundle",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="run folder or student.safetensors")
    parser.add_argument("--output", type=Path, required=True, help="bundle folder to write")
    parser.add_argument(
        "--data", type=Path, required=True, help="labelled images to verify on (folder or CSV)"
    )
    parser.add_argument("--split", choices=("train", "val", "test", "all"), default=None)
    parser.add_argument(
        "--max-images", type=int, default=None, help="verify on this many, spread over the classes"
    )
    parser.add_argument("--variants", nargs="+", choices=OPTIONAL, default=[], metavar="VARIANT")
    parser.add_argument(
        "--calibration",
        type=Path,
        default=None,
        help="training images for int8 (folder or CSV); default: the training split of --data",
    )
    parser.add_argument(
        "--max-loss",
        type=float,
        default=MAX_LOSS_POINTS,
        help=f"points of accuracy that fp16 and int8 may lose overall ({MAX_LOSS_POINTS})",
    )
    parser.add_argument(
        "--max-group-loss",
        type=float,
        default=MAX_GROUP_LOSS_POINTS,
        help=f"and in each group of classes ({MAX_GROUP_LOSS_POINTS})",
    )
    forms = [form for form in get_args(Attention) if form != "sdpa"]
    parser.add_argument(
        "--attention",
        choices=forms,
        default=None,
        help="ONNX: plain products (opset 20, for runtimes before ONNX Runtime 1.23) or the "
        "Attention operator (opset 23); default: the operator, in fp16 plain products",
    )
    parser.add_argument(
        "--weights",
        action="store_true",
        help="add the run's weights and learning curves, so that training.analyze takes the bundle",
    )
    parser.add_argument("--name", default=None, help="model name in answers; default: folder name")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    return parser


def _report_refused(bundle: Bundle) -> int:
    refused = bundle.manifest["refused"]
    for variant, reason in refused.items():
        print(f"export: {variant} was not written: {reason}", file=sys.stderr)
    return SOME_FAILED if refused else OK


if __name__ == "__main__":
    sys.exit(main())
