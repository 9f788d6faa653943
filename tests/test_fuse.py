"""Exact surgery: the fused student answers as the plain one, and each step is right by itself."""

from typing import get_args

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from deitlt.preprocess import Pixels, PreprocessSpec, normalise
from deitlt.student import DeiTLT, StudentConfig
from export.fuse import (
    Attention,
    FusedBlock,
    FusedStudent,
    Input,
    average_heads,
    flatten_patch,
    fold_normalisation,
)
from tests.export_support import noise_student, photo_pixels

# Channels that differ in mean and spread: who mixes them up is found out.
MEAN, STD = (0.1, 0.5, 0.7), (0.2, 0.3, 0.05)
SPEC = PreprocessSpec(16, mean=MEAN, std=STD)
NUM_TOKENS = 2 + 16


@pytest.fixture(scope="module")
def model() -> DeiTLT:
    config = StudentConfig(size="pico", img_size=16, patch_size=4, num_classes=10, layer_scale=0.1)
    return noise_student(config)


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return photo_pixels(12, SPEC)


def fresh_block(layer_scale: float | None = 0.1) -> Block:
    torch.manual_seed(0)
    block = Block(64, 4, qkv_bias=True, init_values=layer_scale).eval().requires_grad_(False)
    for parameter in block.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    return block


def images_for(pixels: Pixels, takes: Input, spec: PreprocessSpec) -> Tensor:
    return torch.from_numpy(pixels if takes == "pixels" else normalise(pixels, spec))


@torch.no_grad()
def assert_same(
    model: DeiTLT, spec: PreprocessSpec, pixels: Pixels, attention: Attention, takes: Input
) -> None:
    cls, dist = model(torch.from_numpy(normalise(pixels, spec)))
    assert cls.std() > 0.1, "answers too small to see a mistake in"
    images = images_for(pixels, takes, spec)
    features = model.forward_features(torch.from_numpy(normalise(pixels, spec)))  # timm's own
    expected = ((cls + dist) / 2, cls, dist, features[:, 0], features[:, 1])
    for experts in (True, False):
        fused = FusedStudent(
            model, spec, attention=attention, takes=takes, experts=experts, dtype=torch.float32
        )
        actual = fused(images)
        assert len(actual) == (5 if experts else 1)
        for ours, theirs in zip(actual, expected, strict=False):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("attention", get_args(Attention))
@pytest.mark.parametrize("takes", get_args(Input))
def test_every_form_is_the_plain_student(
    attention: Attention, takes: Input, model: DeiTLT, pixels: Pixels
) -> None:
    assert_same(model, SPEC, pixels, attention, takes)


@pytest.mark.parametrize(
    ("img_size", "patch_size", "num_classes", "num_images"),
    [
        (28, 2, 10, 3),
        (28, 4, 101, 5),
        (28, 7, 2, 5),
        (28, 14, 1000, 5),
        (28, 28, 10, 5),
        (32, 4, 8142, 3),
        (224, 16, 8142, 2),
    ],
)
@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_every_shape_is_the_plain_student(
    img_size: int, patch_size: int, num_classes: int, num_images: int, layer_scale: float | None
) -> None:
    config = StudentConfig(
        size="pico",
        img_size=img_size,
        patch_size=patch_size,
        num_classes=num_classes,
        layer_scale=layer_scale,
    )
    spec = PreprocessSpec(img_size, mean=MEAN, std=STD)
    model, pixels = noise_student(config), photo_pixels(num_images, spec)
    for takes in get_args(Input):
        assert_same(model, spec, pixels, "matmul", takes)


@torch.no_grad()
def test_an_images_answer_does_not_depend_on_its_neighbours(model: DeiTLT, pixels: Pixels) -> None:
    fused, images = FusedStudent(model, SPEC), torch.from_numpy(pixels)
    together = fused(images)[0]
    for i in range(len(images)):
        torch.testing.assert_close(fused(images[i : i + 1])[0], together[i : i + 1])


@torch.no_grad()
def test_the_student_is_left_as_it_was(pixels: Pixels) -> None:
    config = StudentConfig(size="pico", img_size=16, patch_size=4, num_classes=10, layer_scale=0.1)
    model = noise_student(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused = FusedStudent(model, SPEC, dtype=torch.float16)
    assert all(parameter.requires_grad for parameter in model.parameters())
    for parameter in fused.parameters():  # nothing is shared that could be changed through it
        parameter.zero_()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(after[name].dtype == tensor.dtype for name, tensor in before.items())


def plain_patches(model: DeiTLT, pixels: Pixels) -> Tensor:
    """The patch convolution on normalised pixels, in double precision: `(B, patches, D)`."""
    proj = model.patch_embed.proj
    scaled = torch.from_numpy(pixels).double() / 255
    images = ((scaled - torch.tensor(MEAN).double()) / torch.tensor(STD).double()).permute(
        0, 3, 1, 2
    )
    convolved = F.conv2d(images, proj.weight.double(), proj.bias.double(), stride=4)
    return convolved.flatten(2).transpose(1, 2)


def cut(images: Tensor, channels_last: bool) -> Tensor:
    """Patches of `(B, 16, 16, 3)` or `(B, 3, 16, 16)` images as rows, cut one by one."""
    rows = []
    for top in range(0, 16, 4):
        for left in range(0, 16, 4):
            window = (slice(top, top + 4), slice(left, left + 4))
            patch = images[:, *window] if channels_last else images[:, :, *window]
            rows.append(patch.flatten(1))
    return torch.stack(rows, dim=1).float()


@torch.no_grad()
def test_normalisation_folds_into_the_patch_embedding(model: DeiTLT, pixels: Pixels) -> None:
    expected = plain_patches(model, pixels)
    folded = fold_normalisation(model.patch_embed.proj, SPEC)
    actual = folded(cut(torch.from_numpy(pixels), channels_last=True))
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-5)
    flat = flatten_patch(model.patch_embed.proj)
    actual = flat(cut(torch.from_numpy(normalise(pixels, SPEC)), channels_last=False))
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-5)


