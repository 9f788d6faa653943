"""The student against timm's own distilled vision transformer."""

from pathlib import Path

import pytest
import timm
import torch
from timm.layers import DropPath

from deitlt.errors import CheckpointError
from deitlt.preprocess import PreprocessSpec
from deitlt.student import DeiTLT, Size, StudentConfig, average_logits, load_student
from deitlt.weights import Card, save_weights


def nano(num_classes: int = 10) -> DeiTLT:
    return DeiTLT(StudentConfig(size="nano", img_size=16, patch_size=4, num_classes=num_classes))


@pytest.mark.parametrize(("size", "millions"), [("tiny", 5.5), ("small", 21.7), ("base", 85.8)])
def test_sizes_have_the_published_parameter_counts(size: Size, millions: float) -> None:
    model = timm.create_model(f"deit_{size}_distilled_patch16_224", num_classes=10)
    ours = DeiTLT(StudentConfig(size=size, img_size=224, patch_size=16, num_classes=10))
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in model.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


def test_its_logits_and_their_mean_are_timms() -> None:
    torch.manual_seed(0)
    ours = DeiTLT(StudentConfig(size="tiny", img_size=32, patch_size=8, num_classes=10)).eval()
    theirs = timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, num_classes=10
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(3, 3, 32, 32)
    cls, dist = ours(images)
    torch.testing.assert_close(average_logits(cls, dist), theirs(images))
    theirs.set_distilled_training(True)
    theirs.train()
    for module in theirs.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    for expected, actual in zip(theirs(images), (cls, dist), strict=True):
        torch.testing.assert_close(actual, expected)


def test_stochastic_depth_grows_linearly_to_its_rate() -> None:
    model = DeiTLT(StudentConfig(size="tiny", img_size=32, patch_size=8, num_classes=10))
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])


def test_tokens_stand_in_the_order_cls_dist_patches() -> None:
    model = nano().eval()
    seen: list[torch.Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.randn(1, 3, 16, 16))
    assert seen[0].shape == (1, 2 + 16, 128)
    torch.testing.assert_close(seen[0][0, 0], (model.cls_token + model.pos_embed[:, :1])[0, 0])
    torch.testing.assert_close(seen[0][0, 1], (model.dist_token + model.pos_embed[:, 1:2])[0, 0])


def test_initial_weights_are_deits() -> None:
    torch.manual_seed(0)
    model = DeiTLT(StudentConfig(size="small", img_size=224, patch_size=16, num_classes=1000))
    for tensor in (model.head.weight, model.head_dist.weight, model.pos_embed, model.dist_token):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.cls_token.abs().max().item() < 1e-5
    assert model.head.bias.abs().max().item() == 0
    undecayed = model.no_weight_decay()
    assert {"pos_embed", "cls_token", "dist_token"} <= set(undecayed)


def card_of(model: DeiTLT) -> Card:
    return Card(
        kind="student",
        architecture=model.architecture(),
        classes=[str(i) for i in range(10)],
        train_counts=[10] * 10,
        train_files_sha256="",
        preprocess=PreprocessSpec(16),
        recipe={"name": "test"},
        epoch=3,
    )


def test_it_comes_back_from_its_file(tmp_path: Path) -> None:
    model = nano().eval()
    save_weights(tmp_path / "student.safetensors", model, card_of(model))
    loaded, card = load_student(tmp_path)
    images = torch.randn(2, 3, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(loaded(images), model(images), strict=True))
    assert card == card_of(model)
    assert not loaded.training


def test_a_teacher_is_not_taken_for_a_student(tmp_path: Path) -> None:
    model = nano()
    card = Card(**{**card_of(model).__dict__, "kind": "teacher"})
    save_weights(tmp_path / "student.safetensors", model, card)
    with pytest.raises(CheckpointError, match="holds a teacher, not a student"):
        load_student(tmp_path)


def test_tensors_that_do_not_fit_the_card_are_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "student.safetensors", nano(num_classes=7), card_of(nano()))
    with pytest.raises(CheckpointError, match="do not fit"):
        load_student(tmp_path)
