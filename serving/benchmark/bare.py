"""The baseline: the same bytes through the same classifier, called in this process.

As many threads as requests are under way, but no more than there are cores: what the service would
do if HTTP cost nothing. `pure` leaves out decoding as well: the runtime alone.
"""

import threading
import time
from collections.abc import Callable, Sequence
from itertools import count

from deitlt.classifier import Classifier
from deitlt.engine import usable_cores
from serving.benchmark.client import Call, Calls
from serving.benchmark.wire import Best

OK = 200


class Bare:
    """A classifier with one thread a call, and the images."""

    def __init__(self, classifier: Classifier, images: Sequence[bytes]) -> None:
        self.classifier, self.images = classifier, images
        self._pixels = [classifier.load_pixels(image)[None] for image in images]

    def answers(self) -> list[Best]:
        """What every server has to answer, image by image."""
        predictions = self.classifier.predict(self.images)
        return [Best(p.index, p.probability) for p in predictions]

    def classify(self, concurrency: int, seconds: float, warm_up_s: float) -> Calls:
        """A window of decoding and running."""
        return self._window(self._classify, concurrency, seconds, warm_up_s)

    def pure(self, concurrency: int, seconds: float, warm_up_s: float) -> Calls:
        """A window of the runtime alone, on pixels decoded before."""
        return self._window(self._run, concurrency, seconds, warm_up_s)

    def _classify(self, number: int) -> None:
        self.classifier.predict_one(self.images[number % len(self.images)])

    def _run(self, number: int) -> None:
        self.classifier.runtime.run(self._pixels[number % len(self._pixels)])

    def _window(
        self, work: Callable[[int], None], concurrency: int, seconds: float, warm_up_s: float
    ) -> Calls:
        numbers, stop = count(), threading.Event()
        calls: list[Call] = []

        def drive() -> None:
            while not stop.is_set():
                start = time.perf_counter()
                work(next(numbers))
                calls.append(Call(start, time.perf_counter(), OK))

        threads = [threading.Thread(target=drive) for _ in range(min(concurrency, usable_cores()))]
        for thread in threads:
            thread.start()
        time.sleep(warm_up_s)
        start, cpu = time.perf_counter(), time.process_time()
        time.sleep(seconds)
        end, cpu_end = time.perf_counter(), time.process_time()
        stop.set()
        for thread in threads:
            thread.join()
        kept = [call for call in calls if call.end > start and call.start < end]
        return Calls(start, end, kept, server_cpu_s=cpu_end - cpu)
