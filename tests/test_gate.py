"""The accuracy gate against scikit-learn, published and hand-worked examples, and simulation."""

import json
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from deitlt.errors import UsageError
from deitlt.longtail import IntArray, all_groups
from deitlt.metrics import report
from export.gate import judge, paired_interval
from tests.gate_support import (
    COUNTS,
    LABELS,
    Logits,
    group,
    in_class,
    judge_int8,
    one_hot,
    spread,
    wrong,
)


def random_case(seed: int) -> tuple[IntArray, Logits, Logits]:
    """Labels of very unequal classes, some absent, and logits full of ties of two models."""
    generator = np.random.default_rng(seed)
    share = generator.dirichlet(np.full(10, 0.5))
    labels = generator.choice(10, 400, p=share)
    torch = generator.integers(0, 4, size=(400, 10)).astype(np.float64)
    torch[np.arange(400), labels] += 2
    return labels, torch, np.round(torch + generator.normal(0, 0.7, size=torch.shape))


@pytest.mark.parametrize("seed", range(20))
def test_accuracies_are_the_reports(seed: int) -> None:
    labels, torch, variant = random_case(seed)
    gate = judge("int8", labels, torch, variant, COUNTS)
    reports = [report(labels, logits, COUNTS) for logits in (torch, variant)]
    pairs = [(gate.overall, [r.overall for r in reports])]
    for name, comparison in gate.groups.items():
        expected = [r.groups[name] for r in reports]
        if comparison is None:
            assert expected[0].value is None
        else:
            pairs.append((comparison, expected))
    assert gate.groups.keys() == reports[0].groups.keys()
    assert len(pairs) >= 4
    for comparison, (of_torch, of_variant) in pairs:
        assert of_torch.value is not None
        assert of_variant.value is not None
        assert comparison.torch == pytest.approx(of_torch.value, abs=1e-12)
        assert comparison.variant == pytest.approx(of_variant.value, abs=1e-12)
        difference = of_variant.value - of_torch.value
        assert comparison.difference == pytest.approx(difference, abs=1e-12)
        low, high = comparison.interval
        assert -1 <= low <= comparison.difference <= high <= 1
        assert comparison.num_images == of_torch.num_images


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_scikit_learns_balanced_accuracy_and_weights_are_kishs(seed: int) -> None:
    labels, torch, variant = random_case(seed)
    gate = judge("int8", labels, torch, variant, COUNTS)
    for name, classes in all_groups(COUNTS).items():
        inside = np.isin(labels, classes)
        if not inside.any():
            assert gate.groups[name] is None
            continue
        comparison = group(gate, name)
        present = np.unique(labels[inside])
        recalls = [
            sklearn_metrics.recall_score(
                labels, logits.argmax(axis=1), labels=present, average="macro", zero_division=0
            )
            for logits in (torch, variant)
        ]
        assert [comparison.torch, comparison.variant] == pytest.approx(recalls)
        # Image by image, as the definition has it.
        totals = np.bincount(labels, minlength=10)
        weights = 1 / (len(present) * totals[labels[inside]])
        assert weights.sum() == pytest.approx(1)
        assert comparison.effective_images == pytest.approx(1 / (weights**2).sum())
        assert comparison.effective_images <= comparison.num_images + 1e-9
        right = [(logits.argmax(axis=1) == labels)[inside] for logits in (torch, variant)]
        lost = float(weights[right[0] & ~right[1]].sum())
        won = float(weights[right[1] & ~right[0]].sum())
        expected = paired_interval(lost, won, comparison.effective_images)
        assert comparison.interval == pytest.approx(expected)


@pytest.mark.parametrize(
    ("lost", "won", "num_images", "interval"),
    [
        (4, 26, 48, (0.2548067, 0.6251933)),  # the manual of R's statpsych, Bonett's own package
        (92, 82, 299, (-0.11952594, 0.05308076)),  # the same, ci.pairs.prop1: 82 and 92 of 299
    ],
)
def test_interval_is_the_published_one(
    lost: int, won: int, num_images: int, interval: tuple[float, float]
) -> None:
    actual = paired_interval(lost / num_images, won / num_images, num_images)
    low, high = sorted(interval)
    assert actual == pytest.approx((low, high), abs=5e-8)


def test_interval_stays_in_range() -> None:
    assert paired_interval(1.0, 0.0, 2)[0] == -1
    assert paired_interval(0.0, 1.0, 2)[1] == 1


