"""Several micro-batches in one forward pass give what they give one after the other."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from deitlt.labelled import LabelledImages, read_labelled
from tests.distillation_support import COUNTS, Case


@pytest.fixture(scope="module")
def images(
    tmp_path_factory: pytest.TempPathFactory,
    class_tree: Callable[[Path, Mapping[str, int]], Path],
) -> LabelledImages:
    counts = dict(zip("abc", COUNTS, strict=True))
    return read_labelled(class_tree(tmp_path_factory.mktemp("at_once") / "data", counts))["all"]


@pytest.mark.parametrize("at_once", [2, 3])
@pytest.mark.parametrize("fields", [{}, {"distilled": False}, {"distillation": "soft"}])
@pytest.mark.parametrize("epoch", [0, 6])  # the latter is in the DRW phase
def test_micro_batches_in_one_pass_are_each_mixed_and_weighted_by_itself(
    images: LabelledImages, epoch: int, fields: dict[str, Any], at_once: int
) -> None:
    one, several = Case(images, **fields), Case(images, at_once=at_once, **fields)
    _, expected = one.step(epoch)
    _, figures = several.step(epoch)
    torch.testing.assert_close(figures, expected)
    torch.testing.assert_close(several.gradients(), one.gradients())
    if one.recipe.distilled:
        assert len(one.eyes.images) == 2
        (seen,) = several.eyes.images
        assert torch.equal(seen, torch.cat(one.eyes.images))
