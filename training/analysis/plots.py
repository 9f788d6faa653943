"""What `training.analyze` draws; each function returns a plot to be drawn in a theme.

Legend: `C` classes, `P` experts, `G` patches a side.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.analysis.confusion import merged
from training.analysis.curves import Curve, validation_curve
from training.analysis.pictures import Plot, Theme
from training.analysis.study import Study
from training.analysis.teacher_entropy import Sureness

# Up to so many classes are written out; of more, numbers alone say which is which.
MAX_NAMED = 20
# Rows and columns of a confusion matrix that a screen can show.
MAX_CELLS = 200
# Longer names are cut off, so that they do not run into each other.
MAX_LETTERS = 20


def gallery(
    pictures: Sequence[Image.Image],
    labels: Sequence[str],
    answers: Sequence[Sequence[str]],
    maps: NDArray[np.float32],
) -> Plot:
    """Pictures, and beside each where its experts looked, and the mean of both.

    Args:
        pictures: as the model saw them.
        labels: of each.
        answers: of each, what to write over the map of each expert.
        maps: rollouts `(len(pictures), P, G, G)`; each is drawn on its own scale.
    """
    shown, _ = with_mean(maps, answers[0])

    def plot(figure: Any, theme: Theme) -> None:
        axes = figure.subplots(len(pictures), 1 + shown.shape[1], squeeze=False)
        for row, picture, label, said, grids in zip(
            axes, pictures, labels, answers, shown, strict=True
        ):
            row[0].imshow(picture)
            titles = [label, *said, "mean"][: len(row)]
            for axis, grid in zip(row[1:], grids, strict=True):
                _overlay(axis, picture, grid, theme)
            for axis, title in zip(row, titles, strict=True):
                axis.set_title(_short(title), fontsize=8)
        for axis in axes.flat:
            _bare(axis)

    return plot


def mean_rollout(maps: NDArray[np.float32], experts: Sequence[str]) -> Plot:
    """Where the experts look on the average of many images, `(P, G, G)`, on one scale."""
    shown, titles = with_mean(maps[None], experts)

    def plot(figure: Any, theme: Theme) -> None:
        (axes,) = figure.subplots(1, len(titles), squeeze=False)
        low, high = 100 * shown.min(), 100 * shown.max()
        for axis, grid, title in zip(axes, shown[0], titles, strict=True):
            drawn = axis.imshow(100 * grid, cmap=theme.scale, vmin=low, vmax=high)
            axis.set_title(title)
            _bare(axis)
        bar = figure.colorbar(drawn, ax=axes, orientation="horizontal", shrink=0.8, aspect=40)
        bar.set_label("share of an expert's token that comes from a patch, %")

    return plot


def with_mean(
    maps: NDArray[np.float32], experts: Sequence[str]
) -> tuple[NDArray[np.float32], list[str]]:
    """Rollouts `(N, P, G, G)` with the mean of the experts behind them, and what to call each."""
    titles = [name.upper() for name in experts]
    if len(experts) == 1:
        return maps, titles
    return np.concatenate([maps, maps.mean(axis=1, keepdims=True)], axis=1), [*titles, "mean"]


def attention_distance(studies: Sequence[Study]) -> Plot:
    """A dot a head and block; a line through the means of the blocks."""

    def plot(figure: Any, theme: Theme) -> None:
        axis = figure.subplots()
        for study, colour in zip(studies, _cycle(theme, len(studies)), strict=False):
            blocks = np.arange(1, len(study.look.distances) + 1)
            for head in study.look.distances.T:
                axis.plot(blocks, head, "o", color=colour, markersize=4, alpha=0.55)
            axis.plot(blocks, study.look.distances.mean(axis=1), color=colour, label=study.name)
            axis.axhline(study.look.uniform, color=colour, linestyle=":", linewidth=1)
        axis.plot([], [], ":", color=theme.ink, label="attention to all tokens alike")
        axis.set(xlabel="block", ylabel="mean attention distance, px")
        axis.set_ylim(0, 1.06 * axis.get_ylim()[1])
        _finish(axis)
        axis.xaxis.get_major_locator().set_params(integer=True)

    return plot


def feature_rank(studies: Sequence[Study]) -> Plot:
    """Rank of each expert behind each block; a marker a run."""

    def plot(figure: Any, theme: Theme) -> None:
        axis = figure.subplots()
        for study, marker in zip(studies, "osD^vP" * len(studies), strict=False):
            for expert, ranks in zip(study.experts, study.look.ranks, strict=True):
                name = f"{study.name}: {expert.upper()}" if len(studies) > 1 else expert.upper()
                blocks = np.arange(1, len(ranks) + 1)
                axis.plot(blocks, ranks, f"{marker}-", color=theme.heads[expert], label=name)
        axis.set(xlabel="block", ylabel="feature rank on tail images")
        axis.set_ylim(0, 1.06 * axis.get_ylim()[1])
        _finish(axis)
        axis.xaxis.get_major_locator().set_params(integer=True)

    return plot


def curves_of_runs(curves: dict[str, Curve], label: str, scale: float = 1.0) -> Plot:
    """One curve of each run over its epochs."""

    def plot(figure: Any, theme: Theme) -> None:
        axis = figure.subplots()
        for (name, curve), colour in zip(curves.items(), _cycle(theme, len(curves)), strict=False):
            axis.plot(curve.epochs, scale * np.array(curve.values), color=colour, label=name)
        axis.set(xlabel="epoch", ylabel=label)
        _finish(axis)

    return plot


def convergence(curves: dict[str, dict[str, Curve]]) -> Plot:
    """Balanced accuracy on held-out images above, training loss below, of several runs."""

    def plot(figure: Any, theme: Theme) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True)
        for (name, own), colour in zip(curves.items(), _cycle(theme, len(curves)), strict=False):
            held_out, loss = validation_curve(own), own.get("loss")
            if held_out is not None:
                top.plot(held_out.epochs, 100 * np.array(held_out.values), color=colour, label=name)
            if loss is not None:
                bottom.plot(loss.epochs, loss.values, color=colour, label=name)
        top.set(ylabel="held out, balanced, %", ylim=(0, 102))
        bottom.set(xlabel="epoch", ylabel="training loss (logarithmic)", yscale="log")
        _plain_numbers(bottom.yaxis)
        _finish(bottom)
        top.grid(True, axis="y")

    return plot


def teacher_entropy(answers: Sequence[Sureness]) -> Plot:
    """How many images leave the teacher how unsure, for each kind of view."""

    def plot(figure: Any, theme: Theme) -> None:
        axis = figure.subplots()
        highest = max(float(answer.entropies.max()) for answer in answers)
        edges = np.linspace(0, max(highest, 1e-6), 31)
        for answer, colour in zip(answers, theme.runs, strict=False):
            shares = np.histogram(answer.entropies, edges)[0] * 100 / len(answer.entropies)
            name = f"{answer.view}: mean {answer.entropies.mean():.3f}"
            axis.stairs(shares, edges, color=colour, label=name, linewidth=1.8)
            axis.axvline(answer.entropies.mean(), color=colour, linestyle=":", linewidth=1)
        axis.set(xlabel="entropy of the teacher's answer, nats", ylabel="images, % (logarithmic)")
        axis.set_yscale("log")
        _plain_numbers(axis.yaxis)
        _finish(axis)

    return plot


def accuracy(study: Study, groups: Sequence[str]) -> Plot:
    """Accuracy of each head by group with its 95 % interval."""

    def plot(figure: Any, theme: Theme) -> None:
        axis = figure.subplots()
        heads = list(study.reports)
        for place, head in enumerate(heads):
            shift = 0.24 * (place - (len(heads) - 1) / 2)
            for row, group in enumerate(groups):
                figures = study.reports[head]
                share = figures.overall if group == "overall" else figures.groups[group]
                if share.value is None or share.interval is None:
                    continue
                low, high = share.interval
                where, colour = row + shift, theme.heads[head]
                axis.plot([100 * low, 100 * high], [where, where], color=colour, linewidth=2)
                label = head.upper() if head != "average" else head
                label = label if row == 0 else "_"
                axis.plot(100 * share.value, where, "o", color=colour, label=label, clip_on=False)
        axis.set_yticks(range(len(groups)), groups)
        axis.invert_yaxis()
        axis.set(xlabel="accuracy and its 95 % interval, %")
        axis.set_xlim(max(0.0, axis.get_xlim()[0]), 100)
        axis.grid(True, axis="x")
        figure.legend(loc="outside upper center", ncols=3)

    return plot


def counts_accuracy(study: Study) -> Plot:
    """A class's training images against its accuracy, for each head."""

    def plot(figure: Any, theme: Theme) -> None:
        axes = figure.subplots(len(study.reports), 1, sharex=True, squeeze=False)[:, 0]
        counts = np.array(study.card.train_counts)
        for axis, (head, figures) in zip(axes, study.reports.items(), strict=True):
            colour = theme.heads[head]
            few = len(counts) <= MAX_NAMED
            shares = [np.nan if c.value is None else 100 * c.value for c in figures.per_class]
            axis.plot(counts, shares, "o", color=colour, markersize=5 if few else 3)
            for count, share in zip(counts, figures.per_class if few else (), strict=False):
                if share.interval is not None:
                    low, high = share.interval
                    axis.plot([count, count], [100 * low, 100 * high], color=colour, alpha=0.5)
            axis.set(ylim=(-4, 104), ylabel=f"{head if head == 'average' else head.upper()}, %")
            axis.grid(True, axis="y")
        axes[-1].set(xscale="log", xlabel="training images of the class (logarithmic)")
        _plain_numbers(axes[-1].xaxis)

    return plot


