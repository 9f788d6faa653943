"""What the gate makes of chance: refused where a loss is certain, certified where none is left."""

import numpy as np
import pytest

from export.gate import judge
from tests.gate_support import COUNTS, LABELS, group, judge_int8, one_hot, spread, wrong


def test_a_loss_over_the_limit_is_refused_overall_though_it_may_be_chance() -> None:
    gate = judge_int8(wrong(LABELS, *spread(4)))
    assert gate.overall.difference == pytest.approx(-0.004)
    assert gate.overall.interval[1] > 0
    assert gate.loses
    assert "loses 0.4 points overall" in str(gate.refusal())


def test_a_loss_that_may_be_chance_passes_with_what_is_not_ruled_out() -> None:
    gate = judge_int8(wrong(LABELS, *spread(3)))
    assert gate.overall.difference == pytest.approx(-0.003)
    assert gate.overall.interval[0] < -0.003 < 0 < gate.overall.interval[1]
    assert (gate.overall.verdict, gate.refusal(), gate.loses) == ("passes", None, False)
    doubt = gate.doubt()
    assert doubt is not None
    points = -100 * gate.overall.interval[0]
    assert doubt.startswith(
        "1000 images cannot certify the limits; not ruled out are losses of up to, in points: "
        f"{points:.2g} overall (limit 0.3), "
    )
    assert " in tail (limit 0.5)" in doubt
    assert gate.to_dict()["doubt"] == doubt
    assert gate.to_dict()["overall"]["verdict"] == "passes"


@pytest.mark.parametrize(("each", "certified"), [(3000, True), (50, False)])
def test_what_is_certified_leaves_no_doubt(each: int, certified: bool) -> None:
    labels = np.repeat(np.arange(10), each)
    torch, variant = wrong(labels, *range(0, 10 * each, 1000)), one_hot(labels)
    gate = judge("int8", labels, torch, variant, COUNTS)
    assert (gate.doubt() is None) == certified
    found = {gate.overall.verdict, *(c.verdict for c in gate.groups.values() if c)}
    assert found == {"certified" if certified else "passes"}


@pytest.mark.parametrize(
    ("num_images", "flipped", "loss", "least", "most"),
    [
        # As good as torch; a point estimate in the groups, too, refuses 45 % and 62 %.
        (1000, 0.01, 0.0, 0, 0.2),
        (1000, 0.02, 0.0, 0, 0.35),
        (10000, 0.01, 0.0, 0, 0.06),
        (1000, 0.01, 0.01, 0.95, 1),
        (1000, 0.02, 0.02, 0.99, 1),
        (10000, 0.01, 0.006, 0.98, 1),
    ],
)
def test_chance_passes_and_losses_are_found(
    num_images: int, flipped: float, loss: float, least: float, most: float
) -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), num_images // 10)
    refused = []
    for _ in range(150):
        chance = generator.random(num_images)
        lost = np.flatnonzero(chance < (flipped + loss) / 2)
        won = np.flatnonzero(chance > 1 - (flipped - loss) / 2)
        gate = judge("int8", labels, wrong(labels, *won), wrong(labels, *lost), COUNTS)
        refused.append(gate.refusal() is not None)
    assert least <= np.mean(refused) <= most


@pytest.mark.parametrize(("lost", "certain"), [(5, False), (6, True)])
def test_a_small_group_gates_where_the_loss_is_certain(lost: int, certain: bool) -> None:
    labels = np.concatenate([np.repeat(np.arange(7), 300), np.repeat([7, 8, 9], 66)])
    counts = [*COUNTS[:6], 20, *COUNTS[7:]]  # few is then tail, so nothing else judges it
    variant = wrong(labels, *range(2100, 2100 + lost))
    gate = judge("int8", labels, one_hot(labels), variant, counts)
    tail = group(gate, "tail")
    assert tail.difference == pytest.approx(-lost / 66 / 3)
    assert tail.verdict == ("refused" if certain else "passes")
    assert (gate.refusal() is not None) == gate.loses == certain


def test_what_is_broken_is_refused_on_the_fewest_images() -> None:
    labels = np.arange(334) % 10
    broken = one_hot(np.random.default_rng(0).integers(0, 10, 334))
    assert judge_int8(broken, labels).loses
    assert judge_int8(wrong(labels, *range(0, 334, 10)), labels).loses
