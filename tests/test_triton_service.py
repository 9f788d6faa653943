"""The service and the batch command with a real Triton server behind them."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from deitlt import cli
from deitlt.bundle import open_bundle
from deitlt.classifier import Classifier
from serving.backend import Backend
from serving.frontend import Frontend
from serving.settings import Settings
from tests.bundle_support import DIGITS
from tests.service_support import CLASSIFY, LIMITS, error_of, picture
from tests.triton_remote_support import Site, make_site
from tests.triton_support import Environment, Protocol


@pytest.fixture(scope="module")
def site(
    triton_environment: Environment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    bundle = open_bundle(DIGITS)
    site = make_site(tmp_path_factory.mktemp("service"), bundle, triton_environment)
    with site.serve():
        yield site


@pytest.mark.parametrize(
    ("protocol", "binary"), [("grpc", "true"), ("http", "true"), ("http", "false")]
)
def test_the_service_answers_as_the_library(
    site: Site, classifier: Classifier, protocol: Protocol, binary: str
) -> None:
    settings = {"DEITLT_TRITON": site.url(protocol), "DEITLT_TRITON_BINARY": binary}
    backend = Backend.start(Settings.from_environ({**LIMITS, **settings}))
    frontend = Frontend()
    frontend.attach(backend)
    try:
        assert backend.ready()
        with TestClient(frontend) as client:
            answer = client.post(f"{CLASSIFY}?experts=true", content=picture()).json()
            (wanted,) = classifier.predict([picture()], experts=True)
            assert answer["label"] == wanted.label
            assert answer["probability"] == pytest.approx(wanted.probability, abs=1e-5)
            assert wanted.experts is not None
            assert answer["experts"]["dist"][0]["label"] == wanted.experts.dist[0].label
            (model,) = client.get("/v1/models").json()["models"]
            assert (model["variant"], model["provider"]) == (None, f"Triton {protocol}")
            error_of(client.post(CLASSIFY, content=b"bad"), 415, "unsupported_image")
    finally:
        backend.close()


def test_batch_prediction_through_triton(
    site: Site, classifier: Classifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(6):
        (photos / f"{number}.png").write_bytes(picture(number))
    output = tmp_path / "out.csv"
    command = ["predict", str(photos), "--output", str(output), "--triton", site.url("grpc")]
    command += ["--model", str(classifier.bundle.path)]
    assert cli.main(command) == 0
    assert "Triton grpc" in capsys.readouterr().err
    with output.open(newline="") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    assert labels == [p.label for p in classifier.predict([picture(n) for n in range(6)])]


def test_a_server_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    command = ["predict", str(tmp_path), "--output", str(tmp_path / "out.csv")]
    assert cli.main([*command, "--triton", "grpc://127.0.0.1:9"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "127.0.0.1:9" in error
    assert cli.main([*command, "--triton", "127.0.0.1:9"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
