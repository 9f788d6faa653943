"""Which parameters decay, which optimiser moves them, and that all of it resumes."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import torch
from timm.optim import Lamb
from torch import Tensor, nn
from torch.optim import Optimizer

from deitlt.student import DeiTLT, PlainViT, StudentConfig, build_student
from training.config import StudentRecipe
from training.engine.checkpoint import Progress, RunFolder
from training.engine.schedules import set_learning_rate
from training.recipes import students
from training.students.optimizers import student_optimizers

Name = Literal["adamw", "lamb", "muon"]
NAMES: tuple[Name, ...] = get_args(Name)
TOKENS = {"pos_embed", "cls_token", "dist_token"}
BLOCK_MATRICES = {"attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"}


def recipe(name: Name) -> StudentRecipe:
    return replace(students.digits(), optimizer=name)


def model(**fields: Any) -> DeiTLT | PlainViT:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"size": "pico", "img_size": 16, "patch_size": 4, "num_classes": 3}
    return build_student(StudentConfig(drop_path_rate=0.0, **shape, **fields))


MODELS: dict[str, dict[str, Any]] = {
    "student": {},
    "plain": {"distilled": False},
    "deit3": {"distilled": False, "layer_scale": 1e-4},
    "cosine": {"distilled": False, "classifier": "cosine"},
}


def named_groups(
    optimizers: list[Optimizer], network: nn.Module
) -> list[tuple[Optimizer, float, set[str]]]:
    names = {id(p): name for name, p in network.named_parameters()}
    return [
        (optimizer, group["weight_decay"], {names[id(p)] for p in group["params"]})
        for optimizer in optimizers
        for group in optimizer.param_groups
    ]


def step(network: DeiTLT | PlainViT, optimizers: list[Optimizer], seed: int = 0) -> None:
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss: Tensor = torch.stack([head.logsumexp(dim=1).mean() for head in network(images)]).sum()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", MODELS)
def test_biases_norms_tokens_and_positions_do_not_decay(name: Name, kind: str) -> None:
    network = model(**MODELS[kind])
    groups = named_groups(student_optimizers(network, recipe(name)), network)
    still = {n for n, p in network.named_parameters() if p.ndim <= 1 or n in TOKENS}
    assert set().union(*(names for _, decay, names in groups if decay == 0)) == still
    assert {decay for _, decay, names in groups if names - still} == {0.05}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", MODELS)
def test_every_parameter_is_moved_by_exactly_one_group(name: Name, kind: str) -> None:
    network = model(**MODELS[kind])
    groups = named_groups(student_optimizers(network, recipe(name)), network)
    together = [parameter for _, _, names in groups for parameter in names]
    assert sorted(together) == sorted(name for name, _ in network.named_parameters())


def test_a_recipe_gets_the_optimizer_it_names() -> None:
    kinds = {name: type(student_optimizers(model(), recipe(name))[-1]) for name in NAMES}
    assert kinds == {"adamw": torch.optim.AdamW, "lamb": Lamb, "muon": torch.optim.Muon}


def test_muon_takes_exactly_the_matrices_of_the_blocks() -> None:
    network = model()
    groups = named_groups(student_optimizers(network, recipe("muon")), network)
    muon = set().union(*(names for o, _, names in groups if isinstance(o, torch.optim.Muon)))
    assert muon == {f"blocks.{i}.{matrix}" for i in range(4) for matrix in BLOCK_MATRICES}


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parameters_are_left_out(name: Name) -> None:
    network = model()
    network.requires_grad_(False)
    network.head.requires_grad_(True)
    optimizers = student_optimizers(network, recipe(name))
    groups = named_groups(optimizers, network)
    assert set().union(*(names for _, _, names in groups)) == {"head.weight", "head.bias"}
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    step(network, optimizers)
    changed = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"head.weight", "head.bias"}


@pytest.mark.parametrize("name", NAMES)
def test_a_step_moves_every_weight_and_none_to_infinity(name: Name) -> None:
    network = model()
    optimizers = student_optimizers(network, recipe(name))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    step(network, optimizers)
    for parameter, value in network.named_parameters():
        assert value.isfinite().all(), parameter
        assert not torch.equal(value, before[parameter]), parameter


def test_muons_steps_are_as_large_as_adamws() -> None:
    """`match_rms_adamw`: a root mean square of about 0.2 of the rate, whatever the gradient."""
    for scale in (1e-4, 1.0):
        network = model()
        optimizers = student_optimizers(network, replace(recipe("muon"), weight_decay=0.0))
        weight = network.blocks[0].mlp.fc1.weight
        before = weight.detach().clone()
        weight.grad = scale * torch.randn_like(weight)
        optimizers[1].step()
        moved = (weight.detach() - before).square().mean().sqrt()
        assert moved.item() == pytest.approx(0.2 * 2e-3, rel=0.2)


def test_one_step_of_adamw_is_the_textbook_one() -> None:
    network = model()
    optimizers = student_optimizers(network, recipe("adamw"))
    weight = network.head.weight
    before = weight.detach().clone()
    step(network, optimizers)
    assert weight.grad is not None
    # First step: both moments are the gradient's own, so it is the sign but for epsilon 1e-8.
    expected = before * (1 - 2e-3 * 0.05) - 2e-3 * weight.grad / (weight.grad.abs() + 1e-8)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_the_learning_rate_of_all_groups_is_set_together(name: Name) -> None:
    network = model()
    optimizers = student_optimizers(network, recipe(name))
    set_learning_rate(optimizers, 0.0)
    before = [p.detach().clone() for p in network.parameters()]
    step(network, optimizers)
    for old, new in zip(before, network.parameters(), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_optimiser_takes_the_very_next_step(name: Name, tmp_path: Path) -> None:
    network = model()
    optimizers = student_optimizers(network, recipe(name))
    for seed in (1, 2):
        step(network, optimizers, seed)
    run = RunFolder(tmp_path)
    run.save(Progress(epoch=1), {"model": network}, optimizers, "hash")
    step(network, optimizers, 3)

    other = model()
    others = student_optimizers(other, recipe(name))
    assert run.load({"model": other}, others, "hash").epoch == 1
    step(other, others, 3)
    for (key, ours), theirs in zip(network.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), key