def confusion(study: Study) -> Plot:
    """Shares of each class's images by answer; rows are the true class, most images first.

    Of more classes than `MAX_CELLS` neighbours are taken together.
    """

    def plot(figure: Any, theme: Theme) -> None:
        axis = figure.subplots()
        order = np.argsort(-np.array(study.card.train_counts), kind="stable")
        counts = study.confusion[np.ix_(order, order)]
        each = "true class, most training images first"
        if len(order) > MAX_CELLS:
            counts = merged(counts, MAX_CELLS)
            each = f"true class, {MAX_CELLS} bins of classes, most training images first"
        shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        drawn = axis.imshow(shares, cmap=theme.scale, vmin=0, vmax=100, interpolation="nearest")
        axis.set(xlabel="answered", ylabel=each)
        if len(order) <= MAX_NAMED:
            names = [_short(study.card.classes[i]) for i in order]
            turned = 0 if max(map(len, names)) <= 2 else 60
            axis.set_xticks(range(len(names)), names, rotation=turned)
            axis.set_yticks(range(len(names)), names)
            for i, j in zip(*np.nonzero(counts), strict=True):
                colour = "#000000" if shares[i, j] > 60 else "#ffffff"
                axis.text(j, i, counts[i, j], ha="center", va="center", color=colour, fontsize=7)
        bar = figure.colorbar(drawn, ax=axis, shrink=0.75)
        bar.set_label("share of the true class, %")

    return plot


def _overlay(axis: Any, picture: Image.Image, grid: NDArray[np.float32], theme: Theme) -> None:
    """The grey picture under a rollout, from its lowest to its highest patch."""
    side = picture.width
    axis.imshow(picture.convert("L"), cmap="gray", extent=(0, side, side, 0))
    axis.imshow(grid, cmap=theme.scale, alpha=0.65, extent=(0, side, side, 0))


def _bare(axis: Any) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for edge in axis.spines.values():
        edge.set_visible(False)


def _finish(axis: Any) -> None:
    axis.grid(True, axis="y")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)


def _plain_numbers(side: Any) -> None:
    """Label a logarithmic axis with 1, 2, 5, 10 and so on in place of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    side.set_major_formatter("{x:g}")
    side.set_minor_formatter(NullFormatter())


def _cycle(theme: Theme, num_runs: int) -> tuple[str, ...]:
    return theme.runs * (1 + num_runs // len(theme.runs))


def _short(name: str) -> str:
    return name if len(name) <= MAX_LETTERS else f"{name[: MAX_LETTERS - 1]}…"
