"""The rows of the paper's tables and their figures.

Accuracy in %: overall, head, mid, tail. Source: the paper's tables 1 to 6, S.3 and S.4; standard
errors, over three seeds, are given in table S.3 alone. Figures of the official code are the best
epoch on the test set; ours are of the last epoch.
"""

from dataclasses import dataclass
from typing import Literal

Head = Literal["answer", "cls", "dist", "teacher_agreement"]


@dataclass(frozen=True)
class Dataset:
    """A data set of the paper.

    Attributes:
        name: what the paper calls it.
        num_classes: by which it is recognised.
        family: which recipes it takes.
        needs: what a user must have, and name with --data.
    """

    name: str
    num_classes: int
    family: Literal["cifar", "imagenet_lt", "inat18"]
    needs: str


CIFAR10 = Dataset(
    "CIFAR-10-LT", 10, "cifar",
    "CIFAR-10: python -m training.prepare cifar10 --output cifar10, then --data cifar10",
)  # fmt: skip
CIFAR100 = Dataset(
    "CIFAR-100-LT", 100, "cifar",
    "CIFAR-100: python -m training.prepare cifar100 --output cifar100, then --data cifar100",
)  # fmt: skip
IMAGENET_LT = Dataset(
    "ImageNet-LT", 1000, "imagenet_lt",
    "ImageNet with the lists ImageNet_LT_train.txt and _test.txt in one folder, then --data FOLDER",
)  # fmt: skip
INAT18 = Dataset(
    "iNaturalist-2018", 8142, "inat18",
    "iNaturalist-2018 with the lists iNaturalist18_train.txt and _val.txt, then --data FOLDER",
)  # fmt: skip
DATASETS = (CIFAR10, CIFAR100, IMAGENET_LT, INAT18)


@dataclass(frozen=True)
class Row:
    """One published figure.

    Attributes:
        method: what the paper calls it.
        dataset: what it was measured on.
        factor: imbalance factor of the CIFAR sets; None is the set's own.
        plan: of `plans.PLANS`, what is run for it.
        overall: published, %.
        groups: published head, mid and tail, %; None where the paper gives none.
        head: which head of the run; or `teacher_agreement`, the share of its augmented training
            images that the teacher labels as they are labelled.
        standard_error: published, points; None where the paper gives none.
    """

    method: str
    dataset: Dataset
    factor: int | None
    plan: str
    overall: float
    groups: tuple[float, float, float] | None = None
    head: Head = "answer"
    standard_error: float | None = None


def _cifar(
    method: str, plan: str, ten: tuple[float, float], hundred: tuple[float, float]
) -> list[Row]:
    """A line of table 2: imbalance factors 100 and 50 of CIFAR-10-LT, then of CIFAR-100-LT."""
    return [
        Row(method, dataset, factor, plan, overall)
        for dataset, figures in ((CIFAR10, ten), (CIFAR100, hundred))
        for factor, overall in zip((100, 50), figures, strict=True)
    ]


def _heads(
    dataset: Dataset,
    factor: int | None,
    average: tuple[float, float, float, float],
    cls: tuple[float, float, float, float],
    dist: tuple[float, float, float, float],
    standard_error: float | None = None,
) -> list[Row]:
    """Three lines of table S.3 or S.4."""
    named: tuple[tuple[str, Head, tuple[float, float, float, float], float | None], ...] = (
        ("average", "answer", average, standard_error),
        ("CLS", "cls", cls, None),
        ("DIST", "dist", dist, None),
    )
    return [
        Row(name, dataset, factor, "deit_lt", overall, (high, mid, low), head, error)
        for name, head, (overall, high, mid, low), error in named
    ]


def _grouped(
    dataset: Dataset,
    factor: int | None,
    *lines: tuple[str, str, float, tuple[float, float, float]],
) -> list[Row]:
    """Lines of tables 3, 4 and 6: method, plan, overall, groups."""
    return [Row(name, dataset, factor, plan, overall, own) for name, plan, overall, own in lines]