def test_a_pair_worked_by_hand() -> None:
    # 400 images: 10 lost, 4 won. p12 = 11/402, p21 = 5/402, difference of these -6/402,
    # standard error sqrt((16/402 - (6/402)^2) / 402) = 0.00992236.
    labels = np.repeat(np.arange(10), 40)
    torch, variant = wrong(labels, 0, 1, 2, 3), wrong(labels, *range(100, 110))
    overall = judge("int8", labels, torch, variant, COUNTS).overall
    assert (overall.torch, overall.variant) == (0.99, 0.975)
    assert overall.difference == pytest.approx(-6 / 400)
    assert overall.interval == pytest.approx((-0.0343728, 0.0045221), abs=1e-7)
    assert (overall.num_images, overall.effective_images) == (400, 400)


@pytest.mark.parametrize(
    ("totals", "lost", "won"),
    [
        ([100] * 10, [0.02] * 10, [0.01] * 10),
        ([36] * 10, [0.02] * 10, [0.02] * 10),
        ([3] * 1000, [0.03] * 1000, [0.02] * 1000),
        ([500, 300, 180, 108, 64, 39, 23, 14, 8, 5], [0.05] * 10, [0.02] * 10),
        ([500, 300, 180, 108, 64, 39, 23, 14, 8, 5], [0.01] * 5 + [0.05] * 5, [0.02] * 10),
        ([1000] * 9 + [4], [0.03] * 10, [0.02] * 10),
    ],
)
def test_interval_covers_the_true_difference(
    totals: list[int], lost: list[float], won: list[float]
) -> None:
    generator = np.random.default_rng(0)
    truth = float(np.mean(won) - np.mean(lost))
    sizes = np.array(totals)
    effective = len(sizes) ** 2 / float((1 / sizes).sum())
    chances = np.stack([lost, won, 1 - np.add(lost, won)], axis=1)
    covered = []
    for _ in range(1000):
        shares = generator.multinomial(sizes, chances)[:, :2] / sizes[:, None]
        share_lost, share_won = shares.mean(axis=0).tolist()
        low, high = paired_interval(share_lost, share_won, effective)
        covered.append(low <= truth <= high)
    assert 0.93 <= np.mean(covered) <= 0.99


def test_identical_logits_pass_with_no_difference() -> None:
    labels, torch, _ = random_case(0)
    gate = judge("fp16", labels, torch, torch.copy(), COUNTS)
    assert gate.refusal() is None
    found = [gate.overall, *(c for c in gate.groups.values() if c)]
    assert {c.difference for c in found} == {0.0}
    assert all(c.interval[0] < 0 < c.interval[1] for c in found)


def test_ties_go_to_the_lower_class() -> None:
    gate = judge_int8(np.zeros((1000, 10)))
    assert gate.overall.variant == pytest.approx(0.1)
    assert group(gate, "head").variant == pytest.approx(1 / 3)


def test_a_broken_tail_passes_overall_and_is_refused() -> None:
    # Four hundred more images a head class: what the tail loses hardly shows overall.
    labels = np.concatenate([LABELS, np.repeat([0, 1, 2], 400)])
    gate = judge_int8(wrong(labels, *in_class(9, 6)), labels)
    assert gate.overall.difference == pytest.approx(-6 / 2200)
    assert not gate.overall.refused
    assert group(gate, "tail").difference == pytest.approx(-0.06 / 3)
    assert [name for name, c in gate.groups.items() if c and c.refused] == ["tail", "few"]
    assert gate.refusal() == (
        "int8: loses 2 points in tail (100.00 -> 98.00 %, limit 0.5, 95 % interval -3.81 to "
        "-0.16), 1.5 points in few (100.00 -> 98.50 %, limit 0.5, 95 % interval -2.86 to -0.12)"
    )


def test_a_gain_passes() -> None:
    torch = wrong(LABELS, *in_class(9, 50))
    assert judge("int8", LABELS, torch, one_hot(LABELS), COUNTS).refusal() is None


def test_a_loss_overall_is_refused() -> None:
    refusal = judge_int8(wrong(LABELS, *spread(4))).refusal()
    assert refusal is not None
    assert refusal.startswith("int8: loses 0.4 points overall (100.00 -> 99.60 %, limit 0.3, ")


@pytest.mark.parametrize("number", range(1, 31))
def test_exactly_the_limit_passes_overall(number: int) -> None:
    # Most of 0.1 %, 0.2 %, ... are no binary fractions, and some are rounded downwards.
    variant = wrong(LABELS, *spread(number))
    points = number / 10
    for max_loss_points, refused in ((points, False), (points - 1e-4, True)):
        gate = judge_int8(variant, max_loss_points=max_loss_points)
        assert gate.overall.refused == refused


