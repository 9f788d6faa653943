"""What a model says of labelled images, and how good that is, head by head.

Legend: `N` images, `C` classes.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deitlt.metrics import Report, confusion_matrix, report
from deitlt.student import DeiTLT, PlainViT, average_logits, exact_logits

HeadLogits = dict[str, NDArray[np.float32]]

# Shares of CLS that are tried.
BLENDS = tuple(step / 20 for step in range(21))


@torch.inference_mode()
def student_logits(
    model: DeiTLT | PlainViT, images: Iterable[Tensor], *, bf16: bool | None = None
) -> HeadLogits:
    """Logits `(N, C)` of the average and of both experts, or of a plain transformer's one head.

    Leaves the model in eval mode.

    Args:
        model: on the device of the images.
        images: normalised batches.
        bf16: of the student's recipe; False keeps a GPU, too, in single precision.
    """
    model.eval()
    parts = [_answer(model, batch, bf16) for batch in images]
    heads = [torch.cat(head) for head in zip(*parts, strict=True)]
    named = {"cls": heads[0]}
    if len(heads) == 2:
        named = {"average": average_logits(*heads), "cls": heads[0], "dist": heads[1]}
    return {head: logits.cpu().numpy() for head, logits in named.items()}


@torch.inference_mode()
def teacher_logits(model: nn.Module, images: Iterable[Tensor]) -> HeadLogits:
    """Cosines or logits `(N, C)` of a teacher; leaves the model in eval mode."""
    model.eval()
    return {"teacher": torch.cat([model(batch) for batch in images]).float().cpu().numpy()}


def _answer(model: DeiTLT | PlainViT, batch: Tensor, bf16: bool | None) -> list[Tensor]:
    """What a student gives; on a GPU its transformer in bf16, unless it was trained without."""
    device = batch.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda" and bf16 is not False):
        tokens = model.tokens(batch)
    return exact_logits(model, tokens)


def fit_blend(logits: HeadLogits, labels: NDArray[np.int64], num_classes: int) -> float:
    """The share of CLS, against DIST, with the best balanced accuracy; of equals the nearest to ½.

    Args:
        logits: of `cls` and `dist` on held-out images, never on test images.
        labels: `(N,)`.
        num_classes: `C`.
    """
    scores = {}
    for share in BLENDS:
        predicted = (share * logits["cls"] + (1 - share) * logits["dist"]).argmax(axis=1)
        confusion = confusion_matrix(labels, predicted, num_classes)
        totals = confusion.sum(axis=1)
        scores[share] = (np.diag(confusion)[totals > 0] / totals[totals > 0]).mean()
    return max(BLENDS, key=lambda share: (round(scores[share], 9), -abs(share - 0.5)))


def all_finite(logits: HeadLogits) -> bool:
    """Whether no head answers with NaN or infinite numbers, of which there is nothing to report."""
    return all(np.isfinite(scores).all() for scores in logits.values())


def head_reports(
    logits: HeadLogits, labels: NDArray[np.int64], train_counts: list[int]
) -> dict[str, Report]:
    """A report a head, whose logits are all finite."""
    return {head: report(labels, scores, train_counts) for head, scores in logits.items()}
