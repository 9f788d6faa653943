"""The baseline: the same bytes through the same classifier, called in this process.

As many threads as requests are under way, but no more than the service has. On a CPU these are the
cores, each running its own image; `together` is the same with as many images in a call of the
model as the service puts together. On a GPU they share batches as the service's threads do, more
than cores, because one that waits for the GPU decodes nothing meanwhile. `pure` leaves out decoding
as well: the runtime alone, on a GPU in whole batches.
"""

import threading
import time
from collections.abc import Callable, Sequence
from itertools import count
from math import ceil

import numpy as np

from deitlt.batching import BatchingRuntime
from deitlt.classifier import Classifier, load
from deitlt.cores import usable_cores
from deitlt.prediction import Options, Timing
from serving.backend import default_workers, images_of_a_worker, max_batch, on_gpu
from serving.benchmark.client import Call, Calls
from serving.benchmark.servers import Setup
from serving.benchmark.wire import Best
from serving.settings import Settings

OK = 200
# Of whole batches: while one runs, the next is at hand.
BATCH_THREADS = 2


def open_bare(setup: Setup, images: Sequence[bytes]) -> "Bare":
    """Bare calls of the bundle on the device, with the service's batches and number of threads.

    Raises:
        DeitLTError: the bundle, the device or an image cannot be used.
    """
    settings = Settings.from_environ({})  # as the service has them, measured as it comes
    plain = load(setup.bundle, variant=setup.variant, device=setup.device, num_threads=1)
    bundle, runtime = plain.bundle, plain.runtime
    threads = default_workers(settings, plain)
    if not on_gpu(runtime):
        together = images_of_a_worker(settings, plain)
        return Bare(plain, images, max_threads=threads, together=together)
    largest = max_batch(settings, runtime, bundle)
    batching = BatchingRuntime(runtime, max_batch=largest, pad=True)
    batching.warm_up(bundle.preprocess.img_size)
    classifier = Classifier(bundle, batching, variant=plain.variant)
    return Bare(classifier, images, max_threads=threads, batch_size=largest)


class Bare:
    """A classifier with one thread a call, and the images."""

    def __init__(
        self,
        classifier: Classifier,
        images: Sequence[bytes],
        *,
        max_threads: int | None = None,
        batch_size: int = 1,
        together: int = 1,
    ) -> None:
        """Decode the images for the runtime's own windows.

        Args:
            classifier: what is called.
            images: encoded.
            max_threads: most threads that call; the number of usable cores by default.
            batch_size: most images in a run that threads share, and those of a run of `pure`.
            together: most images in a run of `classify_together`.
        """
        self.classifier, self.images = classifier, images
        self.max_threads = max_threads or usable_cores()
        self.batch_size, self.together = batch_size, together
        pixels = [classifier.load_pixels(image) for image in images]
        self._pixels = [
            np.stack([pixels[(first + i) % len(pixels)] for i in range(batch_size)])
            for first in range(len(pixels))
        ]

    @property
    def setting(self) -> str:
        """How calls are made, for people."""
        provider = self.classifier.runtime.provider
        if self.batch_size == 1:
            return f"up to {self.max_threads} threads, an image a run, on {provider}"
        return (
            f"up to {self.max_threads} threads share runs of up to {self.batch_size} images, "
            f"on {provider}"
        )

    @property
    def pure_label(self) -> str:
        """The row of `pure`."""
        if self.batch_size == 1:
            return "pure runtime, no decoding"
        return f"pure runtime, batches of {self.batch_size}"

    @property
    def together_label(self) -> str:
        """The row of `classify_together`."""
        return f"bare, up to {self.together} a run"

    def answers(self) -> list[Best]:
        """What every server has to answer, image by image."""
        # One by one, as servers are asked then: in fp16 another batch size rounds differently.
        predictions = [self.classifier.predict_one(image) for image in self.images]
        return [Best(p.index, p.probability) for p in predictions]

    def classify(self, concurrency: int, seconds: float, warm_up_s: float) -> Calls:
        """A window of decoding and running."""
        threads = min(concurrency, self.max_threads)
        return self._window(self._classify, 1, threads, seconds, warm_up_s)

    def classify_together(self, concurrency: int, seconds: float, warm_up_s: float) -> Calls:
        """A window of decoding a few images and running them in one call."""
        threads = min(concurrency, self.max_threads)
        number = min(self.together, ceil(concurrency / threads))
        options, timings = [Options()] * number, [Timing() for _ in range(number)]

        def work(first: int) -> None:
            images = [self.images[(first + i) % len(self.images)] for i in range(number)]
            self.classifier.predict_together(images, options, timings)

        return self._window(work, number, threads, seconds, warm_up_s)

    def pure(self, concurrency: int, seconds: float, warm_up_s: float) -> Calls:
        """A window of the runtime alone, on pixels decoded before."""
        threads = min(concurrency, self.max_threads if self.batch_size == 1 else BATCH_THREADS)
        return self._window(self._run, self.batch_size, threads, seconds, warm_up_s)

    def _classify(self, number: int) -> None:
        self.classifier.predict_one(self.images[number % len(self.images)])

    def _run(self, number: int) -> None:
        self.classifier.runtime.run(self._pixels[number % len(self._pixels)])

    def _window(
        self,
        work: Callable[[int], None],
        images: int,
        num_threads: int,
        seconds: float,
        warm_up_s: float,
    ) -> Calls:
        """Threads that do some work over and over, each time on so many images."""
        numbers, stop = count(), threading.Event()
        calls: list[Call] = []

        def drive() -> None:
            while not stop.is_set():
                start = time.perf_counter()
                work(next(numbers))
                calls.extend([Call(start, time.perf_counter(), OK)] * images)

        threads = [threading.Thread(target=drive) for _ in range(num_threads)]
        try:
            for thread in threads:
                thread.start()
            time.sleep(warm_up_s)
            start, cpu = time.perf_counter(), time.process_time()
            time.sleep(seconds)
            end, cpu_end = time.perf_counter(), time.process_time()
        finally:  # SIGTERM in a window must not leave threads that keep the process alive
            stop.set()
        for thread in threads:
            thread.join()
        kept = [call for call in calls if call.end > start and call.start < end]
        return Calls(start, end, kept, server_cpu_s=cpu_end - cpu)