TABLES: dict[str, list[Row]] = {
    "1": [
        Row("teacher on weak views", CIFAR10, 100, "weak", 97.2, head="teacher_agreement"),
        Row("student, weak views", CIFAR10, 100, "weak", 54.2),
        Row("teacher on strong views", CIFAR10, 100, "unmixed", 71.9, head="teacher_agreement"),
        Row("student, strong views", CIFAR10, 100, "unmixed", 69.6),
        Row("teacher on mixed views", CIFAR10, 100, "no_drw", 56.6, head="teacher_agreement"),
        Row("student, strong and mixed views", CIFAR10, 100, "no_drw", 79.4),
        Row("strong teacher on mixed views", CIFAR10, 100, "deit", 79.1, head="teacher_agreement"),
        Row("student of the strong teacher", CIFAR10, 100, "deit", 70.2),
    ],
    "2": [
        *_cifar("ViT-B", "vit", (62.6, 70.1), (35.0, 39.0)),
        *_cifar("ViT-B cRT", "vit_crt", (68.9, 74.5), (38.9, 42.2)),
        *_cifar("DeiT-B", "deit", (70.2, 77.5), (31.3, 39.1)),
        *_cifar("DeiT-III-B", "deit3", (59.1, 68.2), (38.1, 44.1)),
        *_cifar("teacher LDAM-DRW-SAM", "teacher_ldam", (81.9, 84.8), (45.4, 49.4)),
        *_cifar("DeiT-LT-B (LDAM-DRW-SAM)", "deit_lt_ldam", (84.8, 87.5), (52.0, 54.1)),
        *_cifar("teacher PaCo+SAM", "teacher_paco", (86.8, 88.6), (52.8, 56.6)),
        *_cifar("DeiT-LT-B (PaCo+SAM)", "deit_lt", (87.5, 89.8), (55.6, 60.5)),
    ],
    "3": _grouped(
        IMAGENET_LT, None,
        ("ViT-B", "vit", 37.5, (56.9, 30.4, 10.3)),
        ("DeiT-III-B", "deit3", 48.4, (70.4, 40.9, 12.8)),
        ("teacher LDAM-DRW-SAM", "teacher_ldam", 53.1, (62.0, 52.1, 32.8)),
        ("DeiT-LT-B (LDAM-DRW-SAM)", "deit_lt_ldam", 55.6, (65.2, 54.0, 37.1)),
        ("teacher PaCo+SAM", "teacher_paco", 57.5, (62.1, 58.8, 39.3)),
        ("DeiT-LT-B (PaCo+SAM)", "deit_lt", 59.1, (66.6, 58.3, 40.0)),
    ),
    "4": _grouped(
        INAT18, None,
        ("ViT-B", "vit", 54.2, (64.3, 53.9, 52.1)),
        ("DeiT-III-B", "deit3", 61.0, (72.9, 62.8, 55.8)),
        ("teacher LDAM-DRW-SAM", "teacher_ldam", 70.1, (64.1, 70.5, 71.2)),
        ("DeiT-LT-B (LDAM-DRW-SAM)", "deit_lt_ldam", 72.9, (69.0, 73.3, 73.3)),
        ("teacher PaCo+SAM", "teacher_paco", 73.4, (66.3, 73.6, 75.2)),
        ("DeiT-LT-B (PaCo+SAM)", "deit_lt", 75.1, (70.3, 75.2, 76.2)),
    ),
    "5": [
        Row(method, dataset, 100, plan, overall)
        for dataset, figures in (
            (CIFAR10, (70.2, 84.5, 87.3, 87.5)),
            (CIFAR100, (31.3, 48.9, 54.5, 55.6)),
        )
        for (method, plan), overall in zip(
            (
                ("neither (DeiT-B)", "deit"),
                ("OOD distillation", "no_drw_no_sam"),
                ("OOD distillation, DRW", "drw_no_sam"),
                ("OOD distillation, DRW, SAM", "deit_lt"),
            ),
            figures,
            strict=True,
        )
    ],
    "6": [
        *_grouped(
            CIFAR10, 100,
            ("DeiT-LT-Ti", "tiny", 80.8, (89.7, 75.1, 79.4)),
            ("DeiT-LT-S", "small", 85.5, (92.7, 81.5, 83.7)),
            ("DeiT-LT-B", "deit_lt", 87.5, (94.5, 84.1, 85.0)),
        ),
        *_grouped(
            CIFAR100, 100,
            ("DeiT-LT-Ti", "tiny", 49.3, (66.3, 50.0, 27.3)),
            ("DeiT-LT-S", "small", 54.3, (72.6, 54.8, 31.1)),
            ("DeiT-LT-B", "deit_lt", 55.6, (73.1, 56.9, 32.1)),
        ),
    ],
    "S.3": [
        *_heads(
            CIFAR10, 100,
            (87.3, 93.8, 83.7, 85.7), (78.6, 96.5, 79.4, 59.7), (79.9, 72.8, 75.4, 93.0), 0.10,
        ),
        *_heads(
            CIFAR10, 50,
            (89.9, 94.5, 87.2, 88.8), (84.1, 96.5, 83.3, 72.8), (83.2, 74.6, 81.8, 93.6), 0.17,
        ),
        *_heads(
            CIFAR100, 100,
            (54.8, 72.8, 55.9, 31.0), (43.3, 73.7, 41.7, 7.5), (42.5, 39.3, 45.1, 43.1), 0.42,
        ),
        *_heads(
            CIFAR100, 50,
            (60.6, 74.6, 60.5, 43.1), (49.6, 76.0, 50.5, 15.9), (48.0, 44.0, 48.4, 52.6), 0.03,
        ),
    ],
    "S.4": [
        *_heads(
            IMAGENET_LT, None,
            (59.1, 66.7, 58.3, 40.0), (47.5, 68.3, 40.0, 13.5), (56.4, 57.2, 58.6, 46.6),
        ),
        *_heads(
            INAT18, None,
            (75.1, 70.3, 75.2, 76.2), (65.6, 73.8, 65.8, 63.1), (72.9, 56.1, 73.2, 77.0),
        ),
    ],
}  # fmt: skip
