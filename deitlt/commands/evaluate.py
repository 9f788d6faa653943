"""`deitlt evaluate`: how good a bundle is on labelled images, as figures, tables and pictures."""

import argparse
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from deitlt.commands.model_choice import add_model, find_bundle, open_model
from deitlt.errors import ImageError, UsageError
from deitlt.evaluation.answers import collect
from deitlt.evaluation.figures import judge
from deitlt.evaluation.folder import Origin, check_output, write_evaluation
from deitlt.evaluation.pictures import check_matplotlib
from deitlt.evaluation.tables import Names, summary
from deitlt.labelled import LabelledImages
from deitlt.metrics import MIN_CLAIMABLE_IMAGES
from deitlt.prediction import Prediction
from deitlt.program import OK, SOME_FAILED
from deitlt.run_splits import pick_split


def add_to(commands: Any) -> None:
    """Add the parser of this subcommand."""
    parser = commands.add_parser(
        "evaluate", help="measure a bundle on labelled images: figures, tables, plots"
    )
    add_model(parser)
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="labelled images: class folders, a CSV (image_path,label[,split]), or list files",
    )
    parser.add_argument(
        "--split",
        choices=("train", "val", "test", "all"),
        default=None,
        help="which images; default: test, else val (of the data it was trained on: what training "
        "held out), else all of data without marked splits",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder to write; new, empty or with --overwrite"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an evaluation that stands there"
    )
    parser.add_argument(
        "--predictions", action="store_true", help="also write predictions.csv, a row an image"
    )
    parser.add_argument("--no-plots", action="store_true", help="write no PNG files")
    parser.add_argument(
        "--min-images",
        type=int,
        default=MIN_CLAIMABLE_IMAGES,
        help="images a class needs for anything to be claimed of it (default %(default)s)",
    )
    parser.add_argument(
        "-j", "--workers", type=int, default=None, help="images in work at once; default: cores"
    )
    parser.set_defaults(run=run, when_interrupted="nothing was written")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate; returns 0, or 3 if some images could not be read."""
    # What Pillow warns of is decoded all the same or is listed; it names no file.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if arguments.min_images < 1:
        raise UsageError(f"--min-images is {arguments.min_images}; it must be at least 1")
    check_output(arguments.output, overwrite=arguments.overwrite)
    if not arguments.no_plots:
        check_matplotlib()
    bundle = find_bundle(arguments)
    split, images = pick_split(arguments.data, arguments.split, bundle, keep_missing=True)
    classifier = open_model(arguments, bundle)
    answers = collect(
        classifier,
        images,
        arguments.data,
        num_workers=arguments.workers,
        progress=lambda results: _shown(results, images),
    )
    figures = judge(answers, bundle.train_counts, arguments.min_images)
    names = Names.of(bundle.classes, bundle.train_counts)
    origin = Origin(
        bundle.name,
        bundle.version,
        "triton" if arguments.triton else arguments.variant,
        classifier.runtime.provider,
        str(arguments.data),
        split,
        bundle.preprocess.fast_decode,
    )
    write_evaluation(
        arguments.output,
        answers,
        figures,
        names,
        origin,
        plots=not arguments.no_plots,
        predictions=arguments.predictions,
        overwrite=arguments.overwrite,
    )
    print(f"{origin.name} on {origin.provider}: {len(answers.positions)} {origin.images}, in %")
    print(summary(answers, figures, names, origin.images))
    print(f"written to {arguments.output}", file=sys.stderr)
    return SOME_FAILED if answers.failures else OK


def _shown(
    results: Iterator[Prediction | ImageError], images: LabelledImages
) -> Iterator[Prediction | ImageError]:
    yield from tqdm(results, total=len(images), unit="image", disable=not sys.stderr.isatty())
