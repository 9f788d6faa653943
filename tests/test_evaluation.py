"""Figures of an evaluation against scikit-learn, naive loops, cases by hand, and simulation."""

import json
import random
from collections.abc import Mapping
from itertools import islice

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from deitlt.evaluation.answers import Answers, HeadAnswers
from deitlt.evaluation.calibration import ClassBins, equal_mass_error, reliability
from deitlt.evaluation.confusion import count_pairs, rank_blocks
from deitlt.evaluation.figures import judge
from deitlt.evaluation.resampling import _resamples, intervals
from deitlt.longtail import IntArray, all_groups
from deitlt.metrics import expected_calibration_error, softmax, wilson_interval

COUNTS = [300, 150, 90, 60, 30, 21, 15, 9, 5, 2]
Floats = np.ndarray


def head_of(labels: IntArray, logits: Floats) -> HeadAnswers:
    probabilities = softmax(logits)
    bins = ClassBins(logits.shape[1])
    for label, row in zip(labels, probabilities, strict=True):
        bins.add(int(label), row)
    return HeadAnswers(logits.argmax(axis=1), probabilities.max(axis=1), bins)


def some_bins() -> ClassBins:
    bins = ClassBins(10)
    bins.add(0, np.full(10, 0.1))
    return bins


def case(seed: int, absent: tuple[int, ...] = ()) -> tuple[Answers, Mapping[str, Floats]]:
    """Answers of three heads to 300 images without the `absent` classes, and their logits."""
    generator = np.random.default_rng(seed)
    labels = generator.choice([c for c in range(10) if c not in absent], 300)
    cls, dist = (generator.normal(size=(300, 10)) for _ in range(2))
    for logits, skill in ((cls, 1.0), (dist, 2.0)):
        logits[np.arange(300), labels] += skill
    logits_of = {"average": (cls + dist) / 2, "cls": cls, "dist": dist}
    heads = {name: head_of(labels, logits) for name, logits in logits_of.items()}
    names = [f"{i}.png" for i in range(300)]
    return Answers(names, labels, np.arange(300), heads, []), logits_of


def test_reliability_by_hand() -> None:
    confidence = np.array([0.05, 0.15, 0.12, 0.95, 1.0, 0.99])
    correct = np.array([False, True, False, True, True, False])
    bins = reliability(confidence, correct, num_bins=10)
    assert bins.num_images.tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 0, 3]
    assert bins.num_correct.tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert bins.accuracy[[0, 1, 9]] == pytest.approx([0, 0.5, 2 / 3])
    assert bins.confidence[[0, 1, 9]] == pytest.approx([0.05, 0.135, 0.98])
    assert np.isnan(bins.accuracy[2:9]).all()
    gaps = 1 * 0.05 + 2 * (0.5 - 0.135) + 3 * (0.98 - 2 / 3)
    assert expected_calibration_error(confidence, correct, 10) == pytest.approx(gaps / 6)


def test_equal_mass_error_by_hand() -> None:
    # Sorted, in two bins: (0.2 wrong, 0.4 right, 0.5 wrong) and (0.7 right, 0.9 wrong).
    confidence = np.array([0.9, 0.5, 0.2, 0.7, 0.4])
    correct = np.array([False, False, False, True, True])
    expected = (abs(1.1 - 1) + abs(1.6 - 1)) / 5
    assert equal_mass_error(confidence, correct, num_bins=2) == pytest.approx(expected)
    # With fewer images than bins each is a bin of its own.
    expected = (0.9 + 0.5 + 0.2 + 0.3 + 0.6) / 5
    assert equal_mass_error(confidence, correct, num_bins=15) == pytest.approx(expected)


def test_class_errors_are_the_naive_loop() -> None:
    answers, logits = case(1, absent=(4,))
    probabilities = softmax(logits["dist"])
    expected = np.zeros(10)
    for label in range(10):
        column, came_true = probabilities[:, label], answers.labels == label
        for low in range(15):
            inside = (15 * column >= low) & (15 * column < low + 1)
            if inside.any():
                gap = abs(column[inside].mean() - came_true[inside].mean())
                expected[label] += gap * inside.mean()
    errors = answers.heads["dist"].class_bins.errors()
    np.testing.assert_allclose(errors, expected)
    assert errors[4] == pytest.approx(probabilities[:, 4].mean())  # it never comes true
    figures = judge(answers, COUNTS, 5).to_dict([*"abcdefghij"])
    assert figures["heads"]["dist"]["classwise_ece"] == pytest.approx(expected.mean())


