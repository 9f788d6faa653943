"""The benchmark's tables: ratios with their spread, and claims only where intervals are apart."""

from statistics import median
from typing import Any

import numpy as np

from deitlt.measuring import aligned
from serving.benchmark.conduct import Running
from serving.benchmark.loads import REFUSED, Load, Soak, spread_of_goodput, undisturbed
from serving.benchmark.windows import Series, Spread

LEGEND = """\
wall, cpu: images a second, and processor time of an image turned round, by those of the bare calls
  around the same window: median [smallest-largest] over n rounds. 1 is as good as bare. The second
  survives a crowd on the machine, and hides cores that idle: both are needed.
bare: the same bytes through the same classifier in threads of one process, as many as requests
  under way but no more than the service has; on a GPU they share batches as its threads do. On a
  CPU each has an image of its own; up to N a run: each has as many as a worker of the service.
pure: the runtime alone, on decoded pixels; on a GPU in whole batches.
p50, p99: of an answer, ms. over: median answer less bare's. client: its own processor time, ms an
  answer, which the server's cores also give. not 200: answers; dropped: rounds with much steal."""
COLUMNS = ("", "wall", "cpu", "p50", "p99", "over", "client", "not 200", "dropped")
OURS = "ours"


def format_closed(concurrency: int, series: dict[str, Series], labels: dict[str, str]) -> str:
    """The table of one number of requests under way."""
    cells: list[tuple[str, ...]] = [(f"{concurrency} under way", *COLUMNS[1:])]
    for key, found in series.items():
        over = found.overhead_ms
        cells.append(
            (
                f"  {labels[key]}",
                str(found.wall or "-"),
                str(found.cpu or "-"),
                _ms(found.latency_ms(0.5)),
                _ms(found.latency_ms(0.99)),
                f"{over.median:+.1f}" if over else "-",
                _ms(found.client_ms, 2) if found.client_ms else "-",
                str(found.num_failed),
                str(len(found.dropped) + found.failed),
            )
        )
    return "\n".join(["", *aligned(cells)])


def claims(concurrency: int, series: dict[str, Series], labels: dict[str, str]) -> list[str]:
    """Our server against every other, only where the intervals do not overlap."""
    ours = series.get(OURS)
    if ours is None or ours.wall is None or ours.cpu is None:
        return []
    lines = []
    for key, other in series.items():
        if not key.startswith(OURS) and other.wall and other.cpu:
            wall, cpu = _claim(ours.wall, other.wall), _claim(ours.cpu, other.cpu)
            lines.append(
                f"  {concurrency} under way, ours by {labels[key]}: wall {wall}; processor {cpu}"
            )
    return lines


def verdict(spread: Spread | None, least: float) -> str:
    """Whether a ratio reaches what it should: only said where its whole interval is on one side."""
    if spread is None:
        return "not measured"
    if spread.low >= least:
        return f"met ({spread})"
    return f"{'not met' if spread.high < least else 'no claim'} ({spread})"


def format_goals(
    series: dict[int, dict[str, Series]], loads: dict[str, dict[float, list[Load]]],
    ours: Running | None, goal: float, max_steal: float,
) -> list[str]:  # fmt: skip
    """What our server should reach, and whether it does."""
    lines = []
    for concurrency, rows in series.items():
        if OURS not in rows:
            continue
        if concurrency >= 8:
            text = f"  wall ratio to bare at least {goal:g} at {concurrency} under way"
            lines.append(f"{text}: {verdict(rows[OURS].wall, goal)}")
            lines.append(f"    and by processor time: {verdict(rows[OURS].cpu, goal)}")
        if concurrency == 1 and (over := rows[OURS].overhead_ms):
            negated = Spread(-over.median, -over.high, -over.low, over.num)
            met = verdict(negated, -3.0).partition(" (")[0]
            lines.append(
                f"  median answer at most 3 ms over bare: {met} ({over.median:.1f} ms "
                f"[{over.low:.1f}-{over.high:.1f}] n={over.num})"
            )
    if ours is not None and "idle_cpu" in ours.facts:
        idle = ours.facts["idle_cpu"]
        lines.append(
            f"  idle at under 1 % of a core: {'met' if idle < 0.01 else 'not met'} ({idle:.2%})"
        )
    for share, found in loads.get(OURS, {}).items():
        if share >= 2:
            good = verdict(spread_of_goodput(found, max_steal), 0.9)
            lines.append(f"  goodput at {share:g} times capacity at least 0.9 of peak: {good}")
    return lines


