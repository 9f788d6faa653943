"""What a teacher must show before a student learns from it: figures it can be told by hand."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from deitlt.errors import CheckpointError
from deitlt.labelled import LabelledImages, read_labelled
from deitlt.metrics import Report, report
from deitlt.preprocess import PreprocessSpec
from deitlt.run_splits import Splits, files_sha256
from deitlt.weights import Card, load_weights, save_weights
from training import train_student, train_teacher
from training.teachers.certificate import (
    NUM_STAND_IN,
    Measured,
    check_teacher,
    measure_teacher,
    skill,
)
from training.teachers.labelling import Teacher
from training.teachers.networks import build_teacher

CPU = torch.device("cpu")
# A dim image is darker than this level, a bright one brighter.
LEVEL = 100
OWN = PreprocessSpec(8, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
# The student's tensors are brighter by 0.3 / 0.2 everywhere.
SHIFTED = PreprocessSpec(8, mean=(0.2, 0.2, 0.2), std=(0.2, 0.2, 0.2))


class Threshold(nn.Module):
    """Class 1 of images brighter than `LEVEL` under the normalisation `OWN`."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images.mean(dim=(1, 2, 3)) - (LEVEL / 255 - 0.5) / 0.2
        return torch.stack([-bright, bright], dim=1)


def figures(right: float, num_classes: int = 2, each: int = 50) -> Report:
    """A report of that balanced accuracy, alike in all classes."""
    labels = np.repeat(np.arange(num_classes), each)
    answers = labels.copy()
    for label in range(num_classes):
        wrong = np.flatnonzero(labels == label)[round(right * each) :]
        answers[wrong] = (label + 1) % num_classes
    logits = np.eye(num_classes, dtype=np.float32)[answers]
    return report(labels, logits, [10] * num_classes)


def measured(own: float, seen: float, certified: float | None = None, **options: Any) -> Measured:
    held_out = options.pop("held_out", True)
    return Measured(figures(own, **options), figures(seen, **options), held_out, certified)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    """Even images: class 0 of levels 40 to 70, class 1 of levels 130 to 160."""
    root = tmp_path_factory.mktemp("certificate")
    for name, first in (("dim", 130), ("bare", 40)):
        (root / "data" / name).mkdir(parents=True)
        for level in range(first, first + 30):
            shade = Image.new("RGB", (8, 8), (level, level, level))
            shade.save(root / "data" / name / f"{level}.png")
    return read_labelled(root / "data")["all"]


def card(images: LabelledImages, **fields: Any) -> Card:
    known: dict[str, Any] = {
        "kind": "teacher",
        "architecture": {"name": "resnet32", "classifier": "linear", "num_classes": 2},
        "classes": images.classes,
        "train_counts": images.counts().tolist(),
        "train_files_sha256": files_sha256(images),
        "preprocess": OWN,
        "recipe": {},
        "epoch": 1,
    }
    return Card(**{**known, **fields})


def halves(images: LabelledImages) -> Splits:
    numbers = np.arange(len(images))
    return Splits(images.subset(numbers[::2]), images.subset(numbers[1::2]))


@pytest.mark.parametrize(
    ("balanced", "num_classes", "expected"),
    [(0.1, 10, 0.0), (1.0, 10, 1.0), (0.55, 10, 0.5), (0.5, 2, 0.0), (0.2, 2, -0.6)],
)
def test_skill_is_the_way_from_guessing_to_knowing(
    balanced: float, num_classes: int, expected: float
) -> None:
    assert skill(balanced, num_classes) == pytest.approx(expected)


def test_an_able_teacher_passes_and_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    able = measured(0.8, 0.6, certified=0.8)
    able.check(Path("run"), allow_weak=False)
    said = capsys.readouterr().out
    assert said.startswith("teacher: 80.0 % balanced on 100 held-out images")
    assert "60.0 % in the student's size and normalisation" in said
    assert "training images" in replace(able, held_out=False).describe()


@pytest.mark.parametrize(("num_classes", "chance"), [(2, 0.5), (10, 0.1)])
def test_a_teacher_near_chance_is_refused(num_classes: int, chance: float) -> None:
    nearly = measured(chance + 0.04, 1.0, num_classes=num_classes)
    with pytest.raises(CheckpointError, match=r"near chance, .* balanced; train it longer"):
        nearly.check(Path("run"), allow_weak=False)
    enough = chance + 0.12 * (1 - chance)
    measured(enough, enough, num_classes=num_classes).check(Path("run"), allow_weak=False)


def test_a_teacher_blinded_by_the_students_normalisation_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"run: .*normalisation; pass --renormalise, or"):
        measured(0.9, 0.5).check(Path("run"), allow_weak=False)


def test_a_weak_teacher_may_be_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    measured(0.5, 0.5).check(Path("run"), allow_weak=True)
    assert "50.0 % balanced" in capsys.readouterr().out


@pytest.mark.parametrize("allow_weak", [True, False])
@pytest.mark.parametrize("certified", [0.9, 0.7])
def test_a_certificate_that_is_not_reproduced_is_refused(
    allow_weak: bool, certified: float
) -> None:
    with pytest.raises(CheckpointError, match=rf"80.0 % .*gives {100 * certified:.1f} %"):
        measured(0.8, 0.8, certified).check(Path("run"), allow_weak=allow_weak)
    measured(0.8, 0.8, 0.81).check(Path("run"), allow_weak=allow_weak)  # other hardware


