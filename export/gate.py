"""The accuracy gate: is a reduced-precision variant (int8, fp16) still as accurate as torch?

Both answer the same images, so all there is to know lies in those that one alone has right. Three
things can be said of a variant, overall and in each group, with the 95 % interval of the difference
(`paired_interval`):

- refused: it loses more than the limit; of a group, whose images are fewer, only where the interval
  leaves no doubt that it loses;
- certified: the whole interval lies within the limit, so a greater loss is ruled out;
- passes: neither. A loss beyond the limit was not seen, or may be chance, but is not ruled out, and
  bundle and model card say up to what.

Simulated with ten equal classes: of 1,000 images a variant that is as accurate as torch and answers
1 % of them otherwise is refused in 12 cases of 100, where a point estimate in each group, too,
refuses 45, and of 10,000 images in 3; one that answers 2 % otherwise in 24 and 8. A true loss of 1
point is found in over nine cases of ten. To certify 0.3 points takes 922 images where no answer is
another one, and about 4,500 where 1 % are, half of them to the better.

Legend: `N` images, `C` classes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil, sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deitlt.errors import UsageError
from deitlt.longtail import IntArray, all_groups, class_counts
from deitlt.metrics import Z_95, Interval

MAX_LOSS_POINTS = 0.3
MAX_GROUP_LOSS_POINTS = 0.5
# A loss of exactly the limit passes, whichever way its last bit was rounded.
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant against torch on the same images, overall or in one group; shares in [0, 1].

    Attributes:
        torch: accuracy of torch.
        variant: accuracy of the variant.
        difference: variant minus torch.
        interval: 95 % interval of the difference, see `paired_interval`.
        limit: largest loss allowed.
        strict: a larger one is refused even where it may be chance.
        num_images: images compared.
        effective_images: images of equal weight that would tell as much (Kish 1965); fewer than
            `num_images` where classes differ in size, as an image of a small one weighs more.
    """

    torch: float
    variant: float
    difference: float
    interval: Interval
    limit: float
    strict: bool
    num_images: int
    effective_images: float

    @property
    def refused(self) -> bool:
        """Whether the variant loses more than the limit, and certainly if it is not strict."""
        too_much = -self.difference > self.limit + ROUNDING
        return too_much and (self.strict or self.interval[1] < 0)

    @property
    def certified(self) -> bool:
        """Whether a loss beyond the limit is ruled out."""
        return -self.interval[0] <= self.limit + ROUNDING

    @property
    def verdict(self) -> str:
        """One word: refused, certified or passes."""
        return "refused" if self.refused else "certified" if self.certified else "passes"

    def to_dict(self) -> dict[str, Any]:
        """The figures and the verdict as plain JSON types."""
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True, slots=True)
class Gate:
    """What the gate found for one variant.

    Attributes:
        name: the variant, such as int8.
        num_broken: images whose variant logits are NaN or infinite; they count as wrong.
        overall: share of right images.
        groups: mean recall of the classes of each group of both groupings, as in `metrics.report`;
            None for a group without images.
    """

    name: str
    num_broken: int
    overall: Comparison
    groups: dict[str, Comparison | None]

    def to_dict(self) -> dict[str, Any]:
        """The figures and verdicts as plain JSON types."""
        return {
            "name": self.name,
            "num_broken": self.num_broken,
            "overall": self.overall.to_dict(),
            "groups": {group: c and c.to_dict() for group, c in self.groups.items()},
            "doubt": self.doubt(),
        }

    @property
    def loses(self) -> bool:
        """Whether the variant is broken or refused anywhere."""
        return self.num_broken > 0 or any(c.refused for c in self._places().values())

    def refusal(self) -> str | None:
        """One line on why the variant must not be shipped, or None if it passes."""
        num_images = self.overall.num_images
        if self.num_broken:
            return (
                f"{self.name}: {self.num_broken} of {num_images} images give NaN or infinite logits"
            )
        if few := too_few_images(self.name, num_images, 100 * self.overall.limit):
            return few
        losses = [
            f"{-100 * c.difference:.3g} points {place} ({100 * c.torch:.2f} -> "
            f"{100 * c.variant:.2f} %, limit {100 * c.limit:g}, 95 % interval {_percent(c)})"
            for place, c in self._places().items()
            if c.refused
        ]
        return f"{self.name}: loses {', '.join(losses)}" if losses else None

    def doubt(self) -> str | None:
        """One line on the losses beyond the limits that are not ruled out, or None."""
        doubts = [
            f"{-100 * c.interval[0]:.2g} {place} (limit {100 * c.limit:g})"
            for place, c in self._places().items()
            if not c.certified
        ]
        if not doubts:
            return None
        return (
            f"{self.overall.num_images} images cannot certify the limits; not ruled out are "
            f"losses of up to, in points: {', '.join(doubts)}"
        )

    def _places(self) -> dict[str, Comparison]:
        """Every comparison with images, by where it is, for people."""
        groups = {f"in {group}": c for group, c in self.groups.items() if c is not None}
        return {"overall": self.overall, **groups}

    def table(self) -> str:
        """A table in %, a line each for overall and every group."""
        lines = [
            f"{'':<8}{'torch':>8}{self.name:>8}{'change':>8}{'95 % interval':>18}{'limit':>7}"
            f"{'images':>8}{'effective':>11}  verdict"
        ]
        for place, c in {"overall": self.overall, **self.groups}.items():
            if c is None:
                lines.append(f"{place:<8}  no images")
                continue
            lines.append(
                f"{place:<8}{100 * c.torch:>8.2f}{100 * c.variant:>8.2f}{100 * c.difference:>+8.2f}"
                f"{_percent(c):>18}{100 * c.limit:>7g}{c.num_images:>8}{c.effective_images:>11.0f}"
                f"  {c.verdict}"
            )
        return "\n".join(lines)


