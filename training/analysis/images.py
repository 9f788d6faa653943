"""Images as deployment sees them, in batches, without those that cannot be read.

Legend: `B` images, `S` image side.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from deitlt.errors import DataError, ImageError
from deitlt.labelled import LabelledImages
from deitlt.preprocess import PreprocessSpec, decode, normalise, resize_crop

EVALUATION_BATCH = 64


class ReadableImages:
    """Normalised batches of the image files that can be read.

    Attributes:
        read: positions of these files, in order, once all batches were taken.
        unreadable: the other files, and why.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        spec: PreprocessSpec,
        device: torch.device,
        title: str,
        batch_size: int = EVALUATION_BATCH,
    ) -> None:
        """Nothing is read yet.

        Args:
            paths: the files.
            spec: how an image becomes the model's input.
            device: where the batches lie.
            title: of the progress bar.
            batch_size: files a batch; a batch has fewer images where some cannot be read.
        """
        self._paths, self._spec, self._device = paths, spec, device
        self._title, self._batch_size = title, batch_size
        self.read: list[int] = []
        self.unreadable: dict[Path, str] = {}

    def __iter__(self) -> Iterator[Tensor]:
        """Batches `(B, 3, S, S)` in order, B at least 1.

        Raises:
            DataError: none of the files can be read.
        """
        self.read, self.unreadable = [], {}
        for images, positions in decoded(self._paths, self._batch_size, self.unreadable):
            self.read += positions
            pixels = np.stack([resize_crop(image, self._spec) for image in images])
            yield torch.from_numpy(normalise(pixels, self._spec)).to(self._device)
        if not self.read:
            reason = next(iter(self.unreadable.values()), "there are none")
            raise DataError(f"none of {len(self._paths)} images can be read; {reason}")

    def with_progress(self) -> Iterator[Tensor]:
        """The same, while a bar on stderr counts images."""
        with tqdm(total=len(self._paths), desc=self._title, unit="image", disable=None) as bar:
            for batch in self:
                bar.update(len(batch))
                yield batch


def decoded(
    paths: Sequence[Path], batch_size: int, unreadable: dict[Path, str]
) -> Iterator[tuple[list[Image.Image], list[int]]]:
    """RGB images and their positions, batch by batch, decoded by threads; none is empty.

    Args:
        paths: the files.
        batch_size: files a batch.
        unreadable: gets the files that cannot be read, and why.
    """
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), batch_size):
            files = paths[start : start + batch_size]
            images, positions = [], []
            for position, image in enumerate(pool.map(_decode, files), start):
                if isinstance(image, ImageError):
                    unreadable[paths[position]] = str(image)
                else:
                    images.append(image)
                    positions.append(position)
            if images:
                yield images, positions


def pick_evenly(images: LabelledImages, num_images: int, seed: int = 0) -> NDArray[np.int64]:
    """Ascending positions of at most `num_images`, classes as equally as they have images."""
    generator = np.random.RandomState(seed)
    turns = np.empty(len(images), dtype=np.int64)
    for label in np.unique(images.labels):
        members = np.flatnonzero(images.labels == label)
        turns[generator.permutation(members)] = np.arange(len(members))
    order = np.lexsort((images.labels, turns))
    return np.sort(order[:num_images])


def _decode(path: Path) -> Image.Image | ImageError:
    try:
        return decode(path)
    except ImageError as error:
        return error
