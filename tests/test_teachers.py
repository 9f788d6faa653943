"""The teacher networks, and that a teacher answers for the student's own tensor."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.models import resnet50

from deitlt.errors import CheckpointError
from deitlt.preprocess import CIFAR_MEAN, CIFAR_STD, PreprocessSpec
from deitlt.weights import Card, save_weights
from training.teachers import labelling
from training.teachers.labelling import Teacher, load_teacher
from training.teachers.networks import BasicBlock, CosineClassifier, ResNet32, build_teacher


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


@pytest.mark.parametrize(("size", "side"), [(224, 32), (96, 32), (224, 8), (64, 32), (28, 32)])
def test_resizing_is_torchs_to_the_last_bit(size: int, side: int) -> None:
    images = torch.randn(2, 3, size, size)
    expected = F.interpolate(images, size=(side, side), mode="bicubic", antialias=False)
    assert torch.equal(labelling._resized(images, side), expected)


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
        model.linear.get_parameter("weight").mul_(torch.rand(10, 1) * 5 + 0.1)
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


@pytest.mark.parametrize(
    ("name", "classifier", "width"),
    [
        ("resnet32", "linear", 64),
        ("resnet34", "linear", 512),
        ("resnet34", "cosine", 512),
        ("resnet50", "cosine", 2048),
        ("timm/regnety_002", "linear", 368),
    ],
)
def test_every_network_classifies_its_features(name: str, classifier: str, width: int) -> None:
    model = build_teacher({"name": name, "classifier": classifier, "num_classes": 5}).eval()
    images = torch.randn(2, 3, 32, 32)
    features = model.features(images)
    assert features.shape == (2, width)
    torch.testing.assert_close(model(images), model.linear(features))
    assert isinstance(model.linear, CosineClassifier) == (classifier == "cosine")
    if classifier == "cosine":
        assert model(images).abs().max() <= 1 + 1e-6


def test_a_card_without_a_classifier_has_cosines() -> None:
    model = build_teacher({"name": "resnet32", "num_classes": 10})
    assert isinstance(model.linear, CosineClassifier)


@pytest.mark.parametrize(
    "architecture", [{"name": "timm/no_such"}, {"name": "regnety_002"}, {"classifier": "cubic"}]
)
def test_an_unknown_network_is_refused_in_one_line(architecture: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"^unknown teacher [^\n]*$"):
        build_teacher({"name": "resnet32", "num_classes": 3, **architecture})


def test_resnet50_is_torchvisions_under_its_own_names() -> None:
    ours, theirs = build_teacher({"name": "resnet50", "num_classes": 5}).eval(), resnet50().eval()
    tensors = {n: t for n, t in theirs.state_dict().items() if not n.startswith("fc.")}
    ours.load_state_dict({**tensors, "linear.weight": torch.zeros(5, 2048)})
    theirs.fc = torch.nn.Identity()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours.features(images), theirs(images))


def test_cosines_keep_their_digits_under_autocast() -> None:
    torch.manual_seed(0)
    classifier, features = CosineClassifier(64, 10), torch.randn(4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        cosines = classifier(features)
    assert torch.equal(cosines, classifier(features))


def test_a_linear_classifier_keeps_its_digits_under_autocast() -> None:
    torch.manual_seed(0)
    network, images = ResNet32(10, "linear").eval(), torch.randn(4, 3, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features, logits = network.features(images), network(images)
    assert torch.equal(logits, network.linear(features.float()))


@pytest.mark.parametrize(
    ("architecture", "recipe", "scale"),
    [
        ({"name": "resnet32"}, {}, 30.0),
        ({"name": "resnet32", "classifier": "cosine"}, {"scale": 16.0}, 16.0),
        ({"name": "resnet32", "classifier": "linear"}, {"scale": 30.0}, 1.0),
    ],
)
def test_logits_are_scaled_where_the_classifier_gives_cosines(
    architecture: dict[str, Any], recipe: dict[str, Any], scale: float
) -> None:
    described = replace(card(32), architecture=architecture, recipe=recipe)
    images = torch.randn(2, 3, 32, 32)
    teacher = Teacher(Recorder(), described)
    torch.testing.assert_close(teacher.logits(images), scale * images.mean(dim=(2, 3)))
    assert torch.equal(teacher.label(images), teacher.logits(images).argmax(dim=1))


def test_it_may_be_shown_images_in_its_own_normalisation() -> None:
    recorder = Recorder()
    student = PreprocessSpec(56)
    own = replace(card(8), preprocess=PreprocessSpec(8, 1.0, CIFAR_MEAN, CIFAR_STD))
    pixels = np.random.default_rng(0).uniform(size=(2, 3, 56, 56))

    def normalised(spec: PreprocessSpec) -> torch.Tensor:
        mean, std = (np.reshape(v, (3, 1, 1)) for v in (spec.mean, spec.std))
        return torch.tensor((pixels - mean) / std, dtype=torch.float32)

    Teacher(recorder, own, source=student).label(normalised(student))
    expected = normalised(own.preprocess)[:, :, 3::7, 3::7]
    torch.testing.assert_close(recorder.seen, expected, rtol=1e-5, atol=1e-5)


def test_it_stays_in_eval_mode_as_part_of_a_training_model() -> None:
    teacher = Teacher(ResNet32(10), card(16))
    torch.nn.ModuleDict({"teacher": teacher}).train()
    assert not any(module.training for module in teacher.modules())


def test_it_answers_under_autocast_and_in_one_graph() -> None:
    torch.manual_seed(0)
    teacher = Teacher(ResNet32(10), card(8))
    images = torch.randn(2, 3, 56, 56)
    with torch.autocast("cpu", torch.bfloat16):
        assert teacher.label(images).shape == (2,)
    explained = torch._dynamo.explain(teacher.label)(images)
    assert explained.graph_break_count == 0, explained.break_reasons