def judge(
    name: str,
    labels: ArrayLike,
    torch_logits: NDArray[Any],
    variant_logits: NDArray[Any],
    train_counts: Sequence[int],
    *,
    max_loss_points: float = MAX_LOSS_POINTS,
    max_group_loss_points: float = MAX_GROUP_LOSS_POINTS,
) -> Gate:
    """Compare a variant with torch on labelled images.

    Args:
        name: the variant, for people.
        labels: true classes, `(N,)`.
        torch_logits: torch's averaged logits, `(N, C)`; ties go to the lower class index.
        variant_logits: the variant's, `(N, C)`.
        train_counts: training images of each class, `(C,)`; they define the groups.
        max_loss_points: largest loss allowed overall, in percentage points.
        max_group_loss_points: largest loss allowed in a group.

    Raises:
        UsageError: a limit is not above 0 and at most 100 points.
    """
    _check_limits(max_loss_points, max_group_loss_points)
    truth = np.asarray(labels, dtype=np.int64)
    assert torch_logits.shape == variant_logits.shape == (len(truth), len(train_counts))
    broken = ~np.isfinite(variant_logits).all(axis=1)
    torch = torch_logits.argmax(axis=1) == truth
    variant = (variant_logits.argmax(axis=1) == truth) & ~broken
    subsets = (np.full(len(truth), True), torch, variant, torch & ~variant, variant & ~torch)
    counts = np.stack([class_counts(truth[subset], len(train_counts)) for subset in subsets])
    groups = {
        group: _compare(counts[:, classes], max_group_loss_points / 100)
        for group, classes in all_groups(train_counts).items()
    }
    # Overall every image weighs the same, as in the mean recall of a single class.
    overall = _compare(counts.sum(axis=1, keepdims=True), max_loss_points / 100, strict=True)
    assert overall is not None, "no images"
    return Gate(name, int(broken.sum()), overall, groups)


def too_few_images(name: str, num_images: int, max_loss_points: float) -> str | None:
    """One line if one of so many images weighs more than the limit, so that no variant can pass.

    Raises:
        UsageError: the limit is not above 0 and at most 100 points.
    """
    _check_limits(max_loss_points)
    limit = max_loss_points / 100
    if num_images * limit >= 1 - ROUNDING:
        return None
    return (
        f"{name}: {num_images} images are too few to tell a loss of {max_loss_points:g} points, "
        f"which takes {ceil(1 / limit - ROUNDING)}; give more images or raise --max-loss to "
        f"{ceil(1e4 / num_images - ROUNDING) / 100:g}"
    )


def paired_interval(lost: float, won: float, num_images: float) -> Interval:
    """95 % interval of `won - lost`, the shares of images that one of two models alone has right.

    Adjusted Wald interval of Bonett and Price (2012, doi:10.3102/1076998611411915): Wald's with one
    image more lost and one more won. Deviation: `num_images` may be an effective number, which
    takes the doubt to be alike in all classes.
    """
    p12, p21 = (num_images * lost + 1) / (num_images + 2), (num_images * won + 1) / (num_images + 2)
    margin = Z_95 * sqrt((p12 + p21 - (p21 - p12) ** 2) / (num_images + 2))
    return max(-1.0, p21 - p12 - margin), min(1.0, p21 - p12 + margin)


def _check_limits(*points: float) -> None:
    if not all(0 < limit <= 100 for limit in points):
        raise UsageError("--max-loss and --max-group-loss are above 0 and at most 100 points")


def _compare(counts: IntArray, limit: float, *, strict: bool = False) -> Comparison | None:
    """Mean over classes; rows of `counts`: images, torch right, variant right, lost, won."""
    counts = counts[:, counts[0] > 0]
    totals = counts[0]
    if not len(totals):
        return None
    torch, variant, lost, won = (counts[1:] / totals).mean(axis=1).tolist()
    effective = len(totals) ** 2 / float((1 / totals).sum())  # 1 / sum of w^2, w = 1 / (K n)
    interval = paired_interval(lost, won, effective)
    total = int(totals.sum())
    return Comparison(torch, variant, won - lost, interval, limit, strict, total, effective)


def _percent(c: Comparison) -> str:
    return f"{100 * c.interval[0]:.2f} to {100 * c.interval[1]:.2f}"
