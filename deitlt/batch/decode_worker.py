"""A process that decodes images for another one: sources in on standard input, pixels out.

It is started by `deitlt.batch.decoding` as a program of its own, not through `multiprocessing`: so
it imports no script of the caller's, which needs no `if __name__ == "__main__"`, and shares no lock
of ONNX Runtime's threads. It ends when its standard input does, that is, with its parent.
"""

import os
import pickle
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import BinaryIO, Protocol

from deitlt.errors import DecodeFailed, ImageError
from deitlt.preprocess import ImageLike, Pixels, PreprocessSpec, image_pixels

READY = b"ready"


class Readable(Protocol):
    """Something that gives an image: its bytes, its path, or whatever `Classifier.predict` takes.

    To be decoded in another process it must be picklable, and of a class that a module defines.
    """

    def read(self) -> ImageLike:
        """The image; raises `ImageError` where it cannot be had."""
        ...


def decode_source(source: Readable, spec: PreprocessSpec, max_pixels: int) -> Pixels | ImageError:
    """The model's input `(S, S, 3)` uint8 from a source, or why there is none."""
    try:
        return image_pixels(source.read(), spec, max_pixels=max_pixels)
    except ImageError as error:
        return error.with_traceback(None)  # its frames hold the image
    except MemoryError:
        return DecodeFailed("there is not enough memory to decode the image")


def main() -> int:
    """Answer requests until there are no more; returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # Whatever a library may print goes to standard error, not among the pixels.
    try:
        with os.fdopen(os.dup(1), "wb") as answers:  # which writes the rest when it is closed
            os.dup2(2, 1)
            return _serve(sys.stdin.buffer, answers)
    except BrokenPipeError:  # the parent is gone
        return 0


def _serve(requests: BinaryIO, answers: BinaryIO) -> int:
    answers.write(READY)
    answers.flush()
    try:
        spec, max_pixels = pickle.load(requests)
        while True:
            try:
                sources: Sequence[Readable] = pickle.load(requests)
            except (AttributeError, ImportError) as error:  # of a class that only the parent has
                pickle.dump(str(error), answers)
                return 0
            results = [decode_source(source, spec, max_pixels) for source in sources]
            errors = [result if isinstance(result, ImageError) else None for result in results]
            pickle.dump(errors, answers)
            for result in results:
                if not isinstance(result, ImageError):
                    answers.write(result.data)
            answers.flush()
    except EOFError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
