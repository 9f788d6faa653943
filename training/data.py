"""Images on the training device, as deployment will see them.

Legend: `B` images, `S` image side.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from deitlt.labelled import LabelledImages
from deitlt.preprocess import PreprocessSpec, load_batches

# Prepared sets up to this size stay in memory, so that they are decoded once.
CACHE_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}
EVALUATION_BATCH = 256


class EvaluationImages:
    """Labelled images as deployment will see them; sets up to `CACHE_BYTES` are decoded once.

    Decoded pixels live on the device as uint8 and are normalised there, with the very arithmetic
    of `deitlt.preprocess.normalise`.
    """

    def __init__(self, images: LabelledImages, spec: PreprocessSpec, device: torch.device) -> None:
        self.labels = images.labels
        self._paths = images.paths
        self._spec = spec
        self._device = device
        self._cache: list[Tensor] | None = None
        if len(images) * spec.img_size**2 * 3 <= CACHE_BYTES[device.type]:
            self._cache = list(self._load())

    def __iter__(self) -> Iterator[Tensor]:
        """Normalised `(B, 3, S, S)` batches in order, on the device."""
        mean, std = (
            torch.tensor(channel, device=self._device).view(3, 1, 1)
            for channel in (self._spec.mean, self._spec.std)
        )
        for pixels in self._cache or self._load():
            yield (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std

    def _load(self) -> Iterator[Tensor]:
        for pixels in load_batches(self._paths, self._spec, EVALUATION_BATCH):
            yield torch.from_numpy(pixels).to(self._device)
