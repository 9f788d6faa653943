"""The analyses, each against a case computed by hand or by another program."""

import warnings
from math import hypot, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from deitlt.errors import DataError
from deitlt.labelled import LabelledImages
from deitlt.preprocess import PreprocessSpec
from deitlt.student import DeiTLT, PlainViT, Size, StudentConfig, build_student
from training.analysis.attention import experts, walk
from training.analysis.attention_distance import (
    mean_attention_distance,
    patch_distances,
    uniform_distance,
)
from training.analysis.confusion import ConfusedPair, merged, most_confused
from training.analysis.curves import cosine_distance_curve, read_curves, validation_curve
from training.analysis.divergence import cosine_distance
from training.analysis.feature_rank import feature_rank
from training.analysis.images import ReadableImages, pick_evenly
from training.analysis.pictures import LIGHT, draw
from training.analysis.rollout import expert_maps, roll
from training.analysis.teacher_entropy import entropy, sureness


def student(size: Size, **fields: Any) -> DeiTLT | PlainViT:
    torch.manual_seed(0)
    config = StudentConfig(size=size, img_size=32, patch_size=8, num_classes=5, **fields)
    model: DeiTLT | PlainViT = build_student(config).eval()
    for block in model.blocks:  # far from uniform, as trained attention is
        block.attn.qkv.weight.data.mul_(4)
    return model


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("size", "fields"),
    [
        ("pico", {}),
        ("tiny", {}),
        ("small", {"drop_path_rate": 0.3}),
        ("pico", {"distilled": False, "layer_scale": 0.1}),
    ],
)
def test_attention_is_what_timm_computes_without_fusing(size: Size, fields: Any) -> None:
    model = student(size, **fields)
    views = list(walk(model, images()))
    seen: list[Tensor] = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.inference_mode():
        tokens = model.tokens(images())
        last = model.norm(views[-1].tokens)
    assert len(views) == len(seen) == len(model.blocks)
    for view, expected in zip(views, seen, strict=True):
        torch.testing.assert_close(view.attention, expected, rtol=1e-3, atol=1e-4)
    assert max(float(view.attention.max()) for view in views) > 0.1
    torch.testing.assert_close(last, tokens, rtol=1e-4, atol=1e-4)
    assert tokens.shape[1] == len(experts(model))


def test_one_hot_attention_rolls_out_to_itself() -> None:
    # Every token looks at itself alone: what reaches it is itself, however many blocks.
    itself = torch.eye(6).expand(2, 3, 6, 6)
    rolled = None
    for _ in range(4):
        rolled = roll(rolled, itself)
    assert rolled is not None
    torch.testing.assert_close(rolled, torch.eye(6).expand(2, 6, 6))


def test_a_rollout_of_two_blocks_by_hand() -> None:
    # Two tokens. Block 1: token 0 looks at both, token 1 at 0. Block 2, the mean of two heads:
    # token 0 looks at both, token 1 at itself.
    first = torch.tensor([[[[0.5, 0.5], [1.0, 0.0]]]])
    second = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]]])
    # Half with the skip: [[.75, .25], [.5, .5]]; then [[.75, .25], [0, 1]] times that.
    torch.testing.assert_close(
        roll(roll(None, first), second), torch.tensor([[[0.6875, 0.3125], [0.5, 0.5]]])
    )


def test_a_rollouts_rows_sum_to_one_and_experts_come_first() -> None:
    model = student("tiny")
    rolled = None
    for view in walk(model, images()):
        rolled = roll(rolled, view.attention)
    assert rolled is not None
    torch.testing.assert_close(rolled.sum(dim=-1), torch.ones(3, 18))
    maps = expert_maps(rolled, 2)
    assert maps.shape == (3, 2, 4, 4)
    torch.testing.assert_close(maps[1, 1, 2, 3], rolled[1, 1, 2 + 2 * 4 + 3])


def test_distances_of_patches_are_those_of_a_ruler() -> None:
    distances = patch_distances(3, 16)
    assert distances.shape == (9, 9)
    assert distances[0, 8] == pytest.approx(16 * hypot(2, 2))
    assert distances[1, 3] == pytest.approx(16 * hypot(1, 1))
    assert (distances.diagonal() == 0).all()


def test_uniform_attention_gives_the_mean_grid_distance() -> None:
    # 2 x 2 patches of 4 px: to itself 0, twice 4, once 4 * sqrt(2).
    mean = (0 + 4 + 4 + 4 * 2**0.5) / 4
    alike = torch.full((1, 2, 4, 4), 1 / 4)
    torch.testing.assert_close(mean_attention_distance(alike, 0, 4), torch.full((1, 2), mean))
    # With two experts, of whom attention is not given back to the patches.
    alike = torch.full((1, 2, 6, 6), 1 / 6)
    found = mean_attention_distance(alike, 2, 4)
    torch.testing.assert_close(found, torch.full((1, 2), mean * 4 / 6))
    assert uniform_distance(2, 4, 2) == pytest.approx(mean * 4 / 6)


def test_attention_to_oneself_or_an_expert_is_no_distance() -> None:
    attention = torch.zeros(1, 2, 6, 6)
    attention[0, 0] = torch.eye(6)
    attention[0, 1, :, 1] = 1
    assert mean_attention_distance(attention, 2, 16).tolist() == [[0, 0]]


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_a_rank_k_matrix_has_rank_k(rank: int) -> None:
    generator = np.random.default_rng(0)
    # Directions of equal length, so that none is within the tolerance.
    basis = np.linalg.qr(generator.normal(size=(20, rank)))[0]
    codes = np.linalg.qr(generator.normal(size=(60, rank)))[0]
    codes -= codes.mean(axis=0)
    features = (codes @ basis.T + 5).astype(np.float32)
    everything = np.ones(60, dtype=np.bool_)
    assert feature_rank(features, everything, tolerance=1e-6) == rank


