"""The pictures of an evaluation: what they show, and that it can be read at many classes."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deitlt.evaluation.answers import Answers, HeadAnswers
from deitlt.evaluation.calibration import ClassBins
from deitlt.evaluation.confusion import Confusion, count_pairs
from deitlt.evaluation.confusion_picture import confusion_figure
from deitlt.evaluation.figures import judge
from deitlt.evaluation.pictures import draw
from deitlt.evaluation.reliability_picture import reliability_figure
from deitlt.evaluation.tables import Names

# What a plotting library may stumble over; a warning would be an error here.
ODD = ["$\\frac$", "日本語", "a" * 80, "two\nlines", "x_{y}^", "50 % $"]

pytestmark = [
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings("error::RuntimeWarning"),
]


def biased(num_classes: int, absent: int | None = None) -> tuple[Confusion, Names]:
    """Three images a class, one of them answered with the last class, the most frequent one."""
    labels = np.repeat([c for c in range(num_classes) if c != absent], 3)
    predicted = np.where(np.arange(len(labels)) % 3 == 0, num_classes - 1, labels)
    names = [f"{ODD[i % 6]} {i}" for i in range(num_classes)]
    pairs = count_pairs(labels, predicted, num_classes)
    return pairs, Names.of(names, list(range(1, num_classes + 1)))


def drawn(figure: Any) -> Any:
    """The figure after its layout is done."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return figure


def test_cells_are_shares_by_falling_training_count() -> None:
    confusion, names = biased(12, absent=4)
    shares: Any = confusion_figure(confusion, names, "t").axes[0].images[0].get_array()
    expected = np.eye(12) * 2 / 3
    expected[:, 0] = 1 / 3
    expected[0, 0] = 1
    rank_of_absent = 12 - 1 - 4
    others = np.arange(12) != rank_of_absent
    np.testing.assert_allclose(shares[others], expected[others])
    assert shares.mask[rank_of_absent].all()  # grey, not a recall of 0
    assert not shares.mask[others].any()


def test_many_classes_are_shown_by_blocks_of_errors() -> None:
    confusion, names = biased(8142)
    figure = confusion_figure(confusion, names, "t")
    shares = figure.axes[0].images[0].get_array()
    assert shares is not None
    assert shares.shape == (100, 100)
    np.testing.assert_allclose(shares[1:, 0], 1 / 3)
    assert (shares[:, 1:] == 0).all()
    assert "blocks of about 81 classes" in figure.axes[0].get_title()


@pytest.mark.parametrize("num_classes", [12, 40, 100])
def test_names_do_not_run_into_each_other(num_classes: int) -> None:
    from matplotlib import rc_context

    confusion, _ = biased(num_classes)
    names = Names.of([f"Genus species {i}" for i in range(num_classes)], [9] * num_classes)
    with rc_context({"axes.titlelocation": "left"}):
        figure = drawn(confusion_figure(confusion, names, "title\nof two lines"))
    axes = figure.axes[0]
    for axis, low, high in ((axes.yaxis, "y0", "y1"), (axes.xaxis, "x0", "x1")):
        labels = [label.get_window_extent() for label in axis.get_ticklabels()]
        assert len(labels) == num_classes
        labels.sort(key=lambda box: float(getattr(box, low)))
        assert all(getattr(a, high) < getattr(b, low) for a, b in pairwise(labels))
        assert labels[0].height >= 8 or labels[0].width >= 8  # pixels at 100 dpi
    title = axes._left_title.get_window_extent()
    groups = [t.get_window_extent() for t in axes.texts if t.get_text() in ("head", "mid", "tail")]
    assert len(groups) == 3
    assert all(group.y1 < title.y0 for group in groups)
    assert title.y1 <= figure.bbox.y1


def answers_of(num_classes: int) -> tuple[Answers, Names]:
    confusion, names = biased(num_classes)
    labels = np.repeat(confusion.true, confusion.num_images)
    predicted = np.repeat(confusion.predicted, confusion.num_images)
    bins = ClassBins(num_classes)
    bins.add(0, np.full(num_classes, 1 / num_classes))
    confidence = np.where(predicted == labels, 0.9, 0.5)
    heads = {
        "average": HeadAnswers(predicted, confidence, bins),
        "cls": HeadAnswers(labels, confidence, bins),
        "dist": HeadAnswers(predicted, np.full(len(labels), 0.7), bins),
    }
    return Answers([""] * len(labels), labels, np.arange(len(labels)), heads, []), names


def test_a_reliability_diagram_has_the_points_of_every_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deitlt.evaluation.resampling.NUM_RESAMPLES", 5)
    answers, names = answers_of(10)
    figures = judge(answers, names.train_counts, 5)
    everything = np.ones(30, dtype=np.bool_)
    figure = reliability_figure(answers, figures, "all", everything, "title")
    lines = {str(line.get_label()).partition(":")[0]: line for line in figure.axes[0].lines}
    assert np.asarray(lines["average"].get_xydata()) == pytest.approx(
        np.array([[0.5, 0.0], [0.9, 1.0]])
    )
    assert np.asarray(lines["cls"].get_xydata()) == pytest.approx(np.array([[0.5, 1], [0.9, 1]]))
    right = (answers.heads["dist"].predicted == answers.labels).mean()
    assert np.asarray(lines["dist"].get_xydata()) == pytest.approx(np.array([[0.7, right]]))
    assert f"ECE {100 * abs(right - 0.7):.1f} %" in str(lines["dist"].get_label())
    assert figure.axes[0].get_ylabel()
    assert figure.axes[1].get_xlabel()


@pytest.mark.parametrize("num_classes", [12, 100])
def test_odd_class_names_and_a_users_style_do_no_harm(
    num_classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib import rc_context

    monkeypatch.setattr("deitlt.evaluation.resampling.NUM_RESAMPLES", 5)
    answers, names = answers_of(num_classes)
    figures = judge(answers, names.train_counts, 5)
    with rc_context({"text.usetex": True, "savefig.dpi": 10, "figure.facecolor": "black"}):
        draw(tmp_path, answers, figures, names, "$name$", "images")
    for file in tmp_path.glob("*.png"):
        with Image.open(file) as image:
            assert 500 < min(image.size) <= max(image.size) < 2500
            assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    groups = {"head", "mid", "tail", "few"} | ({"medium"} if num_classes == 100 else set())
    assert {file.stem for file in tmp_path.glob("reliability_*.png")} == {
        f"reliability_{group}" for group in {"all", *groups}
    }
