"""Everything that is found out about one run, from its weights, its data and its results.csv.

Legend: `N` images looked at, `L` blocks, `H` heads, `P` experts, `G` patches a side, `D` width,
`C` classes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deitlt.errors import DataError
from deitlt.labelled import LabelledImages
from deitlt.longtail import head_mid_tail
from deitlt.metrics import Report, confusion_matrix, report_answers, softmax
from deitlt.weights import Card
from training.analysis.attention import Transformer, experts, walk
from training.analysis.attention_distance import mean_attention_distance, uniform_distance
from training.analysis.curves import Curve, read_curves
from training.analysis.divergence import cosine_distance
from training.analysis.feature_rank import feature_rank
from training.analysis.images import EVALUATION_BATCH, ReadableImages, pick_evenly
from training.analysis.rollout import expert_maps, roll
from training.analysis.runs import folder_of, load_run
from training.scoring import student_logits

# Attention of one block, of all heads and images of a batch, takes at most this, bytes.
ATTENTION_BYTES = 1 << 27


@dataclass(frozen=True)
class Look:
    """What the experts do inside, on images drawn evenly from all classes.

    Attributes:
        images: those images.
        tail: which of them are of tail classes, `(N,)`.
        rollouts: `(N, P, G, G)`.
        distances: mean attention distance on the tail images, `(L, H)`, px of the input.
        uniform: what it is where every token is attended to alike, px.
        ranks: feature rank of each expert behind each block, `(P, L)`.
        divergence: mean cosine distance of CLS and DIST after the final norm; None without DIST.
    """

    images: LabelledImages
    tail: NDArray[np.bool_]
    rollouts: NDArray[np.float32]
    distances: NDArray[np.float64]
    uniform: float
    ranks: NDArray[np.int64]
    divergence: float | None


@dataclass(frozen=True)
class Study:
    """What is known of a student.

    Attributes:
        name: what it is called in plots.
        card: of its weights.
        experts: names of its experts.
        split: which images it was judged by.
        images: those that could be read.
        unreadable: the others, and why.
        reports: accuracy of each head.
        confusion: of the answer, `(C, C)`, rows the true class.
        look: inside.
        curves: its results.csv.
    """

    name: str
    card: Card
    experts: tuple[str, ...]
    split: str
    images: LabelledImages
    unreadable: dict[Path, str]
    reports: dict[str, Report]
    confusion: NDArray[np.int64]
    look: Look
    curves: dict[str, Curve]


def study(
    run: Path, name: str, split: str, images: LabelledImages, num_images: int, device: torch.device
) -> Study:
    """Look at a student from all sides.

    Args:
        run: run folder, weight file or bundle with weights.
        name: what to call it.
        split: name of the images.
        images: labelled, in the classes of the run.
        num_images: how many of them to look inside on, evenly from all classes.
        device: where to run.

    Raises:
        DeitLTError: run or images cannot be used.
    """
    model, card = load_run(run)
    model.to(device)
    source = ReadableImages(images.paths, card.preprocess, device, f"{name}: answers")
    answers = answer(model, source.with_progress(), bf16=card.recipe.get("bf16"))
    judged = images.subset(np.array(source.read))
    predicted = (answers["average"] if "average" in answers else answers["cls"]).classes
    return Study(
        name=name,
        card=card,
        experts=experts(model),
        split=split,
        images=judged,
        unreadable=source.unreadable,
        reports={
            head: report_answers(judged.labels, said.classes, said.confidence, card.train_counts)
            for head, said in answers.items()
        },
        confusion=confusion_matrix(judged.labels, predicted, len(card.classes)),
        look=look_inside(model, card, judged, num_images, device, name),
        curves=read_curves(folder_of(run)),
    )


class Answers(NamedTuple):
    """What one head says of images.

    Attributes:
        classes: the class it answers, `(N,)`.
        confidence: the probability it gives it, `(N,)`.
    """

    classes: NDArray[np.int64]
    confidence: NDArray[np.float64]


def answer(
    model: Transformer, batches: Iterable[Tensor], *, bf16: bool | None = None
) -> dict[str, Answers]:
    """The answers of each head to batches `(B, 3, S, S)`, at least one.

    Scores are held for a batch at a time: thousands of classes times all images would fill memory.
    """
    parts: dict[str, list[Answers]] = {}
    for batch in batches:
        for head, logits in student_logits(model, [batch], bf16=bf16).items():
            said = Answers(logits.argmax(axis=1), softmax(logits).max(axis=1))
            parts.setdefault(head, []).append(said)
    return {
        head: Answers(*map(np.concatenate, zip(*said, strict=True))) for head, said in parts.items()
    }


def look_inside(
    model: Transformer,
    card: Card,
    images: LabelledImages,
    num_images: int,
    device: torch.device,
    title: str,
) -> Look:
    """Rollouts, attention distances and ranks of a student on some of the images.

    Attention is held for one block and batch at a time; of each image the experts' tokens of all
    blocks are kept, `L * P * D` numbers.

    Raises:
        DataError: none of the images is of a tail class.
    """
    picked = images.subset(pick_evenly(images, num_images))
    tail = of_tail(picked, card)
    if not tail.any():
        raise DataError("no image of a tail class is among those looked at; raise --images")
    config, num_experts = model.config, len(experts(model))
    maps, distances, features, finals = [], [], [], []
    batch_size = _batch_size(model)
    source = ReadableImages(
        picked.paths, card.preprocess, device, f"{title}: attention", batch_size
    )
    for batch in source.with_progress():
        rolled, per_block, tokens = None, [], []
        for view in walk(model, batch):
            rolled = roll(rolled, view.attention)
            per_block.append(
                mean_attention_distance(view.attention, num_experts, config.patch_size)
            )
            tokens.append(view.tokens)
        assert rolled is not None, "a student has blocks"
        maps.append(expert_maps(rolled, num_experts).cpu().numpy())
        distances.append(torch.stack(per_block, dim=1).cpu().numpy())
        features.append(torch.stack(tokens, dim=2).cpu().numpy())
        with torch.inference_mode():
            finals.append(model.norm(tokens[-1]).cpu().numpy())
    if len(source.read) != len(picked):
        raise DataError("images have changed while they were read; start again")
    return Look(
        images=picked,
        tail=tail,
        rollouts=np.concatenate(maps),
        distances=np.concatenate(distances)[tail].mean(axis=0, dtype=np.float64),
        uniform=uniform_distance(
            config.img_size // config.patch_size, config.patch_size, num_experts
        ),
        ranks=_ranks(np.concatenate(features), tail),
        divergence=_divergence(np.concatenate(finals)),
    )


def of_tail(images: LabelledImages, card: Card) -> NDArray[np.bool_]:
    """Which of the images are of the student's tail classes, `(N,)`."""
    return np.isin(images.labels, head_mid_tail(card.train_counts)["tail"])


def _batch_size(model: Transformer) -> int:
    tokens = (model.config.img_size // model.config.patch_size) ** 2 + len(experts(model))
    heads: int = model.blocks[0].attn.num_heads
    return max(1, min(EVALUATION_BATCH, ATTENTION_BYTES // (4 * heads * tokens * tokens)))


def _ranks(features: NDArray[np.float32], tail: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Ranks `(P, L)` of features `(N, P, L, D)`."""
    _, num_experts, num_blocks, _ = features.shape
    ranks = [
        [feature_rank(features[:, expert, block], tail) for block in range(num_blocks)]
        for expert in range(num_experts)
    ]
    return np.array(ranks, dtype=np.int64)


def _divergence(finals: NDArray[np.float32]) -> float | None:
    if finals.shape[1] < 2:
        return None
    return float(cosine_distance(finals[:, 0], finals[:, 1]).mean())
