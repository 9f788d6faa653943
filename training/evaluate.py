"""`python -m training.evaluate RUN --data DATA`: accuracy per head and group, with intervals."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from deitlt.bundle import MANIFEST
from deitlt.errors import CheckpointError, DataError
from deitlt.files import write_json, write_text
from deitlt.metrics import Report, format_table, per_class_csv
from deitlt.run_splits import files_sha256, own_splits, pick_split
from deitlt.student import load_transformer
from deitlt.weights import Card
from training.command_line import parse, run_program
from training.data import EvaluationImages
from training.engine.checkpoint import WEIGHTS, unfinished
from training.engine.distributed import pick_device
from training.scoring import all_finite, fit_blend, head_reports, student_logits, teacher_logits
from training.teachers.labelling import load_teacher

PROGRAM = "training.evaluate"


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """What `evaluate` is told."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder of a student or teacher."""
    data: Path
    """Folder or CSV of labelled images; what the run was trained on, or other images."""
    split: Literal["train", "val", "test", "all"] | None = None
    """Which images: by default test, else val, else all of a tree without marked splits. On the
    data of the run, train and val are what it trained on and held out."""
    fit_blend: bool = False
    """Also report `blend`, the experts mixed by the share that is best on the held-out images."""
    output: Path | None = None
    """Folder for metrics-SPLIT.json and per_class-SPLIT.csv; by default the run folder, or
    BUNDLE-evaluation beside a bundle, which stays as it was exported."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate a run; returns 0, or 2 with one line on what was wrong."""
    return run_program(PROGRAM, argv, _main)


def _main(argv: list[str]) -> None:
    evaluate(parse(PROGRAM, EvaluateCommand, argv))


def evaluate(command: EvaluateCommand) -> dict[str, Report]:
    """Evaluate a student's heads, or a teacher, and write the figures.

    Raises:
        DeitLTError: one of its kinds; the text is for the user.
    """
    device = pick_device(command.device)
    if done := unfinished(command.run):
        print(f"warning: {command.run}: has finished {done}", file=sys.stderr)
    card, logits_of = _load(command.run, device)
    split, images = pick_split(command.data, command.split, card)
    logits = logits_of(EvaluationImages(images, card.preprocess, device))
    if not all_finite(logits):
        raise CheckpointError(f"{command.run}: answers with NaN or infinite numbers; train it anew")
    blend = None
    if command.fit_blend:
        held_out = own_splits(command.data, card).get("val")
        if held_out is None or "dist" not in logits:
            raise DataError(
                f"{command.data}: --fit-blend needs two experts and images that the run held out"
            )
        val_logits = logits_of(EvaluationImages(held_out, card.preprocess, device))
        blend = fit_blend(val_logits, held_out.labels, len(card.classes))
        logits["blend"] = blend * logits["cls"] + (1 - blend) * logits["dist"]
    reports = head_reports(logits, images.labels, card.train_counts)
    output = command.output or _output_of(command.run)
    output.mkdir(parents=True, exist_ok=True)
    figures = {head: figures.to_dict() for head, figures in reports.items()}
    metrics: dict[str, Any] = {"split": split, "num_images": len(images), "epoch": card.epoch}
    metrics["images_sha256"] = files_sha256(images)
    metrics |= {"heads": figures} if blend is None else {"heads": figures, "blend": blend}
    write_json(output / f"metrics-{split}.json", metrics)
    rows = per_class_csv(card.classes, card.train_counts, reports)
    write_text(output / f"per_class-{split}.csv", rows)
    print(f"{command.run}, epoch {card.epoch}, {len(images)} {split} images, accuracy in %")
    print(format_table(reports))
    print(f"figures in {output / f'metrics-{split}.json'}")
    if blend is not None:
        print(f"blend: {blend:.2f} of CLS, {1 - blend:.2f} of DIST (--blend {blend:.2f} serves it)")
    return reports


def _output_of(run: Path) -> Path:
    folder = run if run.is_dir() else run.parent
    if not (folder / MANIFEST).is_file():
        return folder
    bundle = folder.resolve()  # "." has no name
    return bundle.with_name(f"{bundle.name}-evaluation")


def _load(run: Path, device: torch.device) -> tuple[Card, Any]:
    name = next((n for n in WEIGHTS if (run / n).is_file()), run.name)
    if name == "teacher.safetensors":
        teacher = load_teacher(run)
        cnn = teacher.model.to(device)
        return teacher.card, lambda images: teacher_logits(cnn, images)
    if not run.exists():
        raise CheckpointError(f"{run}: there is no such run folder")
    student, card = load_transformer(run)
    student.to(device)
    return card, lambda images: student_logits(student, images, bf16=card.recipe.get("bf16"))


if __name__ == "__main__":
    sys.exit(main())