def test_rank_asks_for_99_percent_of_the_tail_along_directions_of_all() -> None:
    # Axes by variance of all: 0, 1, 2. The tail lies along 1 but for 2 % (then 0.5 %) along 2.
    head = np.zeros((40, 3), dtype=np.float32)
    head[:20, 0], head[20:, 0] = 50, -50
    for share, rank in ((0.02, 3), (0.005, 2)):
        tail = np.zeros((4, 3), dtype=np.float32)
        tail[:, 1] = np.array([1, -1, 1, -1]) * (1 - share) ** 0.5
        tail[:, 2] = np.array([1, 1, -1, -1]) * share**0.5
        features = np.concatenate([head, tail])
        assert feature_rank(features, np.arange(44) >= 40) == rank


def test_features_that_are_all_the_same_have_rank_nought() -> None:
    assert feature_rank(np.ones((5, 3), np.float32), np.ones(5, np.bool_)) == 0


def test_cosine_distance_of_known_angles() -> None:
    first = np.array([[1, 0], [1, 0], [2, 0], [1, 1]], np.float32)
    other = np.array([[3, 0], [0, 2], [-1, 0], [1, 0]], np.float32)
    assert cosine_distance(first, other) == pytest.approx([0, 1, 2, 1 - 0.5**0.5])


def test_entropy_of_certainty_and_of_none() -> None:
    logits = np.array([[0, 0, 0, 0], [1000, 0, 0, 0], [0, 0, -1000, -1000]], np.float32)
    assert entropy(logits) == pytest.approx([log(4), 0, log(2)])
    answer = sureness("clean", logits, np.array([0, 0, 1]))
    assert answer.right == pytest.approx(2 / 3)


def test_the_worst_mistakes_come_first() -> None:
    confusion = np.array([[8, 2, 0], [3, 5, 0], [2, 0, 0]])
    assert most_confused(confusion, 3) == [
        ConfusedPair(1, 0, 3, 3 / 8),
        ConfusedPair(0, 1, 2, 2 / 10),
        ConfusedPair(2, 0, 2, 1.0),
    ]
    assert most_confused(np.diag([1, 2]), 5) == []


def test_neighbouring_classes_are_taken_together() -> None:
    confusion = np.arange(25).reshape(5, 5)
    by_hand = [[confusion[:2, :2].sum(), confusion[:2, 2:].sum()],
               [confusion[2:, :2].sum(), confusion[2:, 2:].sum()]]  # fmt: skip
    assert merged(confusion, 2).tolist() == by_hand
    assert merged(confusion, 5).tolist() == confusion.tolist()


def test_curves_are_read_where_they_have_points(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(
        "epoch,loss,cls_dist_cosine,val_cls_balanced,val_average_balanced\n"
        "1,2.5,0.75,,\n2,1.5,0.5,0.1,0.25\n"
    )
    curves = read_curves(tmp_path)
    assert curves["loss"].values == [2.5, 1.5]
    held_out, apart = validation_curve(curves), cosine_distance_curve(curves)
    assert held_out is not None
    assert (held_out.epochs, held_out.values) == ([2], [0.25])
    assert apart is not None
    assert (apart.epochs, apart.values) == ([1, 2], [0.25, 0.5])
    assert read_curves(tmp_path / "none") == {}
    assert validation_curve({}) is cosine_distance_curve({}) is None


@pytest.mark.parametrize(
    "text", ["epoch,loss\nx,1\n", "loss\n1\n", "epoch,loss\n1,2,3\n", "garbage\n", ""]
)
def test_a_damaged_results_csv_gets_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(DataError, match=r"results\.csv: damaged"):
        read_curves(tmp_path)


def test_images_are_picked_evenly_and_always_the_same() -> None:
    labels = np.array([0] * 50 + [1] * 20 + [2] * 3)
    labelled = LabelledImages([Path(str(i)) for i in range(73)], labels, ["a", "b", "c"])
    picked = pick_evenly(labelled, 31)
    assert np.bincount(labels[picked]).tolist() == [14, 14, 3]
    assert (np.diff(picked) > 0).all()
    assert (pick_evenly(labelled, 31) == picked).all()
    assert len(pick_evenly(labelled, 1000)) == 73


def test_images_that_cannot_be_read_are_left_out_and_named(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        Image.new("RGB", (8, 8), (50 * i, 0, 0)).save(path)
    paths[1].write_bytes(b"no picture")
    paths[3].unlink()
    spec = PreprocessSpec(8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    source = ReadableImages(paths, spec, torch.device("cpu"), "test", batch_size=2)
    batches = list(source)
    reds = torch.cat(batches)[:, 0, 0, 0] * 255
    assert [len(batch) for batch in batches] == [1, 1, 1]
    assert reds.round().tolist() == [0, 100, 200]
    assert source.read == [0, 2, 4]
    assert list(source.unreadable) == [paths[1], paths[3]]
    with pytest.raises(DataError, match="none of 1 images can be read"):
        list(ReadableImages(paths[1:2], spec, torch.device("cpu"), "test"))


def test_names_in_a_script_that_the_font_lacks_cost_no_line_each() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph")
        picture = draw(lambda figure, _: figure.suptitle("日本 語"), 1, LIGHT)
    assert picture.startswith(b"\x89PNG")
