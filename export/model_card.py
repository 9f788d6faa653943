"""The README.md of a bundle: what the model is, how good it is, and what it must not be asked."""

from typing import Any

from deitlt.metrics import MIN_CLAIMABLE_IMAGES, Report, format_table
from export.gate import Gate


def model_card(
    manifest: dict[str, Any], reports: dict[str, Report], gates: dict[str, Gate], source: str
) -> str:
    """Markdown with a Hugging Face header.

    Args:
        manifest: fields of bundle.json known before the files are written.
        reports: figures of the heads `average`, `cls` and `dist` on the verification images.
        gates: what the accuracy gate found of each variant it judged.
        source: what the figures were taken on, for people.
    """
    counts, classes = manifest["train_counts"], manifest["classes"]
    average = reports["average"]
    low, high = average.overall.interval or (0.0, 1.0)
    weak = [
        name
        for name, accuracy in zip(classes, average.per_class, strict=True)
        if accuracy.num_images < MIN_CLAIMABLE_IMAGES
    ]
    lines = [
        "---",
        "pipeline_tag: image-classification",
        "tags: [long-tailed, deit-lt, onnx]",
        "---",
        f"# {manifest['name']}",
        "",
        f"A DeiT-LT student ({manifest['architecture']['size']}, "
        f"{manifest['preprocess']['img_size']} px) for {len(classes)} classes, trained on "
        f"{min(counts)} to {max(counts)} images a class, recipe `{manifest['recipe']['name']}`.",
        "CLS is the head expert, DIST the tail expert; `logits` is the mean of both.",
        "",
        f"## Accuracy on the {average.overall.num_images} {source} (%)",
        "```",
        format_table(reports),
        "```",
        f"Average, overall: 95 % interval {100 * low:.1f} to {100 * high:.1f}. Head / mid / tail "
        "are ranks of training count cut as in the paper; many / medium / few are over 100, 20 to "
        "100, and under 20 training images. The two groupings are not comparable.",
        "",
        f"Expected calibration error of the average: {average.ece:.3f} (not calibrated).",
        "",
        "## Checks",
        "Every artefact was run on these images through the preprocessing of deployment and "
        "compared with torch:",
        "",
        "| Artefact | File | Largest logit difference | Same top-1, % | Overall, % |",
        "|---|---|---|---|---|",
        *(_check_row(name, entry) for name, entry in manifest["artefacts"].items()),
        *(_gate_section(gate) for gate in gates.values()),
        *(
            f"\nNot in this bundle: {reason}"
            for name, reason in manifest["refused"].items()
            if name not in gates
        ),
        "",
        "## Known limits",
        "Answers one of its classes for any picture, also for one of none of them.",
    ]
    if weak:
        lines.append(
            f"{len(weak)} of {len(classes)} classes had fewer than {MIN_CLAIMABLE_IMAGES} "
            f"images to verify on; nothing can be claimed for them: {', '.join(weak[:20])}."
        )
    # Last, as there may be thousands; a block keeps names as they are.
    order = sorted(range(len(classes)), key=lambda c: -counts[c])
    rows = (f"{counts[c]:>8}  {classes[c]}" for c in order)
    lines += ["", "## Training images a class", "```", *rows, "```"]
    return "\n".join(lines) + "\n"


def _check_row(name: str, entry: dict[str, Any]) -> str:
    parity = entry["parity"]
    return (
        f"| {name} | {entry['file']} | {parity['max_abs_diff']:.1e} | "
        f"{100 * parity['same_top1']:.2f} | {100 * entry['accuracy']['overall']:.2f} |"
    )


def _gate_section(gate: Gate) -> str:
    if refusal := gate.refusal():
        verdict = f"Not in this bundle: {refusal}"
    elif doubt := gate.doubt():
        verdict = f"Passed, not certified: {gate.name}: {doubt}"
    else:
        verdict = f"Certified: {gate.name}: the whole interval lies within the limits"
    return f"\n{verdict}\n```\n{gate.table()}\n```"
