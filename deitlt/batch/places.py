"""Where an image lies: what a source reads from, if it is no plain file."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from deitlt.errors import ImageError, OpenFailed
from deitlt.preprocess import ImageLike, check_kind, to_rgb


class Place(Protocol):
    """Anything that can be read as an image; picklable, as decoding may be another process's."""

    def read(self) -> ImageLike:
        """What `Classifier.predict` takes; raises `ImageError`."""
        ...


@dataclass(frozen=True, slots=True)
class Held:
    """An image that is in memory already."""

    image: ImageLike

    def read(self) -> ImageLike:
        """The image."""
        return self.image


def held(image: ImageLike, max_pixels: int) -> Place:
    """An image in memory as another process takes it: decoded, or with what is wrong with it.

    Args:
        image: as `Classifier.predict` takes it.
        max_pixels: most pixels of an opened image, of which the other process sees them alone.
    """
    try:
        check_kind(image)
        if isinstance(image, Image.Image):  # it may be a file still, of any size
            return Held(np.asarray(to_rgb(image, max_pixels=max_pixels)))
    except ImageError as error:
        return Unreadable(str(error), type(error))
    return Held(image)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What was found but cannot be read, so that it has a row that says so."""

    reason: str
    kind: type[ImageError] = OpenFailed

    def read(self) -> bytes:
        """Always raises an error of this kind."""
        raise self.kind(self.reason)
