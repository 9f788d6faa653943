"""The ways that are compared: each goes round the same pictures for ever and counts as it goes.

Legend: `B` images, `S` image side.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset

from deitlt.batch.pipeline import predict_iter
from deitlt.batch.sources import Source
from deitlt.classifier import Classifier
from deitlt.prediction import Options
from deitlt.preprocess import Pixels, PreprocessSpec
from deitlt.runtimes import Runtime
from deitlt.student import DeiTLT, average_logits
from export.batch_benchmark.photos import decode_bare

# What has been finished since the last time, image by image or batch by batch.
Way = Callable[[], Iterator[int]]
# Pictures that a process of the bare decoder gets at a time.
CHUNK = 16
TOP_K = 5


def pipeline(classifier: Classifier, paths: Sequence[Path], workers: int) -> Way:
    """Ours: files in, predictions out."""

    def run() -> Iterator[int]:
        sources = (Source(path, path.name) for path in cycle(paths))
        results = predict_iter(classifier, sources, Options(TOP_K), num_workers=workers)
        with closing(results):
            for _ in results:
                yield 1

    return run


def bare_runtime(runtime: Runtime, pixels: Pixels, batch_size: int, threads: int) -> Way:
    """The runtime on arrays in memory, with nothing before or after it.

    Args:
        runtime: what is called.
        pixels: `(B, S, S, 3)`.
        batch_size: images of a call.
        threads: calls at once.
    """
    batches = [pixels[i : i + batch_size] for i in range(0, len(pixels), batch_size)]

    def run() -> Iterator[int]:
        with ThreadPoolExecutor(threads) as pool:
            waiting = deque(
                pool.submit(runtime.run, batch) for batch in islice(cycle(batches), 2 * threads)
            )
            try:
                for batch in cycle(batches):
                    yield len(waiting.popleft().result().logits)
                    waiting.append(pool.submit(runtime.run, batch))
            finally:
                pool.shutdown(cancel_futures=True)

    return run


def bare_pillow(paths: Sequence[Path], side: int, workers: int) -> Way:
    """Pillow in as many processes, which keep what they decode to themselves."""

    def run() -> Iterator[int]:
        context = multiprocessing.get_context("forkserver")
        chunks = [(paths[i : i + CHUNK], side) for i in range(0, len(paths), CHUNK)]
        with context.Pool(workers) as pool:
            first = islice(cycle(chunks), 3 * workers)
            waiting = deque(pool.apply_async(decode_bare, chunk) for chunk in first)
            for chunk in cycle(chunks):
                yield waiting.popleft().get()
                waiting.append(pool.apply_async(decode_bare, chunk))

    return run


def timm_inference(
    model: DeiTLT, spec: PreprocessSpec, paths: Sequence[Path], batch_size: int, workers: int
) -> Way:
    """What timm's inference.py does: its transform, a `DataLoader`, the model in PyTorch, top-k."""
    transform = create_transform(
        input_size=(3, spec.img_size, spec.img_size),
        interpolation="bicubic",
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop_pct,
    )

    def run() -> Iterator[int]:
        torch.set_num_threads(workers)
        while True:
            # A fresh one for each round of the pictures would start its processes again.
            files = _Files(list(islice(cycle(paths), 100_000)), transform)
            for images in DataLoader(files, batch_size=batch_size, num_workers=workers):
                with torch.inference_mode():
                    scores = average_logits(*model(images)).softmax(-1).topk(TOP_K)
                    scores.values.numpy(), scores.indices.numpy()
                yield len(images)

    return run


class _Files(Dataset[Any]):
    def __init__(self, paths: Sequence[Path], transform: Any) -> None:
        self._paths, self._transform = paths, transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Any:
        return self._transform(Image.open(self._paths[index]).convert("RGB"))


def tree_cpu_s() -> float:
    """Processor time of this process and all that it has started, seconds."""
    own, tick = os.times(), os.sysconf("SC_CLK_TCK")
    total = own.user + own.system + own.children_user + own.children_system
    for pid in descendants():
        fields = _stat(pid)
        total += sum(int(field) for field in fields[11:15]) / tick if fields else 0.0
    return total


def descendants(pid: int | None = None) -> list[int]:
    """Living processes that a process, by default this one, has started, and theirs."""
    pid = os.getpid() if pid is None else pid
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in file.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
