"""`python -m export.batch_benchmark`: how fast batch prediction is on this machine's cores.

Each part compares ways that do the same pictures in turns within one run:

a  the model is the bottleneck: the pipeline against the bare runtime on arrays in memory, in the
   best of four ways to call it;
b  decoding is: the pipeline with a tiny model against bare Pillow, which decodes and resizes alone;
c  timm's way (its transform, a DataLoader, PyTorch) against ours in float32 and int8;
d  memory of `deitlt predict` over many rows of small pictures.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from deitlt.cores import usable_cores
from deitlt.errors import UsageError
from deitlt.files import write_json
from deitlt.labelled import image_files
from deitlt.measuring import Steal, describe, format_steal, hardware, versions
from deitlt.preprocess import load_pixels
from deitlt.program import OneLineParser, run_program, typed
from deitlt.student import StudentConfig
from export.batch_benchmark.memory import Memory, watch
from export.batch_benchmark.photos import IMAGENET_SIZES, WEB_SIZES, write_photos
from export.batch_benchmark.subjects import Contestant, make
from export.batch_benchmark.turns import Pace, take_turns
from export.batch_benchmark.ways import (
    Way,
    bare_pillow,
    bare_runtime,
    pipeline,
    timm_inference,
)

PROGRAM = "export.batch_benchmark"
PACKAGES = ("numpy", "pillow", "torch", "timm", "onnxruntime", "onnxruntime-gpu")
PIPELINE = "pipeline"
FAST = "pipeline, fast decode"
LEGEND = """\
images/s: median over rounds. x: of the part's first row in the same round, median. cpu: processor
time of an image, ms, of all processes; x cpu: the ratio of it, which a crowd on the cores disturbs
less. Each turn starts cold, and is timed once its stages are full."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure.

    Returns:
        0, whether or not targets are met; 2 with one line on what was wrong.
    """
    arguments = _parser().parse_args(argv)
    command = typed(PROGRAM, argv)

    def body() -> None:
        benchmark(arguments, command)

    return run_program(PROGRAM, body, output=arguments.json)


def benchmark(arguments: argparse.Namespace, command: str) -> None:
    """Measure the parts asked for, print their tables and write the JSON file.

    Raises:
        DeitLTError: one of its kinds; the text is for the user.
    """
    for name in ("rounds", "images", "rows"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UsageError(f"--{name} is {value}; it must be at least 1")
    about = {
        "command": command,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions(PACKAGES),
    }
    print(f"{describe(about)}\n{LEGEND}")
    steal, found = Steal(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        run = _Run(arguments, Path(folder))
        for part in arguments.parts:
            found[part] = getattr(run, f"part_{part}")()
    print(f"\n{format_steal(steal.share())}")
    if arguments.json is not None:
        write_json(arguments.json, {**about, "steal": steal.share(), "parts": found})


class _Run:
    """The parts of one run, with their students and pictures."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self._quick, self._folder = arguments.quick, folder
        self._rounds = arguments.rounds or (1 if self._quick else 5)
        self._images, self._rows = arguments.images, arguments.rows
        self._cores = usable_cores()
        number = 12 if self._quick else 96
        self._given: list[Path] | None = None
        if arguments.data is not None:
            files = list(image_files(arguments.data))[: 4 * number]
            if not files:
                raise UsageError(f"{arguments.data}: there are no images in it")
            self._photos = self._web_photos = self._given = files
        else:
            self._photos = write_photos(folder / "imagenet", number, IMAGENET_SIZES)
            self._web_photos = write_photos(folder / "web", number, WEB_SIZES)
        self._large: Contestant | None = None
        self._tiny: Contestant | None = None

    def part_a(self) -> dict[str, Any]:
        """The model is the bottleneck."""
        large = self._make_large()
        pixels = np.stack([load_pixels(path, large.spec) for path in self._photos])
        one, all_cores = large.runtime(), large.runtime(threads=self._cores)
        ways = {
            f"bare runtime, {self._cores} calls of 1": bare_runtime(one, pixels, 1, self._cores),
            f"bare runtime, {self._cores} calls of 2": bare_runtime(one, pixels, 2, self._cores),
            f"bare runtime, {self._cores} calls of 4": bare_runtime(one, pixels, 4, self._cores),
            f"bare runtime, 1 call of 8 on {self._cores} cores": bare_runtime(
                all_cores, pixels, 8, 1
            ),
            PIPELINE: pipeline(large.classifier(), self._photos, self._cores),
            FAST: pipeline(large.classifier(fast_decode=True), self._photos, self._cores),
        }
        paces = self._turns(ways, warm_up=64, images=192)
        bare = [name for name in ways if name not in (PIPELINE, FAST)]
        best = max(bare, key=lambda name: paces[name].rate)
        order = [best, *(name for name in ways if name != best)]
        return self._show("a", large.name, {name: paces[name] for name in order})

    def part_b(self) -> dict[str, Any]:
        """Decoding is the bottleneck."""
        tiny = self._make_tiny()
        ways = {
            f"bare Pillow, {self._cores} processes": bare_pillow(
                self._web_photos, tiny.spec.img_size, self._cores
            ),
            PIPELINE: pipeline(tiny.classifier(), self._web_photos, self._cores),
            FAST: pipeline(tiny.classifier(fast_decode=True), self._web_photos, self._cores),
        }
        return self._show("b", tiny.name, self._turns(ways, warm_up=200, images=400))

    def part_c(self) -> dict[str, Any]:
        """Against timm."""
        large, paths = self._make_large(), self._photos
        ways = {
            "timm's inference": timm_inference(large.model, large.spec, paths, 32, self._cores),
            f"{PIPELINE}, float32": pipeline(large.classifier(), paths, self._cores),
            f"{PIPELINE}, int8": pipeline(large.classifier("int8"), paths, self._cores),
        }
        return self._show("c", large.name, self._turns(ways, warm_up=64, images=192))

    def part_d(self) -> dict[str, Any]:
        """Memory."""
        tiny = self._make_tiny()
        num_rows = self._rows or (200 if self._quick else 100_000)
        found = watch(tiny.bundle.path, self._small_photos(), num_rows, self._folder / "d")
        print(_memory_text(found, tiny.name))
        return {**vars(found), "flat": found.flat}

    def _small_photos(self) -> list[Path]:
        """Pictures that decode at once, so that a million do not take a night."""
        if self._given is not None:
            return self._given
        return write_photos(self._folder / "small", 64, [(32, 32)])

    def _make_large(self) -> Contestant:
        if self._large is None:
            large = StudentConfig(size="small", img_size=224, patch_size=16, num_classes=1000)
            self._large = make(self._small(large), self._folder / "large", int8=True)
        return self._large

    def _make_tiny(self) -> Contestant:
        if self._tiny is None:
            tiny = StudentConfig(size="pico", img_size=32, patch_size=8, num_classes=100)
            self._tiny = make(self._small(tiny), self._folder / "tiny")
        return self._tiny

    def _small(self, config: StudentConfig) -> StudentConfig:
        quick = StudentConfig(size="pico", img_size=16, patch_size=8, num_classes=10)
        return quick if self._quick else config

    def _turns(self, ways: Mapping[str, Way], *, warm_up: int, images: int) -> dict[str, Pace]:
        warm_up, images = (8, 16) if self._quick else (warm_up, self._images or images)
        return take_turns(ways, rounds=self._rounds, warm_up=warm_up, images=images)

    def _show(self, part: str, student: str, paces: Mapping[str, Pace]) -> dict[str, Any]:
        base = next(iter(paces.values()))
        width = max(map(len, paces))
        print(f"\n{part}  {student}, random weights; {self._rounds} rounds")
        print(f"   {'':{width}}  images/s      x     cpu  x cpu")
        rows = {}
        for name, pace in paces.items():
            row = {
                "images_per_s": pace.rate,
                "ratio": pace.times(base),
                "cpu_ms": pace.cpu,
                "cpu_ratio": pace.cpu_times(base),
            }
            cpu_ratio = "    -" if row["cpu_ratio"] is None else f"{row['cpu_ratio']:5.3f}"
            figures = f"{pace.rate:8.1f}  {row['ratio']:5.3f} {pace.cpu:7.2f}  {cpu_ratio}"
            print(f"   {name:{width}}  {figures}", flush=True)
            rows[name] = {**row, "rounds": vars(pace)}
        return rows


def _memory_text(found: Memory, student: str) -> str:
    samples = ", ".join(
        f"{rows:,}: {mib:.0f}" for rows, mib in zip(found.rows, found.mib, strict=True)
    )
    verdict = {True: "flat", False: "NOT flat", None: "too short to say"}[found.flat]
    rate = found.rows[-1] / found.seconds
    return (
        f"\nd  {student}; resident MiB of all processes after so many rows\n   {samples}\n"
        f"   {verdict}; {rate:.0f} images/s"
    )


def _parser() -> OneLineParser:
    parser = OneLineParser(prog=f"python -m {PROGRAM}", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=tuple("abcd"), default=list("abcd"))
    parser.add_argument("--rounds", type=int, default=None, help="turns of each way (5)")
    parser.add_argument(
        "--images", type=int, default=None, help="timed in a turn (192 in a and c, 400 in b)"
    )
    parser.add_argument("--rows", type=int, default=None, help="of part d (100,000)")
    parser.add_argument(
        "--data", type=Path, default=None, help="folder of pictures, instead of made-up ones"
    )
    parser.add_argument("--json", type=Path, default=None, help="file for all figures")
    parser.add_argument(
        "--quick", action="store_true", help="tiny students: shows that the program works"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
