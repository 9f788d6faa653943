"""A classifier that waits on command, for tests of the engine."""

import threading
from concurrent.futures import Future

from deitlt.classifier import Classifier
from deitlt.errors import DecodeFailed
from deitlt.prediction import Options, Prediction, Timing
from deitlt.preprocess import ImageLike

TIMEOUT_S = 20  # only ever waited for where a test fails


class Gated(Classifier):
    """Answers what it is told to, once its gate is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.started = threading.Semaphore(0)
        self.seen: list[ImageLike] = []

    def predict_one(
        self, image: ImageLike, options: Options = Options(), timing: Timing | None = None
    ) -> Prediction:
        self.seen.append(image)
        self.started.release()
        assert self.gate.wait(TIMEOUT_S)
        if isinstance(image, bytes) and image == b"bad":
            raise DecodeFailed("the image is damaged")
        if isinstance(image, bytes) and image == b"crash":
            raise ZeroDivisionError
        return Prediction(str(image), 0, 1.0, "head", None, ())


def label(future: Future[Prediction]) -> str:
    return future.result(TIMEOUT_S).label
