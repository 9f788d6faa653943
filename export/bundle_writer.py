"""From a checkpoint to a bundle: every artefact is written, run on real images and judged."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tqdm import tqdm

from deitlt import __version__
from deitlt.bundle import (
    CURVES,
    EXPLAIN,
    FLOAT32,
    GOLDEN,
    MODEL,
    WEIGHTS,
    Artefact,
    Bundle,
    check_free,
    write_bundle,
)
from deitlt.files import file_sha256, write_json, write_text
from deitlt.golden import write_golden
from deitlt.labelled import LabelledImages
from deitlt.longtail import IntArray, all_groups
from deitlt.metrics import Report, per_class_csv, report
from deitlt.preprocess import Pixels, load_batches
from deitlt.runtimes import OnnxRuntime, Outputs, Runtime
from deitlt.student import DeiTLT, load_student
from deitlt.torch_runtime import TorchRuntime
from deitlt.weights import Card, weight_file
from export.fuse import Attention
from export.gate import MAX_GROUP_LOSS_POINTS, MAX_LOSS_POINTS, Gate, judge, too_few_images
from export.model_card import model_card
from export.parity import (
    FusedRuntime,
    PlainStudent,
    answers,
    check_batch_sizes,
    check_exact,
    check_rollouts,
    compare,
    worse,
)
from export.quantize import quantize_int8, rank_layers
from export.to_onnx import describe_graph
from export.to_triton import export_triton
from export.triton_config import check_names
from export.variants import INT8, TRITON, VARIANTS, Variant, half_student
from export.verification_data import calibration_pixels, judged_images, spread, training_images

NUM_GOLDEN = 8
# Images asked in small batches too.
NUM_SAMPLE = 48
# Layers that int8 may leave in float32 to pass its gate; with more there is little left to gain.
MAX_KEPT_FLOAT = 3
BATCH = 32
# What reports call the outputs.
HEADS = {"logits": "average", "cls_logits": "cls", "distillation_logits": "dist"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to put into a bundle.

    Attributes:
        variants: artefacts beside model.onnx, of `variants.OPTIONAL`.
        split: which split of the data to verify on; by default test, else val, else all there is.
        name: the model's name in answers; the bundle folder's name by default.
        attention: how the ONNX graphs write attention down; each variant its own way by default.
        calibration: training images for int8; by default the training split of the data.
        max_images: verify on at most so many images, spread over the classes.
        max_loss_points: largest loss of fp16 and int8 overall, percentage points.
        max_group_loss_points: largest loss in a group, percentage points; see `gate` on both.
        weights: put in the run's weights and learning curves, which fused graphs cannot give back.
    """

    variants: tuple[str, ...] = ()
    split: str | None = None
    name: str | None = None
    attention: Attention | None = None
    calibration: Path | None = None
    max_images: int | None = None
    max_loss_points: float = MAX_LOSS_POINTS
    max_group_loss_points: float = MAX_GROUP_LOSS_POINTS
    weights: bool = False


def export_bundle(
    checkpoint: Path,
    output: Path,
    data: Path,
    options: Options = Options(),
    *,
    overwrite: bool = False,
) -> Bundle:
    """Fuse, export, verify on real images through the real preprocessing, and only then write.

    Args:
        checkpoint: run folder or `student.safetensors`.
        output: bundle folder.
        data: labelled images, see `deitlt.labelled.read_labelled`.
        options: variants and limits.
        overwrite: replace a bundle at `output`.

    Raises:
        DeitLTError: one of its kinds; nothing is written then, and a former bundle stays.
    """
    check_free(output.resolve(), overwrite=overwrite)
    model, card = load_student(checkpoint)
    split, images = judged_images(data, card, options.split, options.max_images)
    training = None
    if INT8 in options.variants:
        training = training_images(data, options.calibration, card)
    name = options.name or output.resolve().name
    if TRITON in options.variants:
        check_names(name, card.classes)

    def fill(folder: Path) -> dict[str, Any]:
        export = _Export(model, card, images, training, options, folder)
        artefacts = {FLOAT32: export.add(FLOAT32)}
        for variant in dict.fromkeys(options.variants):
            if variant != TRITON and (entry := export.add(variant)):
                artefacts[variant] = entry
        manifest = _manifest(card, name, artefacts, export.refused)
        export.write_figures(manifest, split, data.resolve().name)
        if TRITON in options.variants:
            artefacts[TRITON] = _add_triton(folder, name, card, manifest)
        if options.weights:
            _add_weights(folder, checkpoint)
        return manifest

    return write_bundle(output, fill, overwrite=overwrite)


