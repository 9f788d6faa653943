"""Batch prediction on Ray gives what a run on this machine gives."""

import builtins
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deitlt.batch import ray_engine
from deitlt.batch.pipeline import predict_iter
from deitlt.batch.ray_engine import predict_with_ray
from deitlt.classifier import Classifier
from deitlt.errors import BundleError, ImageError, RuntimeUnavailable, UsageError
from deitlt.prediction import Options
from tests.pipeline_support import Given, Gone, Killer

Png = Callable[[int], bytes]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two cores of this machine as a cluster."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def comparable(results: list[Any]) -> list[Any]:
    return [
        (source, (type(result), str(result)) if isinstance(result, ImageError) else result)
        for source, result in results
    ]


def test_a_run_on_ray_equals_one_here(
    cluster: None,
    png: Png,
    classifier: Classifier,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In several tasks, with bad images, and from within a batch where another run has stopped."""
    monkeypatch.setattr("deitlt.batch.ray_engine.TASK", 100)
    sources: list[Any] = [Given(png(seed % 40), str(seed)) for seed in range(600)]
    sources[7], sources[300], sources[301] = Given(b""), Gone(), Killer(png(0))
    options = Options(top_k=3, experts=True, logits=True)
    here = list(predict_iter(classifier, sources, options, batch_size=3, first=101))
    there = predict_with_ray(
        classifier.bundle.path, iter(sources), options, device="cpu", batch_size=3, first=101
    )
    assert comparable(list(there)) == comparable(here)
    assert sum(isinstance(result, ImageError) for _, result in here) == 3
    with pytest.raises(BundleError, match="not a bundle") as caught:
        list(predict_with_ray(tmp_path, sources, device="cpu"))
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeUnavailable, match="no GPU"):
        predict_with_ray(None, sources, device="cuda")


def test_the_driver_holds_no_more_images_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "TASK_BYTES", 10_000)
    monkeypatch.setattr(ray_engine, "SET_BYTES", 30_000)
    tasks: list[tuple[int, int]] = []

    def classify(_: Any, found: list[tuple[int, list[Any]]], *__: Any) -> Iterator[Any]:
        for first, part in found:
            tasks.append((first, len(part)))
            yield from ((source, None) for source in part)

    monkeypatch.setattr(ray_engine, "_classify", classify)
    taken = 0

    def images() -> Iterator[Given]:
        nonlocal taken
        for taken in range(1, 501):
            yield Given(bytes(1000), str(taken))

    stream = ray_engine._stream(None, images(), {"batch_size": 4}, 2, False, 1)
    assert next(stream)[0].read() == bytes(1000)
    assert taken < 50
    assert len(list(stream)) == 499
    assert [first for first, _ in tasks] == [1, *(first + size for first, size in tasks[:-1])]
    assert all((first + size) % 4 == 0 for first, size in tasks[:-1])


@pytest.mark.parametrize("wrong", [{"num_workers": 0}, {"batch_size": 0}])
def test_wrong_numbers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        predict_with_ray(None, [], **wrong)  # type: ignore[arg-type]


def test_without_ray_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] == "ray":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'deitlt\[ray\]'") as caught:
        predict_with_ray(None, [])
    assert "\n" not in str(caught.value)