def test_certainty_of_the_wrong_class_is_the_whole_error() -> None:
    bins = ClassBins(2)
    for _ in range(3):
        bins.add(0, np.array([0.0, 1.0]))
    assert bins.errors().tolist() == [1, 1]


def test_pairs_are_scikit_learns_matrix() -> None:
    answers, _ = case(2)
    predicted = answers.heads["cls"].predicted
    pairs = count_pairs(answers.labels, predicted, 10)
    assert (pairs.num_images > 0).all()
    expected = sklearn_metrics.confusion_matrix(answers.labels, predicted, labels=range(10))
    assert (pairs.blocks(np.arange(10), 10) == expected).all()
    assert pairs.totals.tolist() == expected.sum(axis=1).tolist()
    halves = pairs.blocks(np.arange(10) // 5, 2)
    assert halves[0, 1] == expected[:5, 5:].sum()
    errors = pairs.errors()
    assert (errors.true != errors.predicted).all()
    assert errors.num_images.tolist() == sorted(errors.num_images.tolist(), reverse=True)
    assert errors.num_images.sum() == expected.sum() - np.trace(expected)


def test_blocks_are_equal_parts_by_training_count() -> None:
    assert rank_blocks([5, 100, 20, 50], 4).tolist() == [3, 0, 2, 1]
    assert rank_blocks([5, 100, 20, 50], 2).tolist() == [1, 0, 1, 0]
    sizes = np.bincount(rank_blocks(range(8142), 100))
    assert (len(sizes), sizes.min(), sizes.max(), sizes.sum()) == (100, 81, 82, 8142)


def test_a_resample_keeps_every_class_and_draws_with_replacement() -> None:
    labels = np.array([2, 0, 2, 2, 1, 0, 2])
    draws = np.stack([*islice(_resamples(labels, np.random.default_rng(0)), 200)])
    assert (labels[draws] == labels).all()
    for place, label in enumerate(labels):
        assert set(draws[:, place]) == set(np.flatnonzero(labels == label))
    assert len(set(draws[0][labels == 2])) < 4 or len(set(draws[1][labels == 2])) < 4


def test_calibration_errors_of_groups_are_those_of_their_images() -> None:
    answers, _ = case(3, absent=(7, 8, 9))
    head = answers.heads["cls"]
    correct = head.predicted == answers.labels
    found = intervals(answers.labels, head, all_groups(COUNTS)).ece
    assert found["all"][0] == pytest.approx(expected_calibration_error(head.confidence, correct))
    few = np.isin(answers.labels, all_groups(COUNTS)["few"])
    expected = expected_calibration_error(head.confidence[few], correct[few])
    assert found["few"][0] == pytest.approx(expected)
    assert "tail" not in found
    for value, (low, high) in found.values():
        assert 0 <= low <= value <= high <= 1


@pytest.mark.parametrize("overconfidence", [0.0, 0.1])
def test_bootstrap_intervals_cover_the_truth(
    overconfidence: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten classes of 44 images; who errs takes any other class."""
    monkeypatch.setattr("deitlt.evaluation.resampling.NUM_RESAMPLES", 150)
    generator = np.random.default_rng(0)
    recalls = np.linspace(0.9, 0.6, 10)
    labels = np.repeat(np.arange(10), 44)
    named = recalls + (1 - recalls).sum() / 9 - (1 - recalls) / 9
    truth = (2 * recalls / (1 + named)).mean()
    f1, ece = [], []
    for _ in range(100):
        right = generator.random(440) < recalls[labels]
        other = (labels + generator.integers(1, 10, 440)) % 10
        head = HeadAnswers(
            np.where(right, labels, other), recalls[labels] + overconfidence, ClassBins(10)
        )
        found = intervals(labels, head, {})
        f1.append(found.macro_f1[0] <= truth <= found.macro_f1[1])
        low, high = found.ece["all"][1]
        ece.append(low <= overconfidence <= high)
    assert np.mean(f1) > 0.89  # 95 %, less three standard errors of this simulation
    assert np.mean(ece) > 0.89


def test_bootstrap_intervals_are_those_of_a_plain_bootstrap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three classes, one of five images: F1 and calibration lie far from the resamples' middle."""
    monkeypatch.setattr("deitlt.evaluation.resampling.NUM_RESAMPLES", 3000)
    generator = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [40, 20, 5])
    predicted = np.where(generator.random(65) < 0.7, labels, (labels + 1) % 3)
    confidence = generator.uniform(0.7, 1, 65)

    def figures(chosen: list[int]) -> tuple[float, float]:
        true, named = labels[chosen], predicted[chosen]
        f1 = [
            2 * ((true == c) & (named == c)).sum() / ((true == c).sum() + (named == c).sum())
            for c in range(3)
        ]
        return float(np.mean(f1)), expected_calibration_error(confidence[chosen], true == named)

    draw = random.Random(0).choices
    members = [np.flatnonzero(labels == c).tolist() for c in range(3)]
    value = np.array(figures([*range(65)]))
    drawn = np.array(
        [figures([i for m in members for i in draw(m, k=len(m))]) for _ in range(3000)]
    )
    reach = np.abs(np.percentile(drawn, [2.5, 97.5], axis=0) - value).max(axis=0)
    found = intervals(labels, HeadAnswers(predicted, confidence, ClassBins(3)), {})
    for interval, middle, far in zip(
        (found.macro_f1, found.ece["all"][1]), value, reach, strict=True
    ):
        assert interval == pytest.approx((middle - far, middle + far), abs=0.05 * far)


def test_agreement_by_hand() -> None:
    labels = np.array([0, 0, 8, 8, 8])
    said = {"average": [0, 1, 8, 8, 0], "cls": [0, 1, 0, 8, 0], "dist": [0, 1, 8, 8, 8]}
    heads = {
        name: HeadAnswers(np.array(classes), np.full(5, 0.5), some_bins())
        for name, classes in said.items()
    }
    agreement = judge(Answers([], labels, np.arange(5), heads, []), COUNTS, 1).agreement
    everywhere, tail, mid = agreement["all"], agreement["tail"], agreement["mid"]
    assert (everywhere.share.value, everywhere.share.num_images) == (3 / 5, 5)
    assert everywhere.share.interval == pytest.approx(wilson_interval(0.6, 5))
    assert {n: a.value for n, a in everywhere.if_agree.items()} == {
        "average": 2 / 3,
        "cls": 2 / 3,
        "dist": 2 / 3,
    }
    assert {n: (a.value, a.num_images) for n, a in tail.if_disagree.items()} == {
        "average": (1 / 2, 2),
        "cls": (0, 2),
        "dist": (1, 2),
    }
    assert (tail.share.value, tail.share.num_images) == (1 / 3, 3)
    assert (tail.if_agree["cls"].value, tail.if_agree["cls"].num_images) == (1, 1)
    assert mid.share.value is None
    # The two disagreements are of the tail.
    assert agreement["head"].if_disagree["cls"].num_images == 0


def test_claims_count_classes_with_too_few_images() -> None:
    labels = np.repeat(np.arange(10), [9, 9, 9, 5, 4, 9, 9, 1, 0, 6])
    heads = {"average": HeadAnswers(labels, np.ones(len(labels)), some_bins())}
    figures = judge(Answers([], labels, np.arange(len(labels)), heads, []), COUNTS, 5)
    claims = {
        name: (c.num_classes, c.num_too_few, c.num_absent) for name, c in figures.claims.items()
    }
    assert claims["all"] == (10, 3, 1)
    assert claims["mid"] == (4, 1, 0)
    assert claims["tail"] == (3, 2, 1)
    assert claims["few"] == (4, 2, 1)
    assert claims["head"] == (3, 0, 0)
    assert figures.agreement == {}


def test_figures_are_json_with_the_names_of_absent_classes() -> None:
    answers, _ = case(4, absent=(0, 9))
    figures = json.loads(json.dumps(judge(answers, COUNTS, 5).to_dict([*"abcdefghij"])))
    assert figures["classes_without_images"] == ["a", "j"]
    assert set(figures["heads"]) == {"average", "cls", "dist"}
    labels, predicted = answers.labels, answers.heads["average"].predicted
    average = figures["heads"]["average"]
    expected = sklearn_metrics.recall_score(
        labels, predicted, labels=np.unique(labels), average="macro"
    )
    assert average["balanced"]["value"] == pytest.approx(expected)
    low, high = average["macro_f1_interval"]
    assert low <= average["macro_f1"] <= high
    assert average["groups"]["head"]["num_images"] == np.isin(labels, (1, 2)).sum()
    assert set(average["ece_groups"]) == set(all_groups(COUNTS))
