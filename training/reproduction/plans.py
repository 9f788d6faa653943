"""Which recipe stands behind a row, and what is changed in it at a smaller scale."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.reproduction.published import Dataset

Scale = Literal["tiny", "short", "full"]

# Digits have a tenth of CIFAR's images; at factor 100 their rarest class would have one.
TINY_FACTORS = {100: 20, 50: 10}


@dataclass(frozen=True)
class Plan:
    """What is run for a row.

    Attributes:
        recipes: recipe of `train_teacher` or `train_student` by family of data sets.
        kind: which of the two.
        needs: the plan whose weights it takes: a teacher's, or for cRT the features.
        drw: whether it re-weights in the end.
        size: of a student.
    """

    recipes: dict[str, str]
    kind: Literal["teacher", "student"] = "student"
    needs: str = ""
    drw: bool = False
    size: str = "base"


def _cifar(recipe: str) -> dict[str, str]:
    return {"cifar": recipe}


def _all(cifar: str, suffix: str = "") -> dict[str, str]:
    return {"cifar": cifar, "imagenet_lt": f"imagenet_lt{suffix}", "inat18": f"inat18{suffix}"}


PLANS: dict[str, Plan] = {
    "teacher_ldam": Plan(_all("cifar"), "teacher", drw=True),
    "teacher_paco": Plan(_all("cifar_paco", "_paco"), "teacher"),
    "teacher_paco_no_sam": Plan(_cifar("cifar_paco_no_sam"), "teacher"),
    "teacher_strong": Plan(_cifar("cifar_strong"), "teacher"),
    "deit_lt": Plan(_all("cifar"), needs="teacher_paco", drw=True),
    "deit_lt_ldam": Plan(_all("cifar"), needs="teacher_ldam", drw=True),
    "drw_no_sam": Plan(_cifar("cifar"), needs="teacher_paco_no_sam", drw=True),
    "no_drw_no_sam": Plan(_cifar("cifar_no_drw"), needs="teacher_paco_no_sam"),
    "no_drw": Plan(_cifar("cifar_no_drw"), needs="teacher_paco"),
    "unmixed": Plan(_cifar("cifar_unmixed"), needs="teacher_paco"),
    "weak": Plan(_cifar("cifar_weak_views"), needs="teacher_paco"),
    "small": Plan(_cifar("cifar_small"), needs="teacher_paco", drw=True, size="small"),
    "tiny": Plan(_cifar("cifar_tiny"), needs="teacher_paco", drw=True, size="tiny"),
    "vit": Plan(_all("vit", "_vit")),
    "vit_crt": Plan(_cifar("vit_crt"), needs="vit"),
    "deit": Plan(_cifar("deit"), needs="teacher_strong"),
    "deit3": Plan(_all("deit3", "_deit3")),
}


def with_needs(names: list[str]) -> list[str]:
    """Plans and what they rest on, in the order of `PLANS`, where needs come first."""
    wanted = {*names, *(PLANS[name].needs for name in names)}
    return [name for name in PLANS if name in wanted]


def run_folder(root: Path, dataset: Dataset, factor: int | None, seed: int, plan: str) -> Path:
    """Where a run lies; tables share runs."""
    imbalance = "" if factor is None else f"-{factor}"
    return root / f"{dataset.name.lower()}{imbalance}" / f"seed{seed}" / plan


def training_words(
    name: str, scale: Scale, root: Path, data: Path, dataset: Dataset, factor: int | None, seed: int
) -> list[str]:
    """The training program behind a plan and its arguments."""
    plan = PLANS[name]
    run = run_folder(root, dataset, factor, seed, name)
    words = [f"training.train_{plan.kind}", plan.recipes[dataset.family]]
    words += ["--data", str(data), "--output", str(run), "--resume"]
    words += ["--val-fraction", "0", "--seed", str(seed)]
    if factor is not None:
        drawn = TINY_FACTORS[factor] if scale == "tiny" else factor
        words += ["--imbalance-factor", str(drawn)]
    if plan.needs:
        flag = "--init" if name == "vit_crt" else "--teacher"
        words += [flag, str(run.parent / plan.needs)]
    return words + changes(name, scale, dataset)


def changes(name: str, scale: Scale, dataset: Dataset) -> list[str]:
    """What a scale changes in the recipe of a plan.

    - full: nothing.
    - short: CIFAR at 28 px in patches of 2 (the same 196 patches) for 100 epochs in batches of 128,
      teachers for 60, ResNet-32 in place of RegNetY; ImageNet-LT and iNaturalist for 100.
    - tiny: handwritten digits in minutes, on a CPU; B and S become nano, Ti pico.
    """
    plan = PLANS[name]
    if scale == "full":
        return []
    if name == "vit_crt":
        return [] if scale == "short" and dataset.family != "cifar" else _shape(plan, scale)
    if dataset.family != "cifar" and scale == "short":
        return _epochs(plan, 100, 86)
    return [*_shape(plan, scale), *_schedule(name, plan, scale)]


def _epochs(plan: Plan, epochs: int, drw: int) -> list[str]:
    return ["--epochs", str(epochs), "--drw-epoch", str(drw if plan.drw else epochs)]


def _shape(plan: Plan, scale: Scale) -> list[str]:
    """Size of images and networks."""
    if plan.kind == "teacher":
        strong = plan is PLANS["teacher_strong"]
        network = ["--network", "resnet32", "--crop-pct", "1"] if strong else []
        if scale == "tiny":
            small = ["--img-size", "8", "--crop-padding", "1", "--flip", "0", "--batch-size", "32"]
            return [*network, *small, "--micro-batch-size", "None"]
        return [*network, "--img-size", "32"]
    if scale == "short":
        return ["--img-size", "28", "--patch-size", "2", "--crop-padding", "4",
                "--batch-size", "128", "--micro-batch-size", "None"]  # fmt: skip
    size = "pico" if plan.size == "tiny" else "nano"
    return [
        *("--size", size, "--img-size", "16", "--patch-size", "4", "--crop-pct", "1"),
        *("--crop-padding", "2", "--crop-scale", "0.8", "1", "--flip", "0"),
        *("--auto-augment", "rand-m5-mstd0.5-inc1", "--batch-size", "32"),
        *("--micro-batch-size", "None", "--allow-weak-teacher"),
    ]


def _schedule(name: str, plan: Plan, scale: Scale) -> list[str]:
    """Length, and what goes with it."""
    if plan.kind == "teacher":
        epochs, drw = (10, 8) if scale == "tiny" else (60, 48)
        words = [*_epochs(plan, epochs, drw), "--warmup-epochs", "1" if scale == "tiny" else "3"]
        if name != "teacher_strong":
            words += ["--decay-epochs", str(drw), str((epochs + drw) // 2), "--decay-factor", "0.1"]
        if name == "teacher_ldam" and scale == "tiny":
            words += ["--rho", "0.1"]  # few steps take no larger one
        return words
    epochs, drw = (30, 22) if scale == "tiny" else (100, 90)
    words = [*_epochs(plan, epochs, drw), "--warmup-epochs", "2" if scale == "tiny" else "5"]
    if name != "deit3":  # LAMB keeps its own
        words += ["--lr", "2e-3" if scale == "tiny" else "5e-4"]
    return [*words, "--sampling", "all"]
