"""Scores that are no numbers, as of float16 that overflows: an error of their image alone."""

import json
from collections.abc import Callable
from http import HTTPStatus

import numpy as np
import pytest
from starlette.testclient import TestClient

from deitlt.classifier import Classifier
from deitlt.errors import NotFinite
from deitlt.prediction import Options, Prediction, Timing
from deitlt.preprocess import Pixels
from deitlt.runtimes import OnnxRuntime, Outputs
from tests.service_support import CLASSIFY, as_files, error_of

Png = Callable[[int], bytes]
BAD = 2  # the seed of the picture on which it overflows


@pytest.fixture(params=[np.nan, np.inf, -np.inf])
def overflowing(
    request: pytest.FixtureRequest,
    classifier: Classifier,
    png: Png,
    monkeypatch: pytest.MonkeyPatch,
) -> Classifier:
    bad, run = classifier.load_pixels(png(BAD)), OnnxRuntime.run

    def overflow(runtime: OnnxRuntime, pixels: Pixels) -> Outputs:
        outputs = run(runtime, pixels)
        for row in np.flatnonzero((pixels == bad).all(axis=(1, 2, 3))):
            for head in outputs.heads().values():
                head[row, 1] = request.param
        return outputs

    monkeypatch.setattr(OnnxRuntime, "run", overflow)
    return classifier


def test_neighbours_have_their_answers(overflowing: Classifier, png: Png) -> None:
    images = [png(seed) for seed in range(4)]
    options = Options(experts=True, blend=0.3)
    wanted = [NotFinite if seed == BAD else Prediction for seed in range(4)]
    for found in (
        overflowing.predict_each(images, options),
        overflowing.predict_together(images, [options] * 4, [Timing() for _ in images]),
        [*overflowing.predict_iter(images, options, num_workers=0)],
    ):
        assert [*map(type, found)] == wanted
    with pytest.raises(NotFinite, match="not finite"):
        overflowing.predict_one(images[BAD])
    with pytest.raises(NotFinite, match="not finite"):
        overflowing.predict(images)


def test_the_service_says_so(overflowing: Classifier, png: Png, client: TestClient) -> None:
    alone = client.post(CLASSIFY, content=png(BAD))
    error_of(alone, HTTPStatus.UNPROCESSABLE_ENTITY, "not_finite")
    first, second = client.post(CLASSIFY, files=as_files(png(0), png(BAD))).json()["results"]
    assert first["label"]
    assert second["error"]["code"] == "not_finite"
    pixels = overflowing.load_pixels(png(BAD))
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, *pixels.shape]}
    body = json.dumps({"inputs": [{**tensor, "data": pixels.ravel().tolist()}]})
    answer = client.post("/v2/models/digits/infer", content=body)
    assert answer.status_code == HTTPStatus.UNPROCESSABLE_ENTITY
    assert "not_finite" in answer.json()["error"]
