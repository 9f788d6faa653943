"""What a caller asks of a classifier, and what it answers."""

from dataclasses import dataclass
from typing import Any

from deitlt.errors import UsageError


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller wants in an answer.

    Attributes:
        top_k: how many classes to list; more than there are gives all.
        experts: add what CLS and DIST say on their own.
        blend: weight of CLS against DIST in [0, 1]; 0.5 is the paper's average.
        logits: add the scores before softmax, of the answer and of both experts.
        embeddings: add the features that both experts read.
        rollouts: add where both experts looked; of the variant `explain` alone.
    """

    top_k: int = 5
    experts: bool = False
    blend: float = 0.5
    logits: bool = False
    embeddings: bool = False
    rollouts: bool = False

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise UsageError(f"top_k is {self.top_k}; it must be at least 1")
        if not 0 <= self.blend <= 1:
            raise UsageError(f"blend is {self.blend:g}; it must be between 0 and 1")


@dataclass(slots=True)
class Timing:
    """Where the time of one image went, seconds; 0 for what did not happen.

    Attributes:
        wait_s: in the queue.
        decode_s: from bytes to the model's input.
        infer_s: in the model.
    """

    wait_s: float = 0.0
    decode_s: float = 0.0
    infer_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Score:
    """One class with its probability in [0, 1]."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True, slots=True)
class Experts:
    """What each expert says on its own: best classes first."""

    cls: tuple[Score, ...]
    dist: tuple[Score, ...]
    agree: bool


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one image.

    Attributes:
        label: name of the best class.
        index: its index.
        probability: its softmax probability in [0, 1].
        group: head, mid or tail: how rare the class was in training.
        experts_agree: CLS and DIST name the same class; None of a graph without experts.
        top_k: the best classes, best first.
        experts: both experts' own answers, if asked for.
        logits: scores of all classes, in class order, by output name; `logits` is the answer's own.
        embeddings: CLS and DIST token after the final norm, `D` numbers each, as `cls_features` and
            `distillation_features`, if asked for.
        rollouts: the share of each patch in the CLS and the DIST token, rows from the top, as
            `cls_rollout` and `distillation_rollout`, if asked for. The patches cover what
            preprocessing leaves of the image: of its centre a square, `crop_pct` of the short side.
    """

    label: str
    index: int
    probability: float
    group: str
    experts_agree: bool | None
    top_k: tuple[Score, ...]
    experts: Experts | None = None
    logits: dict[str, list[float]] | None = None
    embeddings: dict[str, list[float]] | None = None
    rollouts: dict[str, list[list[float]]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The prediction as plain JSON types; what was to be asked for only where it was."""
        # By hand: dataclasses.asdict copies every leaf and takes four times as long, per request.
        fields: dict[str, Any] = {
            "label": self.label,
            "index": self.index,
            "probability": self.probability,
            "group": self.group,
            "experts_agree": self.experts_agree,
            "top_k": _plain(self.top_k),
        }
        if self.experts is not None:
            fields["experts"] = {
                "cls": _plain(self.experts.cls),
                "dist": _plain(self.experts.dist),
                "agree": self.experts.agree,
            }
        for name in ("logits", "embeddings", "rollouts"):
            if (value := getattr(self, name)) is not None:
                fields[name] = value
        return fields


def _plain(scores: tuple[Score, ...]) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"label": score.label, "index": score.index, "probability": score.probability}
        for score in scores
    )
