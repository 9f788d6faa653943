"""`python -m export.to_bundle RUN --output BUNDLE --data VAL`: a verified, deployable bundle."""

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from deitlt import __version__
from deitlt.bundle import GOLDEN, MODEL, OUTPUTS, Bundle, check_free, write_bundle
from deitlt.cli import OneLineParser
from deitlt.errors import DataError, DeitLTError
from deitlt.files import write_json, write_text
from deitlt.golden import write_golden
from deitlt.labelled import LabelledImages, read_labelled
from deitlt.longtail import IntArray, all_groups
from deitlt.metrics import Report, per_class_csv, report
from deitlt.preprocess import load_batches
from deitlt.runtimes import OnnxRuntime, Outputs, Runtime
from deitlt.student import load_student
from deitlt.weights import Card
from export.fuse import FusedStudent
from export.model_card import model_card
from export.parity import Parity, check_parity, torch_outputs
from export.to_onnx import OPSET, export_onnx

NUM_GOLDEN = 8
# Images compared with torch at every batch size; accuracy is taken on all of them.
NUM_PARITY = 256
BATCH = 32
# Split of the data that figures are taken on: the first of these that is there.
SPLITS = ("test", "val", "all")


def main(argv: Sequence[str] | None = None) -> int:
    """Export a student; returns 0, or 2 with one line on what was wrong."""
    parser = OneLineParser(prog="python -m export.to_bundle", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="run folder or student.safetensors")
    parser.add_argument("--output", type=Path, required=True, help="bundle folder to write")
    parser.add_argument(
        "--data", type=Path, required=True, help="labelled images to verify on (folder or CSV)"
    )
    parser.add_argument("--split", choices=("train", "val", "test", "all"), default=None)
    parser.add_argument("--name", default=None, help="model name in answers; default: folder name")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    arguments = parser.parse_args(argv)
    try:
        start = time.perf_counter()
        bundle = export_bundle(
            arguments.checkpoint,
            arguments.output,
            arguments.data,
            split=arguments.split,
            name=arguments.name,
            overwrite=arguments.overwrite,
        )
    except DeitLTError as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"export: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return 2
    print(bundle.describe())
    print(f"exported in {time.perf_counter() - start:.1f} s")
    return 0


def export_bundle(
    checkpoint: Path,
    output: Path,
    data: Path,
    *,
    split: str | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Fuse, export, verify on real images through the real preprocessing, and only then write.

    Args:
        checkpoint: run folder or `student.safetensors`.
        output: bundle folder.
        data: labelled images, see `deitlt.labelled.read_labelled`.
        split: which split of `data`; by default test, else val, else all there is.
        name: the model's name in answers; the bundle folder's name by default.
        overwrite: replace a bundle at `output`.

    Raises:
        DeitLTError: one of its kinds; nothing is written then.
    """
    check_free(output, overwrite=overwrite)
    model, card = load_student(checkpoint)
    split, images = _pick_split(data, card, split)

    def fill(folder: Path) -> dict[str, Any]:
        export_onnx(FusedStudent(model, card.preprocess), card, folder / MODEL)
        runtime = OnnxRuntime(folder / MODEL, device="cpu")
        sample = images.subset(_spread(len(images), NUM_PARITY))
        pixels = np.concatenate(list(load_batches(sample.paths, card.preprocess, BATCH)))
        expected = torch_outputs(model, card, pixels)
        parity = check_parity(runtime, expected, pixels)
        golden = _spread(len(sample), NUM_GOLDEN)
        write_golden(folder / GOLDEN, pixels[golden], Outputs(*(e[golden] for e in expected)))
        reports = _evaluate(runtime, images, card)
        manifest = _manifest(card, name or output.resolve().name, parity)
        metrics = {
            "data": data.name,
            "split": split,
            "num_images": len(images),
            "heads": {head: figures.to_dict() for head, figures in reports.items()},
        }
        write_json(folder / "metrics.json", metrics)
        rows = per_class_csv(card.classes, card.train_counts, reports)
        write_text(folder / "per_class.csv", rows)
        source = f"{split} images of {data.name}"
        write_text(folder / "README.md", model_card(manifest, reports, parity, source))
        return manifest

    return write_bundle(output, fill, overwrite=overwrite)


def _evaluate(runtime: Runtime, images: LabelledImages, card: Card) -> dict[str, Report]:
    """Figures of both heads and their average, by the graph that will be deployed."""
    rows = [
        runtime.run(pixels)
        for pixels in tqdm(
            load_batches(images.paths, card.preprocess, BATCH),
            total=-(-len(images) // BATCH),
            desc="evaluating",
            disable=None,
        )
    ]
    logits = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
    return {
        head: report(images.labels, head_logits, card.train_counts)
        for head, head_logits in zip(("average", "cls", "dist"), logits, strict=True)
    }


def _pick_split(data: Path, card: Card, split: str | None) -> tuple[str, LabelledImages]:
    splits = read_labelled(data, classes=card.classes)
    name = split or next((s for s in SPLITS if s in splits), "train")
    if name not in splits:
        raise DataError(f"{data}: has no split {name!r}, only {', '.join(splits)}")
    return name, splits[name]


def _manifest(card: Card, name: str, parity: Parity) -> dict[str, Any]:
    return {
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "architecture": card.architecture,
        "classes": card.classes,
        "train_counts": card.train_counts,
        "groups": all_groups(card.train_counts),
        "preprocess": card.preprocess.to_dict(),
        "outputs": list(OUTPUTS),
        "opset": OPSET,
        "recipe": card.recipe,
        "epoch": card.epoch,
        "parity": parity.to_dict(),
        "software": {
            "deitlt": __version__,
            **{p: metadata.version(p) for p in ("torch", "timm", "onnx")},
        },
    }


def _spread(length: int, count: int) -> IntArray:
    """At most `count` indices spread evenly over a set, which is sorted by class."""
    return np.unique(np.linspace(0, length - 1, count).astype(np.int64))


if __name__ == "__main__":
    sys.exit(main())
