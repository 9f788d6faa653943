"""`deitlt predict`: classify files and folders into a table."""

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from tqdm import tqdm

from deitlt.batch.output import check_output, write_csv
from deitlt.batch.pipeline import predict_iter
from deitlt.batch.sources import find_sources
from deitlt.bundle import FLOAT32, default_bundle, open_bundle
from deitlt.classifier import Classifier, Options, load
from deitlt.program import OK, SOME_FAILED
from deitlt.triton_runtime import TritonRuntime


def add_to(commands: Any) -> None:
    """Add the parser of this subcommand."""
    parser = commands.add_parser("predict", help="classify files and folders into a CSV")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="file, folder or glob pattern; rows bear names relative to a single folder, and the "
        "whole path as given where there are several inputs",
    )
    parser.add_argument("--output", type=Path, required=True, help="the .csv file to write")
    parser.add_argument(
        "--model", type=Path, default=None, help="bundle folder; default: the packaged digits"
    )
    parser.add_argument(
        "--variant", default=FLOAT32, help="form of the model, as deitlt inspect lists them"
    )
    parser.add_argument("--topk", type=int, default=1, help="classes listed an image (default 1)")
    parser.add_argument(
        "--experts", action="store_true", help="add what CLS and DIST say on their own"
    )
    parser.add_argument(
        "--blend", type=float, default=0.5, help="weight of CLS against DIST (default 0.5)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--triton",
        metavar="URL",
        default=None,
        help="grpc://host:port or http://host:port of a Triton server that runs the model",
    )
    parser.add_argument(
        "-j", "--workers", type=int, default=None, help="images in work at once; default: cores"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.set_defaults(
        run=run,
        when_interrupted="the output is only written when complete, "
        "finished rows are in the .partial file beside it",
    )


def run(arguments: argparse.Namespace) -> int:
    """Classify; returns 0, or 3 if some images could not be classified."""
    # What Pillow warns of is decoded all the same or gets an error in its row; it names no file.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    options = Options(arguments.topk, arguments.experts, arguments.blend)
    check_output(arguments.output, overwrite=arguments.overwrite)
    sources = find_sources(arguments.inputs)
    classifier = _open(arguments)
    start = time.perf_counter()
    results = tqdm(
        predict_iter(classifier, sources, options, num_workers=arguments.workers),
        total=len(sources),
        unit="image",
        disable=not sys.stderr.isatty(),
    )
    summary = write_csv(
        arguments.output,
        results,
        experts=options.experts,
        model_version=classifier.bundle.version,
        overwrite=arguments.overwrite,
    )
    seconds = time.perf_counter() - start
    print(
        f"{summary.num_images} images in {seconds:.1f} s "
        f"({summary.num_images / seconds:.0f} images/s, {classifier.runtime.provider}), "
        f"{summary.num_failed} failed; rows in {arguments.output}",
        file=sys.stderr,
    )
    return SOME_FAILED if summary.num_failed else OK


def _open(arguments: argparse.Namespace) -> Classifier:
    if arguments.triton is None:
        return load(
            arguments.model, variant=arguments.variant, device=arguments.device, num_threads=1
        )
    bundle = open_bundle(arguments.model or default_bundle())
    return Classifier(bundle, TritonRuntime(arguments.triton, bundle))
