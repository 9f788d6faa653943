"""`deitlt predict`: classify files, folders, lists, archives and URLs into a table."""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any

from tqdm import tqdm

from deitlt import __version__
from deitlt.batch.inference import choose_plan
from deitlt.batch.output import Output, check_output
from deitlt.batch.pipeline import predict_iter
from deitlt.batch.ray_engine import predict_with_ray
from deitlt.batch.remote_files import is_url
from deitlt.batch.rows import Layout
from deitlt.batch.run_log import run_record
from deitlt.batch.sources import Source, count_sources, find_sources
from deitlt.bundle import FLOAT32, Bundle
from deitlt.commands.model_choice import add_model, find_bundle, open_model
from deitlt.errors import DeitLTError, ImageError, UsageError
from deitlt.files import write_json
from deitlt.prediction import Options, Prediction
from deitlt.program import OK, SOME_FAILED, Terminated

Results = Generator[tuple[Source, Prediction | ImageError], None, None]


@dataclass(frozen=True)
class _Engine:
    """What classifies.

    Attributes:
        bundle: the model.
        provider: where it runs.
        batch_size: finds how many images a call of the model takes; None lets others choose.
        predict: classifies sources, after a number of earlier ones, in calls of a batch size.
    """

    bundle: Bundle
    provider: str
    batch_size: Callable[[], int | None]
    predict: Callable[[Iterator[Source], int, int | None], Results]


def add_to(commands: Any) -> None:
    """Add the parser of this subcommand."""
    parser = commands.add_parser("predict", help="classify images into a CSV, JSONL or Parquet")
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="file, folder (recursive, hidden entries left out), glob pattern, .csv with a column "
        "image_path, .tar or compressed tar, URL (s3://, https://, ...), or - for a list on "
        "standard input; rows bear names relative to a single folder, and the whole path as given "
        "where there are several inputs",
    )
    parser.add_argument(
        "--filepaths",
        action="append",
        default=[],
        metavar="FILE",
        help="a .csv with a column image_path, or a text with a path a line, relative to where it "
        "lies; - for standard input",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="the .csv, .jsonl or .parquet file to write"
    )
    parser.add_argument("--overwrite", action="store_true", help="start anew, replace an output")
    parser.add_argument("--log", type=Path, default=None, help="a .json file: record of the run")
    _add_columns(parser)
    _add_model(parser)
    parser.set_defaults(
        run=run,
        when_interrupted="finished rows are kept in the .partial folder beside the output; "
        "the same command goes on (without --overwrite)",
    )


def _add_columns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topk", type=int, default=1, help="classes listed an image (default 1)")
    parser.add_argument(
        "--wide", action="store_true", help="one row an image: label_1, prob_1, label_2, ..."
    )
    parser.add_argument(
        "--experts", action="store_true", help="add what CLS and DIST say on their own"
    )
    parser.add_argument(
        "--blend", type=float, default=0.5, help="weight of CLS against DIST (default 0.5)"
    )
    parser.add_argument(
        "--output-type",
        choices=("prob", "logit"),
        default="prob",
        help="probabilities, or the scores before softmax in columns called logit",
    )
    parser.add_argument(
        "--embeddings",
        action="store_true",
        help="add the features that CLS and DIST read, a list of numbers each; needs .parquet",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "--model")
    parser.add_argument(
        "-j",
        "--workers",
        type=int,
        default=None,
        help="processes that decode, and calls of the model at once on a CPU; 0 decodes in "
        "threads; default: cores (on Ray: actors)",
    )
    parser.add_argument(
        "-b",
        "--batch-size",
        type=int,
        default=None,
        help="images a call of the model; default: as many as suit a core on a CPU, found by "
        "trying on a GPU",
    )
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="this machine, or a Ray cluster"
    )


def run(arguments: argparse.Namespace) -> int:
    """Classify; returns 0, or 3 if some images could not be classified."""
    # What Pillow warns of is decoded all the same or gets an error in its row; it names no file.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    options = Options(
        arguments.topk,
        arguments.experts,
        arguments.blend,
        logits=arguments.output_type == "logit",
        embeddings=arguments.embeddings,
    )
    _check(arguments)
    sources = find_sources(arguments.inputs, arguments.filepaths)
    engine = _engine(arguments, options)
    layout = Layout(
        top_k=min(options.top_k, len(engine.bundle.classes)),
        wide=arguments.wide,
        experts=options.experts,
        logits=options.logits,
        embeddings=options.embeddings,
    )
    output = Output(
        arguments.output,
        layout,
        model_version=engine.bundle.version,
        fingerprint=_fingerprint(arguments, engine, layout),
        overwrite=arguments.overwrite,
    )
    return _Run(arguments, engine, output).run(sources)


