"""What a student's training multiplies in: the types of its parts, and how far bfloat16 strays."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deitlt.labelled import LabelledImages, read_labelled
from tests.distillation_support import COUNTS, Case
from tests.fake_gpu_support import GPU, fake_gpu
from tests.learner_support import student_learner, tiny, transformer
from training.benchmark.images import SyntheticSet, make_cifar_like
from training.benchmark.student import untrained_teacher
from training.config import StudentRecipe
from training.scoring import _answer
from training.students.distillation import Distillation

CPU = torch.device("cpu")
LOW, SINGLE = {torch.bfloat16}, {torch.float32}
Types = dict[str, set[torch.dtype]]


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSet:
    return make_cifar_like(tmp_path_factory.mktemp("precision"), 20)


@pytest.mark.parametrize(
    ("device", "bf16", "products"),
    [(GPU, None, LOW), (GPU, False, SINGLE), (CPU, None, SINGLE), (CPU, True, LOW)],
)
def test_products_alone_are_in_bfloat16(
    synthetic: SyntheticSet, device: torch.device, bf16: bool | None, products: set[torch.dtype]
) -> None:
    """Heads, losses, norms of the transformer and the teacher's classifier never are."""
    types = types_of_a_step(tiny("cifar", bf16=bf16), synthetic, device)
    assert types["student Linear"] == types["student PatchEmbed"] == products
    assert types["teacher Conv2d"] == types["teacher BatchNorm2d"] == products
    for part in ("student LayerNorm", "student head", "student head_dist", "teacher linear"):
        assert types[part] == SINGLE
    assert types["cls logits"] == types["dist logits"] == SINGLE


@pytest.mark.parametrize(
    ("device", "bf16", "products"),
    [(GPU, None, LOW), (GPU, False, SINGLE), (CPU, None, SINGLE), (CPU, True, SINGLE)],
)
def test_a_student_is_judged_in_what_it_was_trained_in_on_a_gpu(
    device: torch.device, bf16: bool | None, products: set[torch.dtype]
) -> None:
    student = transformer(tiny("cifar")).eval()
    types: Types = {}
    student.blocks[0].mlp.fc1.register_forward_hook(noting(types, "product"))
    student.head.register_forward_hook(noting(types, "head"))
    with fake_gpu() if device == GPU else nullcontext(), torch.inference_mode():
        _answer(student.to(device), torch.zeros(2, 3, 32, 32, device=device), bf16)
    assert types == {"product": products, "head": SINGLE}


def types_of_a_step(recipe: StudentRecipe, synthetic: SyntheticSet, device: torch.device) -> Types:
    """Types of what the kinds of layers give, and of what the losses take."""
    student, teacher = transformer(recipe), untrained_teacher(synthetic, CPU)
    types: Types = {}
    for owner, model in (("student", student), ("teacher", teacher.model)):
        for name, module in model.named_modules():
            kind = type(module).__name__ if not name.startswith(("head", "linear")) else name
            module.register_forward_hook(noting(types, f"{owner} {kind}"))
    with fake_gpu() if device == GPU else nullcontext():
        learner = student_learner(recipe, synthetic, teacher, student, device)
        losses = learner.losses
        assert isinstance(losses, Distillation)
        losses.cls_loss.register_forward_pre_hook(noting_inputs(types, "cls logits"))
        losses.dist_loss.register_forward_pre_hook(noting_inputs(types, "dist logits"))
        learner.start_epoch(0)
        learner.step(0, 0, next(learner.feed.steps(0)))
    return types


def noting(types: Types, name: str) -> Callable[..., None]:
    """A hook that keeps the type of what a module gives."""

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        types.setdefault(name, set()).add(output.dtype)

    return note


def noting_inputs(types: Types, name: str) -> Callable[..., None]:
    """A hook that keeps the type of a module's first input."""

    def note(module: nn.Module, inputs: Any) -> None:
        types.setdefault(name, set()).add(inputs[0].dtype)

    return note


def test_bfloat16_on_a_cpu_stays_near_single_precision(
    tmp_path: Path, class_tree: Callable[[Path, Mapping[str, int]], Path]
) -> None:
    counts = dict(zip("abc", COUNTS, strict=True))
    images: LabelledImages = read_labelled(class_tree(tmp_path / "data", counts))["all"]
    single, low = Case(images), Case(images, bf16=True)
    _, expected = single.step()
    _, figures = low.step()
    assert not torch.equal(figures, expected)
    torch.testing.assert_close(figures[:3], expected[:3], rtol=0.01, atol=0.01)
    assert along(low.gradients(), single.gradients()) > 0.999


def along(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The cosine of two whole gradients."""
    flat, other_flat = (torch.cat([p.flatten() for p in each.values()]) for each in (one, other))
    return float(F.cosine_similarity(flat, other_flat, dim=0))