def test_exactly_the_limit_passes_in_a_group() -> None:
    # Classes of 400 in the head of 1200: one image of it is 1/1200, six are 0.5 points.
    labels = np.concatenate([np.repeat(np.arange(10), 400), np.repeat([3, 4, 5, 6], 200)])
    head = (0, 1, 400, 401, 800, 801)
    assert judge_int8(wrong(labels, *head), labels).refusal() is None
    refusal = judge_int8(wrong(labels, *head, 802), labels).refusal()
    assert refusal is not None
    assert refusal.startswith("int8: loses 0.583 points in head (100.00 -> 99.42 %, limit 0.5, ")
    assert "overall" not in refusal


def test_a_few_images_in_one_class_make_a_group_small() -> None:
    labels = np.concatenate([LABELS[:900], LABELS[900:903]])
    tail = group(judge_int8(one_hot(labels), labels), "tail")
    assert tail.num_images == 203
    assert tail.effective_images == pytest.approx(9 / (2 / 100 + 1 / 3))
    assert tail.verdict == "passes"


def test_too_small_a_set_vouches_for_nothing() -> None:
    labels = np.arange(333) % 10
    gate = judge_int8(one_hot(labels), labels)
    assert gate.refusal() == (
        "int8: 333 images are too few to tell a loss of 0.3 points, which takes 334; give more "
        "images or raise --max-loss to 0.31"
    )
    assert judge_int8(one_hot(labels), labels, max_loss_points=0.31).refusal() is None
    labels = np.arange(334) % 10
    assert judge_int8(one_hot(labels), labels).refusal() is None


@pytest.mark.parametrize("number", [1, 3, 7, 40, 150, 300])
def test_the_named_flag_value_lets_a_small_set_through(number: int) -> None:
    labels = np.arange(number) % 10
    refusal = judge_int8(one_hot(labels), labels).refusal()
    assert refusal is not None
    points = float(refusal.split()[-1])
    assert judge_int8(one_hot(labels), labels, max_loss_points=points).refusal() is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_logits_that_are_not_finite_are_refused(value: float, kind: Any) -> None:
    variant = one_hot(LABELS).astype(kind)
    variant[[5, 995], [0, 9]] = value  # also where the class would still be right
    gate = judge("fp16", LABELS, one_hot(LABELS), variant, COUNTS)
    assert gate.refusal() == "fp16: 2 of 1000 images give NaN or infinite logits"
    assert gate.loses
    assert gate.overall.difference == pytest.approx(-0.002)


@pytest.mark.parametrize("points", [0.0, -1.0, 101.0, float("nan")])
def test_a_limit_that_means_nothing_is_refused(points: float) -> None:
    with pytest.raises(UsageError, match="--max-loss"):
        judge_int8(one_hot(LABELS), max_loss_points=points)
    with pytest.raises(UsageError, match="--max-group-loss"):
        judge_int8(one_hot(LABELS), max_group_loss_points=points)


def test_table_and_refusals_are_for_people() -> None:
    labels = LABELS[:700]
    gate = judge_int8(wrong(labels, *in_class(0, 10)), labels)
    lines = gate.table().splitlines()
    assert lines[0].split() == [
        *("torch", "int8", "change", "95", "%", "interval", "limit", "images", "effective"),
        "verdict",
    ]
    names = ["overall", "head", "mid", "tail", "many", "medium", "few"]
    assert [line.split()[0] for line in lines[1:]] == names
    low, high = group(gate, "head").interval
    assert lines[2].split() == [
        *("head", "100.00", "96.67", "-3.33", f"{100 * low:.2f}", "to", f"{100 * high:.2f}"),
        *("0.5", "300", "300", "refused"),
    ]
    assert lines[3].split()[-1] == "passes"  # no loss, but too few images to rule one out
    assert lines[4] == "tail      no images"
    refusal = gate.refusal()
    assert refusal is not None
    assert "\n" not in refusal
    assert all(f" points {place} (" in refusal for place in ("overall", "in head", "in many"))


def test_a_gate_is_plain_json() -> None:
    gate = judge_int8(wrong(LABELS[:700], 3), LABELS[:700])
    fields = json.loads(json.dumps(gate.to_dict()))
    assert fields["groups"]["tail"] is None
    assert fields["name"] == "int8"
    assert fields["overall"]["interval"] == list(gate.overall.interval)
    assert fields["overall"].keys() == fields["groups"]["head"].keys()
