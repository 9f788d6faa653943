"""A Bento: what `bentoml build` packs, and a real server of one that carries chosen bundles."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement

from deitlt.bundle import default_bundle
from deitlt.classifier import Classifier
from serving import to_bento
from serving.settings import Settings
from tests.bundle_support import DIGITS
from tests.serve_support import serving
from tests.service_support import CLASSIFY, PATIENCE_S, picture, plain, without_envelope

CHECKOUT = Path(__file__).resolve().parents[1]
NAME = "long_tail_classifier"
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store of Bentos, in short words: sockets have short names."""
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path))
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "True")
    return tmp_path


def sources(home: Path) -> Path:
    """What the only Bento of a store packs."""
    (latest,) = (home / "bentos" / NAME).glob("*/src")
    return latest


def test_bentoml_build_packs_the_service_and_nothing_else(home: Path) -> None:
    command = [sys.executable, "-m", "bentoml", "build"]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, timeout=120)
    packed = {file.relative_to(sources(home)).as_posix() for file in sources(home).rglob("*.*")}
    folders = {name.split("/")[0] for name in packed if "/" in name}
    assert folders == {"deitlt", "serving"}
    assert {"deitlt/bundles/cifar10/model.onnx", "serving/page/index.html"} <= packed
    assert not [name for name in packed if "__pycache__" in name or name.startswith("serving/de")]
    assert not (sources(home) / "serving" / "bundles").exists()


def test_a_bento_asks_for_what_the_service_needs() -> None:
    extra = [Requirement(text) for text in PROJECT["project"]["optional-dependencies"]["serving"]]
    packages = map(Requirement, PROJECT["tool"]["bentoml"]["build"]["python"]["packages"])
    # BentoML itself is added by BentoML, in the version that built it.
    assert set(packages) == {requirement for requirement in extra if requirement.name != "bentoml"}


def test_a_bento_serves_the_bundles_it_was_built_with(
    home: Path,
    make_bundle: Callable[..., Path],
    classifier: Classifier,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundles = [make_bundle(home / name, name=name) for name in ("zebra", "ant")]
    monkeypatch.setenv("DEITLT_MODEL", os.pathsep.join(map(str, bundles)))
    assert to_bento.main([]) == 0
    with serving(home, target=f"{NAME}:latest", cwd=home, DEITLT_MODEL="") as (_, port):
        url = f"http://127.0.0.1:{port}"
        models = httpx.get(f"{url}/v1/models", timeout=PATIENCE_S).json()["models"]
        assert [model["name"] for model in models] == ["zebra", "ant"]
        answer = httpx.post(url + CLASSIFY, content=picture(), timeout=PATIENCE_S).json()
    assert answer["model"]["name"] == "zebra"
    assert without_envelope(answer) == plain(classifier.predict([picture()])[0])
    # Or another one, named from where the server was started: its workers run in the Bento.
    with serving(home, target=f"{NAME}:latest", cwd=home, DEITLT_MODEL="ant") as (_, port):
        index = httpx.get(f"http://127.0.0.1:{port}", timeout=PATIENCE_S).json()
    assert index["model"]["name"] == "ant"


def test_a_bundle_that_cannot_be_used_is_not_packed(
    bundle_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with (bundle_path / "model.onnx").open("ab") as model:
        model.write(b"!")
    for settings, reason in (
        ({"DEITLT_MODEL": str(bundle_path)}, "changed since"),
        ({"DEITLT_MODEL": str(DIGITS), "DEITLT_VARIANT": "int8"}, "no variant 'int8'"),
    ):
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            assert to_bento.main([]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("serving.to_bento: ")
        assert reason in line


def test_a_checkout_serves_the_packaged_bundle() -> None:
    assert Settings.from_environ({}).models == (default_bundle(),)
