"""The teacher network, and that it labels the student's own tensor."""

from pathlib import Path

import pytest
import torch

from deitlt.errors import CheckpointError
from deitlt.preprocess import PreprocessSpec
from deitlt.weights import Card, save_weights
from training.teachers import BasicBlock, ResNet32, Teacher, build_teacher, load_teacher


def card(img_size: int = 32) -> Card:
    return Card(
        kind="teacher",
        architecture={"name": "resnet32", "num_classes": 10},
        classes=[str(i) for i in range(10)],
        train_counts=[10] * 10,
        train_files_sha256="",
        preprocess=PreprocessSpec(img_size),
        recipe={},
        epoch=1,
    )


def test_it_has_the_published_size() -> None:
    # He et al. 2016: 0.46 M parameters; 464,154 with a biased classifier of 10 classes.
    assert sum(p.numel() for p in ResNet32(10).parameters()) == 464_154 - 10
    convolutions = [m for m in ResNet32(10).modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 31


def test_outputs_are_cosines_that_ignore_the_length_of_the_class_vectors() -> None:
    torch.manual_seed(0)
    model = ResNet32(10).eval()
    images = torch.randn(4, 3, 32, 32)
    cosines = model(images)
    assert cosines.abs().max() <= 1 + 1e-6
    with torch.no_grad():
        model.linear.weight.mul_(torch.rand(10, 1) * 5 + 0.1)
    torch.testing.assert_close(model(images), cosines)


def test_shortcut_a_takes_every_second_pixel_and_pads_channels_with_zeros() -> None:
    block = BasicBlock(4, 8, stride=2).eval()
    torch.nn.init.zeros_(block.conv2.weight)  # leaves the shortcut alone
    x = torch.rand(1, 4, 6, 6)
    out = block(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert torch.equal(out[:, :2], torch.zeros(1, 2, 3, 3))
    assert torch.equal(out[:, 6:], torch.zeros(1, 2, 3, 3))


class Recorder(torch.nn.Module):
    """Keeps what it was shown."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = images
        return images.mean(dim=(2, 3))


def test_the_teacher_sees_the_students_tensor_at_pixels_3_10_17() -> None:
    recorder = Recorder()
    images = torch.randn(2, 3, 224, 224)
    labels = Teacher(recorder, card(32)).label(images)
    torch.testing.assert_close(recorder.seen, images[:, :, 3::7, 3::7])
    assert torch.equal(labels, images[:, :, 3::7, 3::7].mean(dim=(2, 3)).argmax(dim=1))


def test_at_its_own_size_it_sees_the_very_tensor() -> None:
    recorder = Recorder()
    images = torch.randn(2, 3, 32, 32)
    Teacher(recorder, card(32)).label(images)
    assert recorder.seen is images


def test_it_is_frozen_and_in_eval_mode() -> None:
    teacher = Teacher(ResNet32(10).train(), card(16))
    before = teacher.model.state_dict()["bn1.running_mean"].clone()
    labels = teacher.label(torch.randn(2, 3, 16, 16, requires_grad=True))
    assert not labels.requires_grad
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert torch.equal(teacher.model.state_dict()["bn1.running_mean"], before)


def test_it_comes_back_from_its_file(tmp_path: Path) -> None:
    model = ResNet32(10).eval()
    save_weights(tmp_path / "teacher.safetensors", model, card())
    images = torch.randn(2, 3, 32, 32)
    loaded = load_teacher(tmp_path)
    assert torch.equal(loaded.model(images), model(images))
    assert loaded.card == card()


def test_a_file_that_is_no_teacher_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        load_teacher(tmp_path)
    file.write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError, match="damaged"):
        load_teacher(tmp_path)
    with pytest.raises(CheckpointError, match="unknown teacher"):
        build_teacher({"name": "resnet9000", "num_classes": 3})
