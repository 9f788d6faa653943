"""Metrics against scikit-learn and formulas spelled another way; intervals by simulation."""

import csv
import io
import json
from statistics import NormalDist

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from deitlt.longtail import IntArray
from deitlt.metrics import (
    Report,
    best_classes,
    confusion_matrix,
    expected_calibration_error,
    format_table,
    mean_of_groups,
    mean_recall,
    per_class_csv,
    report,
    softmax,
    wilson_interval,
)

COUNTS = [300, 150, 90, 60, 30, 21, 15, 9, 5, 2]


def random_case(seed: int, absent: tuple[int, ...] = ()) -> tuple[IntArray, np.ndarray, IntArray]:
    """Labels without the `absent` classes, logits right about half of the time, and predictions."""
    generator = np.random.default_rng(seed)
    present = [c for c in range(10) if c not in absent]
    labels = generator.choice(present, 300)
    logits = generator.normal(size=(300, 10))
    logits[np.arange(300), labels] += 1.5
    return labels, logits, logits.argmax(axis=1)


@pytest.mark.parametrize("absent", [(), (4,), (0, 7, 8, 9)])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_figures_are_scikit_learns(absent: tuple[int, ...]) -> None:
    labels, logits, predicted = random_case(1, absent)
    figures = report(labels, logits, COUNTS)
    expected = sklearn_metrics.accuracy_score(labels, predicted)
    assert figures.overall.value == pytest.approx(expected)
    expected = sklearn_metrics.balanced_accuracy_score(labels, predicted)
    assert figures.balanced.value == pytest.approx(expected)
    expected = sklearn_metrics.f1_score(
        labels, predicted, labels=np.unique(labels), average="macro"
    )
    assert figures.macro_f1 == pytest.approx(expected)
    confidence = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
    expected = expected_calibration_error(confidence, predicted == labels)
    assert figures.ece == pytest.approx(expected)
    matrix = sklearn_metrics.confusion_matrix(labels, predicted, labels=range(10))
    assert (confusion_matrix(labels, predicted, 10) == matrix).all()
    for label, accuracy in enumerate(figures.per_class):
        assert accuracy.num_images == (labels == label).sum()
        assert (accuracy.value is None) == (label in absent)
        assert (accuracy.interval is None) == (label in absent)


def test_a_group_is_the_mean_recall_of_its_classes() -> None:
    labels, logits, predicted = random_case(2, absent=(8,))
    figures = report(labels, logits, COUNTS)
    recalls = [float((predicted[labels == c] == c).mean()) for c in (7, 9)]
    assert figures.groups["tail"].value == pytest.approx(np.mean(recalls))
    assert figures.groups["tail"].num_images == np.isin(labels, (7, 9)).sum()
    assert set(figures.groups) == {"head", "mid", "tail", "many", "medium", "few"}


def test_a_group_without_images_has_no_figure() -> None:
    labels, logits, _ = random_case(3, absent=(7, 8, 9))
    figures = report(labels, logits, COUNTS)
    assert figures.groups["tail"].value is None
    assert figures.groups["tail"].interval is None
    assert figures.groups["tail"].num_images == 0
    head, mid = figures.groups["head"].value, figures.groups["mid"].value
    assert head is not None
    assert mid is not None
    assert mean_of_groups(figures) == pytest.approx((head + mid) / 2)


def test_a_class_nobody_answers_counts_as_zero_f1() -> None:
    logits = np.eye(3)[[0, 0, 1, 0]]
    figures = report([0, 0, 1, 2], logits, [5, 4, 3])
    assert figures.macro_f1 == pytest.approx((4 / 5 + 1 + 0) / 3)


@pytest.mark.parametrize(("hits", "trials"), [(0, 7), (7, 7), (1, 3), (45, 50), (812, 10000)])
def test_wilson_is_where_the_score_test_just_rejects(hits: int, trials: int) -> None:
    # The ends solve (share - p)^2 = z^2 p (1 - p) / n, a quadratic in p.
    z2 = NormalDist().inv_cdf(0.975) ** 2
    share = hits / trials
    roots = np.sort(np.roots([1 + z2 / trials, -(2 * share + z2 / trials), share * share]))
    np.testing.assert_allclose(wilson_interval(share, trials), roots, atol=1e-9)


def test_wilson_by_hand() -> None:
    low, high = wilson_interval(0.8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)


def test_mean_recall_of_one_class_is_wilsons() -> None:
    accuracy = mean_recall(np.array([8]), np.array([10]))
    assert accuracy.interval == pytest.approx(wilson_interval(0.8, 10))


def test_mean_recall_of_like_classes_is_wilsons_of_all_their_images() -> None:
    accuracy = mean_recall(np.array([8] * 25), np.array([10] * 25))
    assert accuracy.interval == pytest.approx(wilson_interval(0.8, 250))


