"""The `deitlt` command: `predict` a folder of images, `inspect` a bundle."""

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from deitlt import __version__
from deitlt.batch import check_output, find_sources, predict_iter, write_csv
from deitlt.bundle import FLOAT32, default_bundle, open_bundle
from deitlt.classifier import Classifier, Options, load
from deitlt.engine import Engine
from deitlt.errors import DeitLTError, RuntimeUnavailable
from deitlt.golden import check_golden
from deitlt.triton_runtime import TritonRuntime

OK, WRONG_USE, SOME_FAILED = 0, 2, 3
INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        0 if all went well, 2 for wrong use, 3 if some images could not be classified or
        some artefacts not be checked, 130 after
        Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except DeitLTError as error:
        print(f"deitlt: {error}", file=sys.stderr)
        return WRONG_USE
    except OSError as error:
        print(f"deitlt: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        print(f"deitlt: interrupted; {arguments.when_interrupted}", file=sys.stderr)
        return INTERRUPTED
    return code


class OneLineParser(argparse.ArgumentParser):
    """A parser that answers wrong use with one line instead of the whole usage text."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(WRONG_USE, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="deitlt", description="Long-tailed image classification with a DeiT-LT bundle."
    )
    parser.add_argument("--version", action="version", version=f"deitlt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    predict = commands.add_parser("predict", help="classify files and folders into a CSV")
    predict.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="file, folder or glob pattern; rows bear names relative to a single folder, and the "
        "whole path as given where there are several inputs",
    )
    predict.add_argument("--output", type=Path, required=True, help="the .csv file to write")
    predict.add_argument(
        "--model", type=Path, default=None, help="bundle folder; default: the packaged digits"
    )
    predict.add_argument(
        "--variant", default=FLOAT32, help="form of the model, as deitlt inspect lists them"
    )
    predict.add_argument("--topk", type=int, default=1, help="classes listed an image (default 1)")
    predict.add_argument(
        "--experts", action="store_true", help="add what CLS and DIST say on their own"
    )
    predict.add_argument(
        "--blend", type=float, default=0.5, help="weight of CLS against DIST (default 0.5)"
    )
    predict.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    predict.add_argument(
        "--triton",
        metavar="URL",
        default=None,
        help="grpc://host:port or http://host:port of a Triton server that runs the model",
    )
    predict.add_argument(
        "-j", "--workers", type=int, default=None, help="images in work at once; default: cores"
    )
    predict.add_argument("--overwrite", action="store_true", help="replace an existing output")
    predict.set_defaults(
        run=_predict,
        when_interrupted="the output is only written when complete, "
        "finished rows are in the .partial file beside it",
    )

    inspect = commands.add_parser("inspect", help="say what is in a bundle")
    inspect.add_argument("model", type=Path, nargs="?", default=None, help="bundle folder")
    inspect.add_argument(
        "--verify",
        action="store_true",
        help="run the golden images through every artefact and compare with torch",
    )
    inspect.add_argument("--variant", default=None, help="verify this artefact alone")
    inspect.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    inspect.set_defaults(run=_inspect, when_interrupted="nothing was written")
    return parser


def _predict(arguments: argparse.Namespace) -> int:
    # What Pillow warns of is decoded all the same or gets an error in its row; it names no file.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    options = Options(arguments.topk, arguments.experts, arguments.blend)
    check_output(arguments.output, overwrite=arguments.overwrite)
    sources = find_sources(arguments.inputs)
    classifier = _open(arguments)
    start = time.perf_counter()
    with Engine(classifier, num_workers=arguments.workers) as engine:
        results = tqdm(
            predict_iter(engine, sources, options),
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


def _inspect(arguments: argparse.Namespace) -> int:
    bundle = open_bundle(arguments.model or default_bundle())
    print(bundle.describe())
    if not arguments.verify:
        return OK
    code = OK
    for variant in [arguments.variant] if arguments.variant else bundle.variants:
        try:
            print(check_golden(bundle, variant, device=arguments.device))
        except RuntimeUnavailable as error:
            if arguments.variant:
                raise
            print(f"deitlt: {variant}: not checked: {error}", file=sys.stderr)
            code = SOME_FAILED
    return code


if __name__ == "__main__":
    sys.exit(main())
