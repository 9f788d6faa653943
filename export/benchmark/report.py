"""The table of the exported forms."""

from typing import Any

from deitlt.measuring import aligned

LEGEND = """\
p50, q1, p99: median, lower quartile and 99th percentile of a call, ms; images/s is at the median.
x plain: median over rounds of the plain export's time by the row's, in the same round.
cpu, x cpu: median and ratio of the processor's time of a call, ms over all threads; a crowd on the
  cores, which makes calls longer, leaves it nearly alone. It is the host's, not the GPU's.
of floor: the least time, GFLOP after pruning at the best rate of the matrix product in this run, by
  the row's median; int8 has a lower floor than float32's, which is the one shown.
load: from opening the file to the first answer; peak: resident memory of the
  host; both of a fresh process, imports not in the time and libraries in the memory.
The timm rows get normalised float32 images for nothing; ours take raw pixels and normalise them.
A call goes from the host's memory to the host's, with IO binding from the device's to the device's.
OpenVINO is given a fixed shape for each batch size, torch.compile a program."""
TIMES = ("", "images/s", "p50", "q1", "p99", "calls", "x plain", "cpu", "x cpu", "of floor")
COSTS = ("", "file MB", "load s", "peak MiB", "top-1 as torch", "overall", "tail")


def format_student(result: dict[str, Any]) -> str:
    """The part of the table on one student, from `StudentResult.to_dict`."""
    lines = [
        "",
        result["student"],
        f"  {result['plain_gflop']:.4g} GFLOP an image as trained, {result['gflop']:.4g} after "
        "pruning the last block",
    ]
    for size, rate in result["yardstick"]["tflop_per_s"].items():
        lines += ["", *_times(result, size, rate)]
    lines += ["", *_costs(result)]
    lines += [f"  {row['label']}: {row['note']}" for row in result["rows"] if row["note"]]
    lines += [f"  skipped: {label}: {why}" for label, why in result["skipped"].items()]
    if result["bundle"]:
        load = result["bundle"]
        lines.append(
            f"  bundle: import {load['import_s']:.3f} s, load and first prediction "
            f"{load['load_s']:.3f} s, {'no ' if load['torch_free'] else ''}torch loaded"
        )
    for label, shares in result["operators"].items():
        lines += ["", f"  where the time of {label} goes"]
        lines += [f"    {share:6.1%}  {name}" for name, share in shares.items() if share >= 0.001]
        if not shares:
            lines.append("    not known: the profiler saw nothing run")
    return "\n".join(lines)


def _times(result: dict[str, Any], size: str, rate: float) -> list[str]:
    cells: list[tuple[str, ...]] = [(f"  batch {size}", *TIMES[1:])]
    for row in result["rows"]:
        found = row["batches"][size]
        cells.append(
            (
                f"    {row['label']}",
                f"{found['images_per_s']:.4g}",
                *(f"{found[name]:.4g}" for name in ("p50_ms", "lower_quartile_ms", "p99_ms")),
                str(found["num_calls"]),
                _ratio(found["ratio"]),
                f"{found['cpu_ms']:.4g}",
                _ratio(found["cpu_ratio"]),
                f"{found['share_of_floor']:.1%}",
            )
        )
    floor_ms = int(size) * result["gflop"] / rate
    note = f"    floor {floor_ms:.4g} ms: {result['yardstick']['name']}, {rate:.4g} TFLOP/s"
    return [*aligned(cells), note]


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _costs(result: dict[str, Any]) -> list[str]:
    cells: list[tuple[str, ...]] = [(f"  on {result['images']}", *COSTS[1:])]
    for row in result["rows"]:
        shares = (row[name] for name in ("same_top1", "overall", "tail"))
        cells.append(
            (
                f"    {row['label']}",
                f"{row['file_mb']:.4g}",
                f"{row['load_s']:.3f}",
                f"{row['peak_mib']:.0f}",
                *("-" if share is None else f"{share:.1%}" for share in shares),
            )
        )
    return aligned(cells)
