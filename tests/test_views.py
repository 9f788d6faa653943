"""Whole views: against Pillow step by step, the same for the same plan, and the recipes' own."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deitlt.errors import UsageError
from deitlt.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec, normalise, resize_crop
from training.augmentation import report
from training.augmentation.crops import PaddedCrop, ResizedCrop
from training.augmentation.named_views import (
    large_teacher_view,
    paco_cifar_views,
    paco_imagenet_views,
    student_view,
    three_augment_view,
    weak_view,
)
from training.augmentation.operations import Op, is_geometric, resampled_again
from training.augmentation.report import photographs, step_by_step, to_levels, to_tensor
from training.augmentation.views import RandomView

MEAN, STD = IMAGENET_MEAN, IMAGENET_STD

VIEWS: dict[str, tuple[Callable[[], RandomView], float]] = {
    "student": (lambda: student_view(48, MEAN, STD, random_erasing=0), 0.4),
    "3-Augment": (lambda: three_augment_view(48, MEAN, STD), 0.0001),
    "weak": (lambda: weak_view(48, MEAN, STD), 0.0001),
    "large teacher": (lambda: large_teacher_view(48, MEAN, STD), 0.02),
    "PaCo CIFAR 2": (lambda: paco_cifar_views(48, MEAN, STD)[1], 0.02),
    "PaCo ImageNet 1": (lambda: paco_imagenet_views(48, MEAN, STD)[0], 1.0),
    "PaCo ImageNet 2": (lambda: paco_imagenet_views(48, MEAN, STD)[1], 0.02),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_near_pillow_step_by_step(name: str) -> None:
    make, tolerance = VIEWS[name]
    view, images = make(), photographs(40, 48, 48)
    plan = view.draw(np.random.default_rng(3), len(images))
    views = view.apply(to_tensor(images), plan)
    assert views.shape == (40, 3, 48, 48)
    assert views.dtype == torch.float32
    wanted = np.stack([step_by_step(view, images[i], plan, i) for i in range(len(images))])
    assert np.abs(to_levels(views, view).astype(int) - wanted).mean() < tolerance


def test_a_streamed_crop_is_timms_to_the_bit_without_geometry() -> None:
    view = student_view(40, MEAN, STD, random_erasing=0)
    images = photographs(60, 70, 90)
    plan = view.draw(np.random.default_rng(0), 60)
    cropped = np.stack([view.crop(Image.fromarray(images[i]), plan, i) for i in range(60)])
    made = to_levels(view.apply_cropped(to_tensor(cropped), plan), view)
    for i in range(60):
        if not is_geometric(plan.codes[i]).any():
            assert np.array_equal(made[i], step_by_step(view, images[i], plan, i))


def test_fill_goes_through_what_follows_it_and_nothing_else() -> None:
    view = RandomView(
        img_size=32, mean=(0, 0, 0), std=(1, 1, 1), crop=PaddedCrop(0), flip=0, fill=(10, 20, 30),
        policies=(),
    )  # fmt: skip
    drawn = view.draw(np.random.default_rng(0), 2)
    orders = [[Op.TRANSLATE_X, Op.INVERT], [Op.INVERT, Op.TRANSLATE_X]]
    codes, args = np.array(orders, dtype=np.int8), np.array([[8.0, 0.0], [0.0, 8.0]])
    plan = replace(drawn, codes=codes, args=args)
    made = to_levels(view.apply(to_tensor(photographs(2, 32, 32)), plan), view)
    assert (made[0, :, -8:] == (245, 235, 225)).all()
    assert (made[1, :, -8:] == (10, 20, 30)).all()


def test_equalize_before_a_rotation_sees_the_unrotated_frame() -> None:
    view = RandomView(
        img_size=40, mean=(0, 0, 0), std=(1, 1, 1), crop=ResizedCrop(), fill=(1, 2, 3)
    )
    images, drawn = photographs(6, 50, 50), view.draw(np.random.default_rng(0), 6)
    codes = np.array([[Op.EQUALIZE, Op.ROTATE]] * 6, dtype=np.int8)
    plan = replace(drawn, codes=codes, args=np.array([[0.0, 25.0]] * 6))
    assert resampled_again(codes)[:, 1].all()
    made = to_levels(view.apply(to_tensor(images), plan), view)
    wanted = np.stack([step_by_step(view, images[i], plan, i) for i in range(6)])
    assert np.abs(made.astype(int) - wanted).mean() < 0.3


def test_a_plan_is_all_the_chance_there_is() -> None:
    view = student_view(24, MEAN, STD, random_erasing=1.0)
    images = to_tensor(photographs(16, 30, 30))
    plan = view.draw(np.random.default_rng(5), 16)
    sent = pickle.loads(pickle.dumps(plan))
    torch.manual_seed(1)
    first = view.apply(images.clone(), plan)
    torch.manual_seed(2)
    assert torch.equal(first, view.apply(images, sent))
    assert len(pickle.dumps(plan)) < 16 * 400
    again = view.apply(images, view.draw(np.random.default_rng(5), 16))
    assert torch.equal(first, again)
    other = view.apply(images, view.draw(np.random.default_rng(6), 16))
    assert not torch.equal(first, other)


def test_sources_are_left_as_they_were() -> None:
    images = to_tensor(photographs(12, 32, 32))
    kept = images.clone()
    for make, _ in VIEWS.values():
        view = make()
        if isinstance(view.crop_kind, ResizedCrop):
            view.apply(images, view.draw(np.random.default_rng(0), 12))
    view = student_view(32, MEAN, STD)
    view.apply_cropped(images, view.draw(np.random.default_rng(0), 12))
    assert torch.equal(images, kept)


def test_erasing_puts_normal_noise_into_the_planned_rectangles() -> None:
    view = student_view(64, MEAN, STD, policy="", random_erasing=0.5)
    images = to_tensor(np.zeros((200, 32, 32, 3), dtype=np.uint8))
    plan = view.draw(np.random.default_rng(0), 200)
    views = view.apply(images, plan)
    black = view.normalise(torch.zeros(1, 3, 1, 1, dtype=torch.uint8))
    erased = ((views - black).abs() > 1e-6).all(1)
    assert abs((plan.erased[:, 2] > 0).mean() - 0.5) < 0.15
    noise = []
    for mask, values, (top, left, height, width) in zip(erased, views, plan.erased, strict=True):
        assert int(mask.sum()) == height * width
        assert bool(mask[top : top + height, left : left + width].all())
        noise.append(values[:, mask].flatten())
    every = torch.cat(noise)
    assert abs(float(every.mean())) < 0.02
    assert abs(float(every.std()) - 1) < 0.02


def test_without_chance_a_view_is_what_evaluation_sees() -> None:
    image = Image.fromarray(photographs(1, 50, 40)[0])
    spec = PreprocessSpec(32, 1.0, MEAN, STD)
    view = weak_view(32, MEAN, STD, padding=0, flip=0)
    prepared = view.prepare(image)
    assert np.array_equal(prepared, resize_crop(image, spec))
    made = view.apply(to_tensor(prepared[None]), view.draw(np.random.default_rng(0), 1))
    wanted = torch.from_numpy(normalise(prepared[None], spec))
    torch.testing.assert_close(made, wanted, atol=2e-6, rtol=1e-6)


def test_pacos_first_cifar_view_has_a_black_square_in_a_grey_filled_image() -> None:
    view = paco_cifar_views(32, MEAN, STD)[0]
    assert view.fill == (128, 128, 128)
    images = to_tensor(np.full((50, 32, 32, 3), 200, dtype=np.uint8))
    plan = view.draw(np.random.default_rng(0), 50)
    made = to_levels(view.apply(images, plan), view)
    for picture, (top, left, height, width) in zip(made, plan.cutout, strict=True):
        assert not picture[top : top + height, left : left + width].any()


@pytest.mark.parametrize(
    "options", [{"flip": 1.5}, {"img_size": 0}, {"random_erasing": -0.1}, {"policy": "v0"}]
)
def test_wrong_views_are_refused_in_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        student_view(**{"img_size": 32, "mean": MEAN, "std": STD, **options})
    assert "\n" not in str(caught.value)


def test_the_report_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    status = report.main(["--images", "8", "--draws", "400", "--side", "32"])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "EXCEEDED" not in printed
    assert "times as fast" in printed


def test_the_report_shows_what_exceeds_its_tolerance() -> None:
    line = report.Line("rotate", "30, noise", 0.2, 0.1)
    assert "EXCEEDED" in str(line)
