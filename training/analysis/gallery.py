"""Single pictures and where each expert looks on them.

Legend: `P` experts, `G` patches a side.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deitlt.preprocess import decode_file, normalise, resize_crop
from training.analysis.attention import Transformer, experts, walk
from training.analysis.rollout import expert_maps, roll
from training.analysis.runs import load_run
from training.analysis.study import Look, Study

SHOWN = 6


@dataclass(frozen=True)
class Gallery:
    """Pictures whose rollouts are shown.

    Attributes:
        paths: their files.
        pictures: as the model saw them.
        labels: class of each where that is known, else the file's name.
        answers: what is written over the map of each expert: its name and its answer.
        maps: rollouts `(len(paths), P, G, G)`.
    """

    paths: list[Path]
    pictures: list[Image.Image]
    labels: list[str]
    answers: list[list[str]]
    maps: NDArray[np.float32]


def spread_over_tail(look: Look, limit: int = SHOWN) -> list[Path]:
    """Up to `limit` of the tail images looked at, from its classes in turn."""
    tail = np.flatnonzero(look.tail)
    labels = look.images.labels[tail]
    turns = np.array([int((labels[:i] == label).sum()) for i, label in enumerate(labels)])
    order = tail[np.lexsort((labels, turns))[:limit]]
    return [look.images.paths[i] for i in order]


def gallery(run: Path, study: Study, paths: list[Path], device: torch.device) -> Gallery:
    """The rollouts and answers of a student on pictures.

    Raises:
        ImageError: one of them cannot be read; the text names it.
    """
    model, card = load_run(run)
    model.to(device)
    pixels = [resize_crop(decode_file(path), card.preprocess) for path in paths]
    whole = [path.absolute() for path in study.images.paths]
    known = dict(zip(whole, study.images.labels, strict=True))
    maps, labels, captions = [], [], []
    for path, picture in zip(paths, pixels, strict=True):
        image = torch.from_numpy(normalise(picture[None], card.preprocess)).to(device)
        maps.append(rollout_maps(model, image).cpu().numpy())
        with torch.inference_mode():
            answers = [card.classes[int(logits.argmax())] for logits in model(image)]
        label = known.get(path.absolute())
        labels.append(path.name if label is None else card.classes[label])
        named = zip(study.experts, answers, strict=True)
        captions.append([f"{name.upper()}: {answer}" for name, answer in named])
    pictures = [Image.fromarray(p) for p in pixels]
    return Gallery(paths, pictures, labels, captions, np.concatenate(maps))


def rollout_maps(model: Transformer, images: torch.Tensor) -> torch.Tensor:
    """Rollouts `(B, P, G, G)` of normalised images `(B, 3, S, S)`."""
    rolled = None
    for view in walk(model, images):
        rolled = roll(rolled, view.attention)
    assert rolled is not None, "a student has blocks"
    return expert_maps(rolled, len(experts(model)))