@torch.no_grad()
def test_tokens_take_their_position_beforehand(model: DeiTLT) -> None:
    fused = FusedStudent(model, SPEC)
    embedded = model._pos_embed(torch.zeros(1, 16, 64))  # timm's own: concatenates, then adds
    ours = torch.cat([fused.prefix, fused.position], dim=1)
    torch.testing.assert_close(ours, embedded, rtol=0, atol=0)


@torch.no_grad()
def test_the_average_is_one_product(model: DeiTLT) -> None:
    c, d = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(0))
    product = average_heads(model.head, model.head_dist)
    expected = (model.head(c) + model.head_dist(d)) / 2
    torch.testing.assert_close(product(torch.cat([c, d], dim=1)), expected)


@pytest.mark.parametrize("num_rows", [2, NUM_TOKENS])
@pytest.mark.parametrize("attention", get_args(Attention))
@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_a_block_gives_the_first_rows_of_the_plain_one(
    num_rows: int, attention: Attention, layer_scale: float | None
) -> None:
    block = fresh_block(layer_scale)
    tokens = torch.randn(3, NUM_TOKENS, 64, generator=torch.Generator().manual_seed(0))
    expected = block(tokens)[:, :num_rows]
    assert (expected - tokens[:, :num_rows]).std() > 0.3, "the block does too little to be seen"
    fused = FusedBlock(block, NUM_TOKENS, attention, num_rows)
    actual = fused(tokens.reshape(-1, 64))[0].reshape(3, num_rows, 64)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


def test_only_the_last_block_is_cut_to_two_rows(model: DeiTLT) -> None:
    fused = FusedStudent(model, SPEC)
    assert [block.num_rows for block in fused.blocks] == [NUM_TOKENS] * 3 + [2]


def test_attentions_scale_is_in_the_queries() -> None:
    block = fresh_block()
    fused = FusedBlock(block, NUM_TOKENS, "matmul", NUM_TOKENS)
    rows = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    query, key, value = block.attn.qkv(rows).split(64, dim=1)
    torch.testing.assert_close(fused.query(rows), query / 4)  # heads are 16 wide
    torch.testing.assert_close(fused.key(rows), key)
    torch.testing.assert_close(fused.value(rows), value)


def test_layer_scale_is_in_the_weights_before_it() -> None:
    block = fresh_block()
    fused = FusedBlock(block, NUM_TOKENS, "matmul", NUM_TOKENS)
    generator = torch.Generator().manual_seed(0)
    rows, wide = torch.randn(5, 64, generator=generator), torch.randn(5, 256, generator=generator)
    assert block.ls1.gamma.std() > 0.1
    torch.testing.assert_close(fused.proj(rows), block.ls1.gamma * block.attn.proj(rows))
    torch.testing.assert_close(fused.fc2(wide), block.ls2.gamma * block.mlp.fc2(wide))
    without = fresh_block(None)
    fused = FusedBlock(without, NUM_TOKENS, "matmul", NUM_TOKENS)
    assert torch.equal(fused.proj.weight, without.attn.proj.weight)
    assert torch.equal(fused.fc2.bias, without.mlp.fc2.bias)


@torch.no_grad()
def test_half_precision_spares_the_heads(model: DeiTLT, pixels: Pixels) -> None:
    half = FusedStudent(model, SPEC, dtype=torch.float16)
    float32 = {"head", "head_dist", "average"}
    for name, parameter in half.named_parameters():
        wanted = torch.float32 if name.split(".")[0] in float32 else torch.float16
        assert parameter.dtype == wanted, name
    whole = FusedStudent(model, SPEC)
    for name in ("head", "head_dist", "average"):
        ours, theirs = half.get_submodule(name), whole.get_submodule(name)
        assert isinstance(ours, nn.Linear)
        assert isinstance(theirs, nn.Linear)
        assert torch.equal(ours.weight, theirs.weight)
    images = torch.from_numpy(pixels)
    for actual, expected in zip(half(images), whole(images), strict=True):
        assert actual.dtype == torch.float32
        worst = (actual - expected).abs().max()
        assert 1e-6 < worst < 0.02, "not rounded at all, or by more than float16 rounds"


@torch.no_grad()
def test_a_patch_in_half_precision_is_rounded_as_its_answer_is(pixels: Pixels) -> None:
    config = StudentConfig(size="pico", img_size=16, patch_size=4, num_classes=10)
    model = noise_student(config)
    # Filters of one sign answer the brightness of a patch, whose folded mean is a large bias.
    model.patch_embed.proj.weight.abs_()
    expected = plain_patches(model, pixels)
    half = FusedStudent(model, SPEC, dtype=torch.float16)
    images = torch.from_numpy(pixels)
    patches = half._patches(images)
    assert torch.equal(patches.float() + 128, FusedStudent(model, SPEC)._patches(images))
    worst = (half.patch(patches).reshape(expected.shape).double() - expected).abs()
    step = torch.finfo(torch.float16).eps
    assert 0 < worst.max() < step / 2 * expected.abs().max()
    # With the mean in the bias it would be 0.43 steps, however exact the sums.
    assert worst.square().mean().sqrt() < step / 4 * expected.square().mean().sqrt()