def format_loads(
    loads: dict[str, dict[float, list[Load]]], labels: dict[str, str], max_steal: float
) -> str:
    """Open loops at Poisson times."""
    head = ("offered by capacity", "goodput by peak", "p50", "p99", "refused")
    cells: list[tuple[str, ...]] = [(*head, "refusal p50", "p99", "failed", "dropped")]
    for key, shares in loads.items():
        for share, windows in shares.items():
            kept = undisturbed(windows, max_steal)
            good = [ms for load in kept for ms in load.crowd.milliseconds()]
            refusals = [ms for load in kept for ms in load.crowd.milliseconds(*REFUSED)]
            cells.append(
                (
                    f"  {labels[key]}, {share:g}",
                    str(spread_of_goodput(windows, max_steal) or "-"),
                    *(_ms(_percentile(good, p)) for p in (50, 99)),
                    f"{median(load.refused for load in kept):.0%}" if kept else "-",
                    *(_ms(_percentile(refusals, p)) for p in (50, 99)),
                    str(sum(load.num_failed for load in windows)),
                    str(len(windows) - len(kept)),
                )
            )
    return "\n".join(["", *aligned(cells)])


def format_conduct(servers: list[Running]) -> str:
    """Starting, idling, ending, and the statuses of bad requests."""
    head = ("conduct", "start s", "n", "stop s", "outlived", "idle cpu", "processes", "PSS MiB")
    cells: list[tuple[str, ...]] = [head]
    for running in servers:
        stops = [s for s in running.stops_s if s is not None]
        cells.append(
            (
                f"  {running.server.label}",
                f"{median(running.starts_s):.2f}",
                str(len(running.starts_s)),
                f"{median(stops):.2f}" if len(stops) == len(running.stops_s) > 0 else "never",
                str(sum(running.survivors)),
                f"{running.facts['idle_cpu']:.2%}",
                str(running.facts["processes"]),
                f"{running.facts['memory_mib']['pss']:.0f}",
            )
        )
    lines = aligned(cells)
    if servers:
        kinds = list(servers[0].facts["statuses"])
        table = [("status of", *kinds)]
        for running in servers:
            statuses = running.facts["statuses"]
            row = tuple(str(statuses[kind] or "none") for kind in kinds)
            table.append((f"  {running.server.label}", *row))
        lines += ["", *aligned(table)]
    return "\n".join(["", *lines])


def format_soak(found: Soak) -> str:
    """A long load in a few words."""
    bad = sum(number for status, number in found.statuses.items() if status != 200)
    total = sum(found.statuses.values())
    first, last = found.memory_mib[0], found.memory_mib[-1]
    return (
        f"\nsoak, ours: {found.minutes:g} minutes, {total} answers, {bad} not 200; memory (RSS) "
        f"{first[0]:.0f} MiB at first, {last[0]:.0f} at the end, {found.slope_mib_per_hour:+.1f} "
        f"MiB an hour over the second half"
    )


def settings(bare: str, servers: list[Running]) -> str:
    """How bare calls were made, what each server was told, how far its answers are from theirs."""
    lines = ["", "settings", f"  bare calls: {bare}"]
    for running in servers:
        found: dict[str, Any] = running.facts["answers"]
        lines.append(
            f"  {running.server.label}: {running.server.setting}; probabilities within "
            f"{found['max_probability_difference']:.0e}, {found['other_classes']} other classes"
        )
    return "\n".join(lines)


def _claim(ours: Spread, other: Spread) -> str:
    if ours.overlaps(other):
        return "no claim"
    return f"{ours.median / other.median:.2f}"


def _percentile(values: list[float], share: float) -> float | None:
    return float(np.percentile(values, share)) if values else None


def _ms(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