def test_all_right_on_a_handful_is_not_certain() -> None:
    accuracy = mean_recall(np.array([2, 3, 1]), np.array([2, 3, 1]))
    assert accuracy.value == 1
    assert accuracy.interval is not None
    assert accuracy.interval[0] < 0.75
    assert accuracy.interval[1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("totals", "recalls"),
    [
        ([36] * 10, [0.9] * 10),
        ([10] * 100, [0.9] * 100),  # shrinking each class towards 1/2 would miss here every time
        ([3] * 1000, [0.7] * 1000),  # iNaturalist 2018 has three validation images a class
        ([1] * 1000, [0.7] * 1000),
        ([500, 300, 180, 108, 64, 39, 23, 14, 8, 5], list(np.linspace(0.97, 0.3, 10))),
        ([1000] * 9 + [4], [0.99] * 9 + [0.5]),  # all the doubt lies in one small class
        ([4] * 3, [0.9] * 3),
    ],
)
def test_interval_of_mean_recall_covers_the_truth(totals: list[int], recalls: list[float]) -> None:
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        accuracy = mean_recall(generator.binomial(totals, recalls), np.array(totals))
        assert accuracy.interval is not None
        assert accuracy.value is not None
        low, high = accuracy.interval
        assert 0 <= low <= accuracy.value <= high + 1e-12 <= 1 + 1e-12
        covered.append(low <= np.mean(recalls) <= high)
    assert np.mean(covered) > 0.92  # 95 %, less three standard errors of this simulation


def test_calibration_error_is_the_naive_loop() -> None:
    generator = np.random.default_rng(4)
    confidence = np.append(generator.uniform(0, 1, 500), [0.0, 1.0])
    correct = generator.uniform(size=502) < confidence**0.5
    correct[-1] = False  # against the drift of the last bin, which certainty belongs to
    expected = 0.0
    for low in range(15):
        inside = [i for i, c in enumerate(confidence) if low <= 15 * c < low + 1]
        if low == 14:
            inside += [i for i, c in enumerate(confidence) if c == 1]
        if inside:
            gap = abs(confidence[inside].mean() - correct[inside].mean())
            expected += gap * len(inside) / 502
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected)
    assert expected > 0.05


def test_softmax_survives_large_logits() -> None:
    probabilities = softmax(np.array([[1000.0, 999.0], [-1000.0, -1000.0]], dtype=np.float32))
    np.testing.assert_allclose(probabilities[0], [np.e / (np.e + 1), 1 / (np.e + 1)])
    np.testing.assert_allclose(probabilities[1], 0.5)


def reports(seed: int = 5, absent: tuple[int, ...] = ()) -> dict[str, Report]:
    labels, logits, _ = random_case(seed, absent)
    return {"average": report(labels, logits, COUNTS), "cls": report(labels, -logits, COUNTS)}


def test_table_shows_percentages_in_columns() -> None:
    figures = reports()
    header, average, cls = format_table(figures).splitlines()
    assert header.split("  ")[-1].strip() == "few"
    assert len(header) == len(average) == len(cls)
    overall = figures["average"].overall.value
    assert overall is not None
    assert average.split()[:2] == ["average", f"{100 * overall:.1f}"]
    assert cls.split()[0] == "cls"


def test_table_shows_a_dash_for_a_group_without_images() -> None:
    _, average, _ = format_table(reports(absent=(7, 8, 9))).splitlines()
    assert average.split()[4] == "-"


def test_per_class_csv() -> None:
    figures = reports(absent=(8,))
    names = ["a\rb", "c,d", *"efghijkl"]
    rows = list(csv.DictReader(io.StringIO(per_class_csv(names, COUNTS, figures))))
    assert [row["label"] for row in rows] == names
    assert [row["group"] for row in rows] == ["head"] * 3 + ["mid"] * 4 + ["tail"] * 3
    assert [int(row["train_images"]) for row in rows] == COUNTS
    assert rows[8]["average"] == ""
    assert rows[8]["images"] == "0"
    recall = figures["cls"].per_class[0].value
    assert recall is not None
    assert float(rows[0]["cls"]) == pytest.approx(recall, abs=5e-5)


def test_a_report_is_plain_json() -> None:
    figures = reports(absent=(8,))["average"]
    fields = json.loads(json.dumps(figures.to_dict()))
    assert fields["per_class"][8] == {"value": None, "interval": None, "num_images": 0}
    assert fields["groups"]["head"]["value"] == figures.groups["head"].value


@pytest.mark.parametrize("num_classes", [2, 10, 500])
@pytest.mark.parametrize("number", [1, 5, 10, 10**9])
def test_best_classes_are_those_of_a_stable_sort(num_classes: int, number: int) -> None:
    generator = np.random.default_rng(num_classes)
    ties = generator.integers(0, 4, (6, num_classes)).astype(np.float32)
    distinct = generator.random((6, num_classes))
    nothing = np.full((6, num_classes), np.nan)
    for scores in (ties, distinct, nothing, np.where(ties == 1, -np.inf, ties)):
        wanted = np.argsort(-scores, axis=1, kind="stable")[:, :number]
        assert np.array_equal(np.stack(best_classes(scores, number)), wanted)