class _Run:
    """One run, from the first source without rows to the summary."""

    def __init__(self, arguments: argparse.Namespace, engine: _Engine, output: Output) -> None:
        self._arguments = arguments
        self._engine = engine
        self._output = output
        self._num_before = 0
        self._started = datetime.now(UTC)
        self._start = time.perf_counter()

    def run(self, sources: Iterator[Source]) -> int:
        """Classify what has no rows yet, and say what came of it; gives the exit status."""
        status = "refused"
        try:
            with self._output:
                status = "failed"
                self._num_before = self._output.summary.num_images
                if not self._output.is_complete:
                    self._classify(self._output.remaining(sources))
                self._output.finish()
            status = "finished"
            print(self._summary(), file=sys.stderr)
        except (KeyboardInterrupt, Terminated):
            status = "interrupted"
            raise
        finally:
            # The log of a refused command would take the place of the run's own.
            if self._arguments.log is not None and status != "refused":
                self._write_log(status)
        return SOME_FAILED if self._output.summary.num_failed else OK

    def _classify(self, sources: Iterator[Source]) -> None:
        num_failed = self._output.summary.num_failed
        # Tried again on a GPU another may be found, and last digits depend on it.
        self._output.batch_size = self._output.batch_size or self._engine.batch_size()
        results = self._engine.predict(sources, self._num_before, self._output.batch_size)
        with closing(results), self._progress() as progress:  # closing ends the workers
            for source, result in results:
                self._output.add(source, result)
                if isinstance(result, ImageError):
                    num_failed += 1
                    progress.set_postfix(failed=num_failed, refresh=False)
                progress.update()

    def _progress(self) -> "tqdm[Any]":
        """A bar with images/s and the time left; silent where nobody looks at a terminal."""
        is_quiet = sys.stderr is None or not sys.stderr.isatty()
        progress = tqdm(initial=self._num_before, unit="image", disable=is_quiet)
        if not is_quiet:

            def count() -> None:
                with suppress(DeitLTError, OSError):  # of which the run itself will speak
                    progress.total = count_sources(
                        self._arguments.inputs, self._arguments.filepaths
                    )

            Thread(target=count, daemon=True).start()  # a large tree takes its time
        return progress

    def _summary(self) -> str:
        summary = self._output.summary
        seconds = time.perf_counter() - self._start
        num_done = summary.num_images - self._num_before
        earlier = f" ({self._num_before} of them earlier)" if self._num_before else ""
        failed = ", ".join(f"{code} {count}" for code, count in sorted(summary.errors.items()))
        return (
            f"{summary.num_images} images{earlier} in {seconds:.1f} s "
            f"({num_done / seconds:.0f} images/s, {self._engine.provider}), "
            f"{summary.num_failed} failed{f' ({failed})' if failed else ''}; "
            f"rows in {self._arguments.output}"
        )

    def _write_log(self, status: str) -> None:
        record = run_record(
            command=self._arguments.command,
            bundle=self._engine.bundle,
            run=self._output.fingerprint,
            status=status,
            summary=self._output.summary,
            num_before=self._num_before,
            started=self._started,
            seconds=time.perf_counter() - self._start,
        )
        write_json(self._arguments.log, record)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be meant, before anything is loaded or written."""
    check_output(arguments.output, overwrite=arguments.overwrite)
    if not arguments.inputs and not arguments.filepaths:
        raise UsageError("nothing to classify; name an INPUT, or a list with --filepaths")
    if arguments.embeddings and arguments.output.suffix.lower() != ".parquet":
        raise UsageError(f"{arguments.output}: --embeddings needs a .parquet output")
    if arguments.engine == "ray" and arguments.triton is not None:
        raise UsageError("--triton and --engine ray exclude each other; leave one out")
    if (log := arguments.log) is not None:
        if log.suffix.lower() != ".json":
            raise UsageError(f"{log}: the log must be a .json file")
        if not log.parent.is_dir():
            raise UsageError(f"{log.parent}: there is no such folder for the log")
        if log.is_dir():
            raise UsageError(f"{log}: is a folder; name a file for the log")
        if not os.access(log.parent, os.W_OK):
            raise UsageError(f"{log.parent}: the log cannot be written there")


def _fingerprint(arguments: argparse.Namespace, engine: _Engine, layout: Layout) -> dict[str, Any]:
    """What must be the same for two runs to have the same rows; the names are those of flags."""
    items = [*arguments.inputs, *arguments.filepaths]
    is_relative = not all(is_url(item) or os.path.isabs(item) for item in items)
    return {
        "deitlt": __version__,
        "bundle": engine.bundle.manifest["sha256"],
        "variant": arguments.variant,
        "device": engine.provider,
        "fast-decode": engine.bundle.preprocess.fast_decode,
        "batch-size": arguments.batch_size,
        "topk": layout.top_k,
        "experts": layout.experts,
        "blend": arguments.blend,
        "output-type": arguments.output_type,
        "wide": layout.wide,
        "embeddings": layout.embeddings,
        "columns": list(layout.columns),
        "inputs": arguments.inputs,
        "filepaths": arguments.filepaths,
        "folder": os.getcwd() if is_relative else None,
    }


def _engine(arguments: argparse.Namespace, options: Options) -> _Engine:
    asked, workers = arguments.batch_size, arguments.workers
    if arguments.engine == "ray":  # what the actors' machines have is not known here
        arguments.variant = arguments.variant or FLOAT32
    bundle = find_bundle(arguments)
    if arguments.engine == "ray":
        model = {
            "variant": arguments.variant,
            "device": arguments.device,
            "fast_decode": arguments.fast_decode,
            "num_workers": workers,
        }
        return _Engine(
            bundle,
            "ray",
            lambda: asked,
            lambda sources, first, size: predict_with_ray(
                bundle.path, sources, options, first=first, batch_size=size, **model
            ),
        )
    classifier = open_model(arguments, bundle)
    return _Engine(
        bundle,
        classifier.runtime.provider,
        lambda: choose_plan(classifier, asked, workers).batch_size,
        lambda sources, first, size: predict_iter(
            classifier, sources, options, first=first, batch_size=size, num_workers=workers
        ),
    )
