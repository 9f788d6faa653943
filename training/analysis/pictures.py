"""Plots as PNG bytes, on a light and on a dark ground.

A plot is a function that draws on the axes it is given; its colours come from a `Theme`.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deitlt.errors import RuntimeUnavailable

# Figures are as wide as a phone's page at one px a point, and twice as sharp as most screens.
WIDTH_IN = 5.2
DPI = 190


@dataclass(frozen=True)
class Theme:
    """Colours of a plot.

    Attributes:
        ground: behind everything.
        ink: text and axes.
        faint: grid lines.
        heads: of average, cls, dist and a plain head's name.
        runs: of one run after the other.
        scale: matplotlib's colour map for maps and matrices.
    """

    ground: str
    ink: str
    faint: str
    heads: dict[str, str]
    runs: tuple[str, ...]
    scale: str


LIGHT = Theme(
    ground="#ffffff",
    ink="#17202b",
    faint="#d9dee6",
    heads={"average": "#5b3fc4", "cls": "#1a5dbf", "dist": "#c0510f"},
    runs=("#5b3fc4", "#19706a", "#c0510f", "#8a6d00", "#b3202e", "#545f6d"),
    scale="viridis",
)
DARK = Theme(
    ground="#18202a",
    ink="#e8edf4",
    faint="#36424f",
    heads={"average": "#b5a1ff", "cls": "#84b6ff", "dist": "#ffad73"},
    runs=("#b5a1ff", "#6fd0c6", "#ffad73", "#e3cf6a", "#ff9aa2", "#a5b1c0"),
    scale="viridis",
)

Plot = Callable[[Any, Theme], None]


def require_matplotlib() -> None:
    """Make sure that plots can be drawn.

    Raises:
        RuntimeUnavailable: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise RuntimeUnavailable(
            "matplotlib is missing; pip install 'deitlt[training]' brings it"
        ) from error


def draw(plot: Plot, height_in: float, theme: Theme) -> bytes:
    """A plot as PNG.

    Args:
        plot: draws on the matplotlib figure it is given.
        height_in: inches at a width of `WIDTH_IN`.
        theme: its colours.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "axes.edgecolor": theme.ink,
        "axes.facecolor": theme.ground,
        "axes.grid": False,
        "axes.labelcolor": theme.ink,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": theme.ink,
        "axes.titlesize": 10,
        "figure.facecolor": theme.ground,
        "font.size": 9,
        "grid.color": theme.faint,
        "legend.frameon": False,
        "text.color": theme.ink,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # Names of classes in a script that the font lacks show as boxes.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        plot(figure, theme)
        data = io.BytesIO()
        figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()