@dataclass
class _Export:
    """One bundle in the making: what torch says, and what was found of each artefact."""

    model: DeiTLT
    card: Card
    images: LabelledImages
    training: LabelledImages | None
    options: Options
    folder: Path
    refused: dict[str, str] = field(default_factory=dict)
    gates: dict[str, Gate] = field(default_factory=dict)
    reports: dict[str, Report] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sample = spread(len(self.images), NUM_SAMPLE)
        paths = self.images.subset(sample).paths
        self.sample_pixels = np.concatenate(list(load_batches(paths, self.card.preprocess, BATCH)))
        torch_says = PlainStudent(self.model, self.card)
        self.expected = answers(torch_says, self._progress("torch"))
        self.sample_expected = torch_says.run(self.sample_pixels)
        golden = spread(len(sample), NUM_GOLDEN)
        write_golden(
            self.folder / GOLDEN, self.sample_pixels[golden], _rows(self.sample_expected, golden)
        )

    def add(self, name: str) -> dict[str, Any] | None:
        """Write an artefact and hold it against torch; its entry, None if its gate refuses it.

        fp16 is run twice: its file, which a CPU computes in float32, and its arithmetic in PyTorch.
        Both must pass; the figures are those of the arithmetic.

        Raises:
            BundleError: a float32 artefact differs from torch.
        """
        variant = VARIANTS[name]
        path = self.folder / variant.file
        few = too_few_images(name, len(self.images), self.options.max_loss_points)
        if few and variant.precision != "float32":  # minutes of work could not change that
            self.refused[name] = few
            return None
        kept: list[str] = []
        if variant.write:
            variant.write(self.model, self.card, self.options.attention or variant.attention, path)
        else:
            kept = self._quantize(name, variant)
        runs = [self._run(name, variant)]
        if variant.precision == "float16":
            half = FusedRuntime(half_student(self.model, self.card))
            runs.append(answers(half, self._progress("float16 arithmetic")))
        parity = worse([compare(run, self.expected) for run in runs])
        if variant.precision == "float32":
            check_exact(variant.file, parity)
            runtime = self._open(name, variant)
            check_batch_sizes(variant.file, runtime, self.sample_pixels, self.sample_expected)
            if name == EXPLAIN:
                torch_says = PlainStudent(self.model, self.card).rollouts(self.sample_pixels)
                check_rollouts(variant.file, runtime, self.sample_pixels, torch_says)
        else:
            gates = [self._judge(name, self.images, self.expected, run) for run in runs]
            gate = next((gate for gate in gates if gate.refusal()), gates[-1])
            self.gates[name] = gate
            if reason := gate.refusal():
                path.unlink()
                self.refused[name] = reason
                return None
        figures = self._report(runs[-1])
        if name == FLOAT32:
            self.reports = figures
        return {
            "file": variant.file,
            "format": variant.format,
            "precision": variant.precision,
            "input": variant.input,
            "outputs": list(runs[0].heads()),
            **(describe_graph(path) if variant.format == "onnx" else {}),
            **({"float32_layers": kept} if variant.precision == INT8 else {}),
            "parity": parity.to_dict(),
            "accuracy": _shares(figures["average"]),
            "gate": self.gates[name].to_dict() if name in self.gates else None,
        }

    def write_figures(self, manifest: dict[str, Any], split: str, data: str) -> None:
        """Write metrics.json, per_class.csv and the model card; figures of the float32 graph."""
        metrics = {
            "data": data,
            "split": split,
            "num_images": len(self.images),
            "max_images": self.options.max_images,
            "heads": {head: figures.to_dict() for head, figures in self.reports.items()},
        }
        write_json(self.folder / "metrics.json", metrics)
        rows = per_class_csv(self.card.classes, self.card.train_counts, self.reports)
        write_text(self.folder / "per_class.csv", rows)
        source = f"{split} images of {data}"
        if len(self.images) == self.options.max_images:
            source += ", a subset spread over its classes"
        text = model_card(manifest, self.reports, self.gates, source)
        write_text(self.folder / "README.md", text)

    def _quantize(self, name: str, variant: Variant) -> list[str]:
        """Write int8; returns its layers in float32, those that hurt most and as few as it takes.

        How many is tried on training images, so that those it is judged on see one form alone: of
        several, one would sooner or later pass by luck.
        """
        assert self.training is not None
        source, target = self.folder / MODEL, self.folder / variant.file
        calibration = calibration_pixels(self.training, self.card.preprocess)
        expected = self._run(FLOAT32, VARIANTS[FLOAT32], self.training)
        kept: list[str] = []
        ranked: list[str] = []
        for num_kept in range(MAX_KEPT_FLOAT + 1):
            if num_kept == 1:
                ranked = rank_layers(source, calibration)
            kept = ranked[:num_kept]
            quantize_int8(source, target, calibration, keep_float=kept)
            actual = self._run(name, variant, self.training)
            if not self._judge(name, self.training, expected, actual).loses:
                break
        return kept

    def _judge(self, name: str, images: LabelledImages, expected: Outputs, actual: Outputs) -> Gate:
        return judge(
            name,
            images.labels,
            expected.logits,
            actual.logits,
            self.card.train_counts,
            max_loss_points=self.options.max_loss_points,
            max_group_loss_points=self.options.max_group_loss_points,
        )

    def _run(self, name: str, variant: Variant, images: LabelledImages | None = None) -> Outputs:
        return answers(self._open(name, variant), self._progress(variant.file, images))

    def _open(self, name: str, variant: Variant) -> Runtime:
        path = self.folder / variant.file
        if variant.format == "onnx":
            return OnnxRuntime(path, device="cpu", preprocess=self.card.preprocess)
        artefact = Artefact(name, path, variant.format, variant.precision, 0.0)
        return TorchRuntime(artefact, device="cpu")

    def _progress(self, what: str, images: LabelledImages | None = None) -> Iterator[Pixels]:
        """Batches of the images to verify on, or of others."""
        paths = (images or self.images).paths
        batches = load_batches(paths, self.card.preprocess, BATCH)
        total = -(-len(paths) // BATCH)
        yield from tqdm(batches, total=total, desc=f"running {what}", disable=None)

    def _report(self, outputs: Outputs) -> dict[str, Report]:
        return {
            HEADS[name]: report(self.images.labels, logits, self.card.train_counts)
            for name, logits in outputs.heads().items()
        }


def _add_triton(folder: Path, name: str, card: Card, manifest: dict[str, Any]) -> dict[str, Any]:
    """A model repository in `triton/`; its entry is that of the graph in it."""
    version = file_sha256(folder / MODEL)[:12]  # the bundle's own is not known before it is whole
    bundle = Bundle(
        folder, name, version, card.classes, card.train_counts, card.preprocess, manifest
    )
    model = export_triton(bundle, folder / TRITON)
    graph = next(model.glob("*/model.onnx"))
    return {**manifest["artefacts"][FLOAT32], "file": graph.relative_to(folder).as_posix()}


def _add_weights(folder: Path, checkpoint: Path) -> None:
    """The weight file under a run's name for it, and results.csv where the run has one."""
    weights = weight_file(checkpoint, "student")
    shutil.copyfile(weights, folder / WEIGHTS)
    if (curves := weights.parent / CURVES).is_file():
        shutil.copyfile(curves, folder / CURVES)


def _manifest(
    card: Card, name: str, artefacts: dict[str, Any], refused: dict[str, str]
) -> dict[str, Any]:
    return {
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "architecture": card.architecture,
        "classes": card.classes,
        "train_counts": card.train_counts,
        "train_files_sha256": card.train_files_sha256,
        "groups": all_groups(card.train_counts),
        "preprocess": card.preprocess.to_dict(),
        "artefacts": artefacts,
        "refused": refused,
        "recipe": card.recipe,
        "epoch": card.epoch,
        "software": {
            "deitlt": __version__,
            **{p: metadata.version(p) for p in ("torch", "timm", "onnx")},
            "onnxruntime": onnxruntime.__version__,
        },
    }


def _shares(figures: Report) -> dict[str, float | None]:
    """Overall accuracy and that of each group, in [0, 1]."""
    return {"overall": figures.overall.value, **{g: a.value for g, a in figures.groups.items()}}


def _rows(outputs: Outputs, indices: IntArray) -> Outputs:
    return Outputs(**{name: part[indices] for name, part in outputs.parts().items()})
