"""Which bundle a subcommand runs, in which form and where."""

import argparse
from pathlib import Path

from deitlt.bundle import Bundle, default_bundle, open_bundle
from deitlt.classifier import Classifier
from deitlt.errors import UsageError
from deitlt.runtimes import default_variant, open_runtime
from deitlt.triton_runtime import TritonRuntime


def add_model(parser: argparse.ArgumentParser, *flags: str) -> None:
    """Add the arguments that `find_bundle` and `open_model` read.

    Args:
        parser: of the subcommand.
        flags: what the bundle is given by, `--model`; without, by position.
    """
    where = "bundle folder; default: the packaged CIFAR-10 classes"
    if flags:
        parser.add_argument(*flags, dest="model", type=Path, default=None, help=where)
    else:
        parser.add_argument(
            "model", type=Path, nargs="?", default=None, metavar="BUNDLE", help=where
        )
    parser.add_argument(
        "--variant",
        default=None,
        help="form of the model, as deitlt inspect lists them; default: fp16 on a GPU where the "
        "bundle has it, else float32",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the model runs, unless it does on a Triton server",
    )
    parser.add_argument(
        "--triton",
        metavar="URL",
        default=None,
        help="grpc://host:port or http://host:port of a Triton server that runs the model",
    )
    parser.add_argument(
        "--fast-decode",
        action="store_true",
        help="decode large JPEGs at a fraction of their size and resize only what is kept: faster, "
        "with pixels, and so scores, a little different",
    )


def find_bundle(arguments: argparse.Namespace) -> Bundle:
    """The bundle that is named, or the packaged one; settles the variant that was left open.

    Raises:
        BundleError: it is missing, damaged or changed.
        UsageError: a variant of what a Triton server runs.
    """
    if arguments.triton is not None and arguments.variant is not None:
        raise UsageError(
            "--variant and --triton exclude each other; export.to_triton settles what a server runs"
        )
    bundle = open_bundle(arguments.model or default_bundle())
    if arguments.fast_decode:
        bundle = bundle.with_fast_decode()
    if arguments.variant is None and arguments.triton is None:
        arguments.variant = default_variant(bundle, arguments.device)
    return bundle


def open_model(arguments: argparse.Namespace, bundle: Bundle) -> Classifier:
    """The classifier of that bundle, here on one thread a call or on a Triton server."""
    if arguments.triton is not None:
        return Classifier(bundle, TritonRuntime(arguments.triton, bundle))
    runtime = open_runtime(bundle, arguments.variant, device=arguments.device, num_threads=1)
    return Classifier(bundle, runtime, variant=arguments.variant)
