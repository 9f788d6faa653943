"""The benchmark's table."""

from deitlt.measuring import aligned
from training.benchmark.measure import Row

LEGEND = (
    "Figures are medians; spread: largest less smallest sample over the median; ratio: the figure\n"
    "over its baseline's. Parts of a step are timed by themselves; in the step they may overlap."
)
COLUMNS = ("", "figure", "unit", "spread", "ratio", "baseline", "target")


def format_rows(rows: list[Row]) -> str:
    """The table, and what a reader must know of its rows."""
    cells: list[tuple[str, ...]] = [COLUMNS]
    part = ""
    for row in rows:
        if row.part != part:
            part = row.part
            cells.append((part, *[""] * 6))
        target = "" if row.target is None else str(row.target)
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        spread = f"{row.spread:.0%}" if len(row.samples) > 1 else ""
        baseline = row.baseline or ""
        cells.append(
            (f"  {row.name}", f"{row.value:.4g}", row.unit, spread, ratio, baseline, target)
        )
    lines = aligned(cells, left=(0, 2, 5, 6))
    notes = [f"  {row.part}, {row.name}: {row.note}" for row in rows if row.note]
    return "\n".join(["", *lines, "", LEGEND, *notes])
