"""Imported checkpoints answer as the official code does with the same weights.

The logits in `official_golden.json` are the official code's own; see `official_support`.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from deitlt.preprocess import CIFAR_MEAN, CIFAR_STD, PreprocessSpec
from deitlt.student import load_student
from export.import_checkpoint import main
from tests.official_support import inputs, logits_of, shapes_of, student_file, tensors
from training.teachers.labelling import load_teacher

ClassTree = Callable[[Path, Mapping[str, int]], Path]

# As they are published: PaCo's and the larger networks were trained by DataParallel.
TEACHERS = [
    ("paco_resnet32", "module."),
    ("ldam_resnet32", ""),
    ("ldam_resnet32", "module."),
    ("paco_resnet50", "module."),
    ("ldam_resnet50", "module."),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that is gone after the test: pytest would keep these hundreds of MB."""
    with TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def data(class_tree: ClassTree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of 11 to 2 images, so that the order of counts is the order of names."""
    counts = {f"class {number}": 11 - number for number in range(10)}
    return class_tree(tmp_path_factory.mktemp("official") / "data", counts)


@torch.no_grad()
def test_the_student_gives_the_official_logits(folder: Path, data: Path) -> None:
    file = student_file(folder / "best_checkpoint.pth", tensors(shapes_of("student")))
    assert main([str(file), "--output", str(folder / "run"), "--data", str(data)]) == 0
    model, card = load_student(folder / "run")
    torch.testing.assert_close(
        torch.stack(model(inputs(224))), logits_of("student"), rtol=1e-5, atol=1e-5
    )
    assert card.architecture["size"] == "base"
    assert card.preprocess == PreprocessSpec(224, 0.875)
    assert card.epoch == 1200


@pytest.mark.parametrize(("name", "prefix"), TEACHERS)
@torch.no_grad()
def test_a_teacher_gives_the_official_outputs(
    name: str, prefix: str, folder: Path, data: Path
) -> None:
    weights = tensors(shapes_of(name))
    copies = {  # what the momentum copy holds is no matter
        name.replace("encoder_q.", "encoder_k."): torch.zeros_like(tensor)
        for name, tensor in weights.items()
        if name.startswith("encoder_q.")
    }
    state = {f"{prefix}{name}": tensor for name, tensor in {**weights, **copies}.items()}
    torch.save({"epoch": 400, "arch": "resnet", "state_dict": state}, folder / "ckpt.pth.tar")
    arguments = ["--output", str(folder / "run"), "--data", str(data)]
    assert main([str(folder / "ckpt.pth.tar"), *arguments]) == 0
    teacher = load_teacher(folder / "run")
    side = 32 if name.endswith("32") else 224
    torch.testing.assert_close(teacher.model(inputs(side)), logits_of(name), rtol=1e-5, atol=1e-6)
    card = teacher.card
    assert card.architecture["classifier"] == ("cosine" if name.startswith("ldam") else "linear")
    cifar = PreprocessSpec(32, 1.0, CIFAR_MEAN, CIFAR_STD)
    assert card.preprocess == (cifar if side == 32 else PreprocessSpec(224, 0.875))
    assert card.recipe["class_order"] == ("by count" if name == "ldam_resnet50" else "original")
    assert (card.epoch, card.train_counts) == (400, list(range(11, 1, -1)))
