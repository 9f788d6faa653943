"""What a model says of labelled images, and how good that is, head by head.

Legend: `N` images, `C` classes.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from deitlt.metrics import Report, report
from deitlt.student import DeiTLT, average_logits
from training.data import EvaluationImages

HeadLogits = dict[str, NDArray[np.float32]]


@torch.inference_mode()
def student_logits(model: DeiTLT, images: EvaluationImages) -> HeadLogits:
    """Logits `(N, C)` of the average and of both experts; leaves the model in eval mode."""
    model.eval()
    pairs = [model(batch) for batch in images]
    cls, dist = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    heads = {"average": average_logits(cls, dist), "cls": cls, "dist": dist}
    return {head: logits.float().cpu().numpy() for head, logits in heads.items()}


@torch.inference_mode()
def teacher_logits(model: torch.nn.Module, images: EvaluationImages) -> HeadLogits:
    """Cosines `(N, C)` of a teacher; leaves the model in eval mode."""
    model.eval()
    return {"teacher": torch.cat([model(batch) for batch in images]).float().cpu().numpy()}


def head_reports(
    logits: HeadLogits, labels: NDArray[np.int64], train_counts: list[int]
) -> dict[str, Report]:
    """A report a head."""
    return {head: report(labels, scores, train_counts) for head, scores in logits.items()}
