"""The confusion matrix as a picture: class by class, or by blocks of classes where they are many.

Classes stand by falling training count, so that what a long tail does to a classifier, answering
frequent classes for rare ones, shows as colour to the left of the diagonal.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deitlt.evaluation.confusion import Confusion, rank_blocks
from deitlt.evaluation.tables import Names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Names of this many classes can be read in a picture of 17 inches.
MAX_CLASSES = 120
NUM_BLOCKS = 100
# Cells are big enough for a number up to this many classes.
MAX_NUMBERED = 15
MAX_NAME = 22
COLOURS = "Blues"
PAD = 26  # between title and picture, for the names of the groups
NO_IMAGES = "0.9"


def confusion_figure(confusion: Confusion, names: Names, title: str) -> "Figure":
    """Share of each class's images answered with each class; above 120 classes errors by blocks.

    Args:
        confusion: the pairs that occur.
        names: of the classes.
        title: what follows "Confusion on".
    """
    if len(names.classes) > MAX_CLASSES:
        return _blocks_figure(confusion, names, title)
    return _classes_figure(confusion, names, title)


def _classes_figure(confusion: Confusion, names: Names, title: str) -> "Figure":
    num_classes = len(names.classes)
    rank = rank_blocks(names.train_counts, num_classes)
    counts = confusion.blocks(rank, num_classes)
    order = np.argsort(rank).tolist()
    side = min(max(5.0, 0.13 * num_classes + 2), 15.0)
    picture, axes = _empty(side)
    font = min(10.0, max(4.5, 72 * side / num_classes * 0.62))
    labels = [_short(names.classes[c]) for c in order]
    upright = num_classes <= MAX_NUMBERED and max(map(len, labels)) <= 4
    axes.set_xticks(range(num_classes), labels, rotation=0 if upright else 90, fontsize=font)
    axes.set_yticks(range(num_classes), labels, fontsize=font)
    _show(picture, axes, _shares(counts, counts.sum(axis=1)), "share of the true class's images")
    if num_classes <= MAX_NUMBERED:
        _number(axes, counts)
    _mark_groups(axes, [names.rank_groups[c] for c in order])
    words = 10 * max(1.0, side / 9)
    axes.set_xlabel("class answered", fontsize=words)
    axes.set_ylabel("true class, by falling training count", fontsize=words)
    axes.set_title(
        f"Confusion on {title}{_grey(counts.sum(axis=1))}", pad=PAD, fontsize=1.2 * words
    )
    return picture


def _blocks_figure(confusion: Confusion, names: Names, title: str) -> "Figure":
    blocks = rank_blocks(names.train_counts, NUM_BLOCKS)
    of_block = np.bincount(blocks[confusion.true], weights=confusion.num_images)
    of_block = np.pad(of_block, (0, NUM_BLOCKS - len(of_block))).astype(np.int64)
    counts = confusion.errors().blocks(blocks, NUM_BLOCKS)
    picture, axes = _empty(9.0)
    sorted_counts = sorted(names.train_counts, reverse=True)
    size = len(sorted_counts) / NUM_BLOCKS
    ticks = list(range(0, NUM_BLOCKS, NUM_BLOCKS // 10))
    labels = [f"{sorted_counts[int(np.ceil(block * size))]}" for block in ticks]
    axes.set_xticks(ticks, labels, rotation=90)
    axes.set_yticks(ticks, labels)
    _show(picture, axes, _shares(counts, of_block), "share of the block's images")
    members = [names.rank_groups[c] for c in np.argsort(blocks, kind="stable")]
    _mark_groups(axes, [members[int(np.ceil(block * size))] for block in range(NUM_BLOCKS)])
    axes.set(
        xlabel="classes answered, by training images of a class",
        ylabel="true classes, by training images of a class",
    )
    axes.set_title(
        f"Wrong answers, by blocks of about {round(size)} classes\n{title}{_grey(of_block)}",
        pad=PAD,
    )
    return picture


def _empty(side: float) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    picture = Figure(figsize=(side + 2.2, side + 2.0))
    picture.set_layout_engine("constrained", w_pad=0.1, h_pad=0.15)
    return picture, picture.add_subplot()


def _shares(counts: NDArray[np.int64], totals: NDArray[np.int64]) -> "np.ma.MaskedArray[Any, Any]":
    shares = counts / np.maximum(totals, 1)[:, None]
    return np.ma.masked_array(shares, np.repeat((totals == 0)[:, None], counts.shape[1], axis=1))


def _show(
    picture: "Figure", axes: "Axes", shares: "np.ma.MaskedArray[Any, Any]", meaning: str
) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    # By the square root, so that a few per cent of confusion can be seen beside the diagonal.
    norm = PowerNorm(0.5, vmin=0, vmax=max(float(shares.max() or 0), 0.01))
    colours = colormaps[COLOURS].with_extremes(bad=NO_IMAGES)
    image = axes.imshow(shares, cmap=colours, norm=norm, interpolation="nearest")
    bar = picture.colorbar(image, ax=axes, shrink=0.7, pad=0.02, label=meaning)
    bar.outline.set_visible(False)


def _number(axes: "Axes", counts: NDArray[np.int64]) -> None:
    totals = counts.sum(axis=1)
    for row, column in np.argwhere(counts).tolist():
        share = counts[row, column] / totals[row]
        axes.text(
            column,
            row,
            str(counts[row, column]),
            ha="center",
            va="center",
            fontsize=9,
            color="white" if share > 0.3 else "black",
        )


def _mark_groups(axes: "Axes", groups: list[str]) -> None:
    """Lines between head, mid and tail, and their names above."""
    for group in dict.fromkeys(groups):
        first, number = groups.index(group), groups.count(group)
        axes.text(
            first + (number - 1) / 2,
            -0.7,
            group,
            ha="center",
            va="bottom",
            color="0.35",
            style="italic",
        )
        if first:
            axes.axhline(first - 0.5, color="0.35", linewidth=0.8)
            axes.axvline(first - 0.5, color="0.35", linewidth=0.8)


def _grey(totals: NDArray[np.int64]) -> str:
    return "; grey: no images" if (totals == 0).any() else ""


def _short(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= MAX_NAME else line[: MAX_NAME - 1] + "…"
