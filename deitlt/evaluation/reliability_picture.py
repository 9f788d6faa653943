"""The reliability diagram: what answers of each confidence are worth, head by head."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deitlt.evaluation.answers import Answers, HeadAnswers
from deitlt.evaluation.calibration import Reliability, reliability
from deitlt.evaluation.figures import Figures
from deitlt.metrics import NUM_BINS, wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Three colours that colour-blind readers tell apart, and markers for those who print in grey.
LOOKS = {"average": ("#1f4e9c", "o"), "cls": ("#d95f02", "s"), "dist": ("#1b9e77", "^")}
# A word along a line of data, whatever the shape of the axes.
ALONG: dict[str, Any] = {"transform_rotates_text": True, "rotation_mode": "anchor"}


def reliability_figure(
    answers: Answers, figures: Figures, group: str, inside: NDArray[np.bool_], title: str
) -> "Figure":
    """Accuracy against confidence of every head, and below how many images have which confidence.

    Args:
        answers: what the bundle said.
        figures: what that is worth; the calibration errors come from there.
        group: of the true classes, or `all`.
        inside: which of the images that could be read are of the group, `(N,)`.
        title: a line or two that say of what.
    """
    from matplotlib.figure import Figure

    picture = Figure(figsize=(6.4, 8.2), layout="constrained")
    upper, lower = picture.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    upper.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, zorder=0)
    upper.text(0.02, 0.035, "calibrated", color="0.45", rotation=45, **ALONG)
    # The answer itself is drawn last, over its experts.
    for name in reversed(list(answers.heads)):
        head = answers.heads[name]
        correct = (head.predicted == answers.labels)[inside]
        value, (low, high) = figures.heads[name].intervals.ece[group]
        label = f"{name}: ECE {100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        _draw_curve(upper, name, reliability(head.confidence[inside], correct), label)
        _draw_counts(lower, name, head, inside)
    handles, labels = upper.get_legend_handles_labels()
    # Below the axes: over- and underconfident heads fill different corners of them.
    picture.legend(handles[::-1], labels[::-1], loc="outside lower center", frameon=False)
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share of right answers")
    upper.set_title(title)
    upper.grid(color="0.92")
    lower.set(xlabel="confidence (probability of the class answered)", ylabel="images")
    lower.set_yscale("symlog", linthresh=1)
    lower.set_ylim(bottom=0)
    lower.yaxis.set_major_formatter(lambda number, _: f"{number:,.0f}")
    return picture


def _draw_curve(axes: "Axes", name: str, bins: Reliability, label: str) -> None:
    colour, marker = LOOKS[name]
    filled = np.flatnonzero(bins.num_images)
    main = name == "average"
    if main:
        ends = np.array(
            [wilson_interval(bins.accuracy[b], int(bins.num_images[b])) for b in filled]
        )
        axes.vlines(
            bins.confidence[filled],
            *ends.T,
            color=colour,
            alpha=0.35,
            linewidth=5,
            label="95 % interval of a point of the average",
        )
    axes.plot(
        bins.confidence[filled],
        bins.accuracy[filled],
        color=colour,
        marker=marker,
        markersize=6 if main else 4,
        linewidth=2 if main else 1,
        alpha=1.0 if main else 0.8,
        label=label,
    )


def _draw_counts(axes: "Axes", name: str, head: HeadAnswers, inside: NDArray[np.bool_]) -> None:
    colour, _ = LOOKS[name]
    main = name == "average"
    axes.hist(
        head.confidence[inside],
        bins=np.linspace(0, 1, NUM_BINS + 1).tolist(),
        histtype="stepfilled" if main else "step",
        color=colour,
        alpha=0.35 if main else 1.0,
    )