def test_a_teacher_is_measured_in_both_normalisations(images: LabelledImages) -> None:
    splits = halves(images)
    teacher = Teacher(Threshold(), card(splits.train))
    found = measure_teacher(teacher, splits, SHIFTED, CPU)
    assert (found.own.balanced.value, found.held_out, found.certified) == (1.0, True, None)
    # Shifted by 0.3, levels from 24 on look bright: all images are taken for class 1.
    assert found.seen.balanced.value == 0.5
    assert found.own.overall.num_images == len(images) // 2
    again = measure_teacher(Teacher(Threshold(), card(images), SHIFTED), splits, SHIFTED, CPU)
    assert again.seen.balanced.value == 1.0  # renormalised


def test_a_teacher_is_shown_the_students_size(images: LabelledImages) -> None:
    large = PreprocessSpec(16, mean=OWN.mean, std=OWN.std)
    found = measure_teacher(Teacher(Threshold(), card(images)), halves(images), large, CPU)
    assert found.seen.balanced.value == 1.0


def test_only_figures_of_the_very_images_count_as_a_certificate(images: LabelledImages) -> None:
    splits = halves(images)
    claim = {"teacher": {"balanced": {"value": 0.7, "num_images": 30}}}

    def certified(images: LabelledImages, validation: dict[str, Any]) -> float | None:
        teacher = Teacher(Threshold(), card(images, validation=validation))
        return measure_teacher(teacher, splits, OWN, CPU).certified

    assert certified(splits.train, claim) == 0.7
    assert certified(images, claim) is None  # trained on other images
    assert certified(splits.train, {}) is None
    other = {"teacher": {"balanced": {"value": 0.7, "num_images": 29}}}
    assert certified(splits.train, other) is None


def test_without_held_out_images_training_images_stand_in(images: LabelledImages) -> None:
    claim = {"teacher": {"balanced": {"value": 0.1, "num_images": len(images)}}}
    teacher = Teacher(Threshold(), card(images, validation=claim))
    found = measure_teacher(teacher, Splits(images, None), OWN, CPU)
    assert (found.own.overall.num_images, found.held_out, found.certified) == (60, False, None)
    many = images.subset(np.arange(NUM_STAND_IN + 40) % len(images))
    found = measure_teacher(teacher, Splits(many, None), OWN, CPU)
    assert found.own.overall.num_images == NUM_STAND_IN
    assert found.own.balanced.value == 1.0


def test_a_teacher_of_these_images_is_taken_silently(
    images: LabelledImages, capsys: pytest.CaptureFixture[str]
) -> None:
    check_teacher(card(images), Splits(images, None), Path("run"))
    assert capsys.readouterr() == ("", "")


def test_other_classes_or_another_order_are_refused(images: LabelledImages) -> None:
    swapped = card(images, classes=images.classes[::-1])
    with pytest.raises(CheckpointError, match=r"class 0 is 'dim', the data's 'bare'"):
        check_teacher(swapped, Splits(images, None), Path("run"))
    for classes in (["bare", "cat"], ["bare", "dim", "cat"], ["bare"]):
        with pytest.raises(CheckpointError, match=f"knows {len(classes)} classes, the data has 2"):
            check_teacher(card(images, classes=classes), Splits(images, None), Path("run"))


def test_other_counts_and_other_images_are_warned_of(
    images: LabelledImages, capsys: pytest.CaptureFixture[str]
) -> None:
    check_teacher(card(images, train_counts=[28, 300]), Splits(images, None), Path("run"))
    warning = capsys.readouterr().err
    assert warning.startswith("warning: run: the teacher has learnt 300 images of class 'dim'")
    assert "this data has 30" in warning
    check_teacher(card(images, train_files_sha256="other"), Splits(images, None), Path("run"))
    assert "does not say which images" in capsys.readouterr().err
    other = files_sha256(images.subset(np.arange(len(images) - 1)))
    check_teacher(card(images, train_files_sha256=other), Splits(images, None), Path("run"))
    assert "trained on other images" in capsys.readouterr().err


def test_a_file_that_was_changed_is_found_out_by_the_program(
    tmp_path: Path,
    class_tree: Callable[[Path, Mapping[str, int]], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = class_tree(tmp_path / "data", {"a": 12, "b": 8, "c": 6})
    quick = ["digits", "--epochs", "1", "--batch-size", "8", "--imbalance-factor", "None"]
    quick += ["--val-fraction", "0.5", "--data", str(data), "--output"]
    assert train_teacher.main([*quick, str(tmp_path / "teacher")]) == 0
    _, known = load_weights(tmp_path / "teacher", "teacher")
    torch.manual_seed(0)
    other = build_teacher(known.architecture)
    claimed = known.validation
    claimed["teacher"]["balanced"]["value"] = 0.987
    save_weights(tmp_path / "teacher.safetensors", other, replace(known, validation=claimed))
    for weak in ([], ["--allow-weak-teacher"]):
        capsys.readouterr()
        arguments = [*quick, str(tmp_path / "run"), "--teacher", str(tmp_path), *weak]
        assert train_student.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "its certificate gives 98.7 % for; the file or the data was changed" in line
        assert not (tmp_path / "run").exists()
