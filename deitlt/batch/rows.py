"""What stands in the rows of a prediction: columns, their types, and a cell for each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from deitlt.bundle import FEATURES
from deitlt.errors import ImageError
from deitlt.prediction import Prediction, Score

Cells = dict[str, Any]
Kind = type[str] | type[int] | type[float] | type[bool] | type[list[float]]

# Columns of the features, and what they are called in a prediction.
EMBEDDINGS = {"cls_embedding": FEATURES[0], "distillation_embedding": FEATURES[1]}


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns there are.

    Attributes:
        top_k: classes listed an image, no more than there are.
        wide: one row an image, with columns for every rank, instead of one row a rank.
        experts: columns of what CLS and DIST say.
        logits: scores before softmax instead of probabilities.
        embeddings: the features of both tokens, in the first row of an image.
    """

    top_k: int
    wide: bool = False
    experts: bool = False
    logits: bool = False
    embeddings: bool = False

    @property
    def columns(self) -> dict[str, Kind]:
        """Name and type of each column, in order."""
        columns: dict[str, Kind] = {"filename": str}
        if self.wide:
            for rank in range(1, self.top_k + 1):
                ranked = {**self._answer_columns(), **self._expert_columns()}
                columns |= {f"{name}_{rank}": kind for name, kind in ranked.items()}
        else:
            columns |= {"rank": int, **self._answer_columns(), **self._expert_columns()}
        if self.experts:
            columns["agree"] = bool
        columns |= {"group": str, "error": str, "model_version": str}
        if self.embeddings:
            columns |= dict.fromkeys(EMBEDDINGS, list[float])
        return columns

    def rows(
        self, filename: str, result: Prediction | ImageError, model_version: str
    ) -> list[Cells]:
        """The rows of one image, best class first; a failed one has a single row with its error.

        Cells that are not there are empty.
        """
        common: Cells = {"filename": filename, "model_version": model_version}
        if isinstance(result, ImageError):
            return [{**common, "error": result.code}]
        once: Cells = {"group": result.group}
        if result.embeddings is not None:
            # As arrays they take an eighth of what lists of numbers take until they are written.
            once |= {
                column: np.array(result.embeddings[name], np.float32)
                for column, name in EMBEDDINGS.items()
            }
        if result.experts is not None:
            once["agree"] = result.experts.agree
        ranks = self._ranks(result)
        if self.wide:
            named = (
                {f"{name}_{rank}": cell for name, cell in cells.items()}
                for rank, cells in enumerate(ranks, start=1)
            )
            return [{k: v for cells in (common, once, *named) for k, v in cells.items()}]
        rows = [{**common, "rank": rank, **cells} for rank, cells in enumerate(ranks, start=1)]
        rows[0] |= once
        return rows

    @property
    def _score(self) -> str:
        return "logit" if self.logits else "prob"

    def _answer_columns(self) -> dict[str, Kind]:
        return {"index": int, "label": str, self._score: float}

    def _expert_columns(self) -> dict[str, Kind]:
        if not self.experts:
            return {}
        kinds: tuple[tuple[str, Kind], ...] = (("label", str), (self._score, float))
        return {f"{head}_{name}": kind for head in ("cls", "dist") for name, kind in kinds}

    def _ranks(self, prediction: Prediction) -> Iterator[Cells]:
        """What stands of each rank."""
        for rank, score in enumerate(prediction.top_k):
            cells: Cells = {
                "index": score.index,
                "label": score.label,
                self._score: self._value(prediction, "logits", score),
            }
            if (experts := prediction.experts) is not None:
                for head, output, scores in (
                    ("cls", "cls_logits", experts.cls),
                    ("dist", "distillation_logits", experts.dist),
                ):
                    cells[f"{head}_label"] = scores[rank].label
                    cells[f"{head}_{self._score}"] = self._value(prediction, output, scores[rank])
            yield cells

    def _value(self, prediction: Prediction, output: str, score: Score) -> float:
        if not self.logits:
            return score.probability
        assert prediction.logits is not None, "Options(logits=True) goes with logits in the rows"
        return prediction.logits[output][score.index]
