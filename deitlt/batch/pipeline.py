"""Sources in, predictions out: in order, with a bounded number in work."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future

from deitlt.batch.sources import Source
from deitlt.classifier import Options, Prediction
from deitlt.engine import Engine
from deitlt.errors import ImageError


def predict_iter(
    engine: Engine, sources: Iterable[Source], options: Options
) -> Iterator[tuple[Source, Prediction | ImageError]]:
    """Each source with its prediction or error, in order, with a bounded number in work."""
    waiting: deque[tuple[Source, Future[Prediction]]] = deque()
    for source in sources:
        if len(waiting) >= engine.capacity:
            yield _finished(*waiting.popleft())
        waiting.append((source, engine.submit(source.path, options, wait=True)))
    while waiting:
        yield _finished(*waiting.popleft())


def _finished(source: Source, future: Future[Prediction]) -> tuple[Source, Prediction | ImageError]:
    try:
        return source, future.result()
    except ImageError as error:
        return source, error
