"""Settings, and a real `bentoml serve` from start to shutdown."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from deitlt.bundle import default_bundle
from deitlt.classifier import Classifier
from deitlt.errors import UsageError
from serving.settings import Settings, misspelt
from tests.bundle_support import DIGITS
from tests.checkout_support import ROOT
from tests.serve_support import serve_command, serve_environ, serving
from tests.service_support import (
    CLASSIFY,
    LIMITS,
    MAX_BYTES,
    PATIENCE_S,
    as_files,
    error_of,
    picture,
    plain,
    wide_picture,
    without_envelope,
)


def test_settings_have_defaults_that_an_empty_variable_keeps() -> None:
    settings = Settings.from_environ({})
    assert settings == Settings.from_environ({"DEITLT_MODEL": "", "DEITLT_WORKERS": ""})
    assert settings.models == (default_bundle(),)
    assert settings.num_workers == 0
    assert (settings.variant, settings.reload_s, settings.api_key) == ("", 0, "")
    assert (settings.cors_origins, settings.access_log) == ((), False)
    assert (settings.triton, settings.triton_binary) == ("", True)
    several = {"DEITLT_MODEL": f"a{os.pathsep}b/c", "DEITLT_CORS_ORIGINS": "https://x, https://y"}
    settings = Settings.from_environ(several)
    assert settings.models == (Path("a"), Path("b/c"))
    assert settings.cors_origins == ("https://x", "https://y")
    assert (settings.max_bytes, settings.timeout_s, settings.device) == (20 * 2**20, 30, "auto")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DEITLT_DEVICE", "gpu"),
        *(("DEITLT_WORKERS", value) for value in ("-1", "two", "1.5")),
        ("DEITLT_QUEUE_SIZE", "-1"),
        ("DEITLT_MAX_BYTES", "20MB"),
        ("DEITLT_MAX_HELD_BYTES", str(40 * 2**20 - 1)),  # less than two bodies
        ("DEITLT_MAX_PIXELS", "178956971"),
        ("DEITLT_MAX_IMAGES", "0"),
        ("DEITLT_RELOAD_S", "-1"),
        ("DEITLT_DRAIN_S", "601"),
        ("DEITLT_ACCESS_LOG", "yes"),
        *(("DEITLT_TIMEOUT_S", value) for value in ("0", "nan", "inf", "301", "soon")),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} is '{value}'; it must be ") as caught:
        Settings.from_environ({name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["abc\n", "schl\u00fcssel", "k\udcff", " a"])
def test_a_key_that_no_client_can_send_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(UsageError, match=r"^DEITLT_API_KEY must be printable ASCII") as caught:
        Settings.from_environ({"DEITLT_API_KEY": key})
    assert str(caught.value).endswith("ASCII, without blanks at either end")


def test_a_misspelt_setting_is_told_of() -> None:
    environ = {
        **dict.fromkeys(LIMITS, "x"),
        "DEITLT_APIKEY": "secret",
        "DEITLT_NUM_WORKERS": "2",
        "DEITLT_ZZZZZZZZ": "",
        "PATH": "/bin",
        # Of Kubernetes, where a Service is named deitlt and another deitlt-triton.
        "DEITLT_SERVICE_HOST": "10.0.0.1",
        "DEITLT_SERVICE_PORT_HTTP": "80",
        "DEITLT_PORT": "tcp://10.0.0.1:80",
        "DEITLT_PORT_80_TCP_ADDR": "10.0.0.1",
        "DEITLT_TRITON_PORT": "tcp://10.0.0.2:8001",
    }
    lines = list(misspelt(environ))
    assert lines == [
        "DEITLT_APIKEY is set, but there is no such setting; did you mean DEITLT_API_KEY?",
        "DEITLT_NUM_WORKERS is set, but there is no such setting; did you mean DEITLT_WORKERS?",
        "DEITLT_ZZZZZZZZ is set, but there is no such setting",
    ]


def test_every_setting_has_a_variable_of_its_name() -> None:
    """What is told of is what is read: the README's table has each, and nothing else."""
    table = re.findall(r"^\| `(DEITLT_\w+)` \|", (ROOT / "README.md").read_text(), re.M)
    assert list(misspelt(dict.fromkeys(table, ""))) == []
    assert len(table) == len(fields(Settings))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[psutil.Process, int]]:
    """The supervisor and its port."""
    with serving(tmp_path_factory.mktemp("serve")) as (process, port):
        yield psutil.Process(process.pid), port


@pytest.fixture(scope="module")
def url(served: tuple[psutil.Process, int]) -> str:
    return f"http://127.0.0.1:{served[1]}"


def test_served_answers_equal_predict(url: str, classifier: Classifier) -> None:
    assert httpx.get(f"{url}/livez").status_code == 200
    data = picture(7, "JPEG")
    response = httpx.post(f"{url}{CLASSIFY}?experts=true", content=data)
    assert without_envelope(response.json()) == plain(classifier.predict([data], experts=True)[0])
    several = httpx.post(f"{url}{CLASSIFY}", files=as_files(data, b"junk"))
    assert ["error" in result for result in several.json()["results"]] == [False, True]


def test_served_errors_have_the_one_body(url: str) -> None:
    address = f"{url}{CLASSIFY}"
    error_of(httpx.post(address), 400, "bad_request")
    error_of(httpx.get(f"{url}/nothing"), 404, "not_found")
    error_of(httpx.get(address), 405, "method_not_allowed")
    error_of(httpx.post(address, content=wide_picture()), 413, "too_large")
    error_of(httpx.post(address, content=b"junk"), 415, "unsupported_image")
    error_of(httpx.post(address, content=picture()[:-200]), 422, "decode_failed")


def test_served_oversize_is_413_announced_or_chunked(url: str) -> None:
    body = bytes(MAX_BYTES + 1)
    error_of(httpx.post(f"{url}{CLASSIFY}", content=body), 413, "too_large")
    chunks = (body[i : i + 10_000] for i in range(0, len(body), 10_000))
    chunked = httpx.post(f"{url}{CLASSIFY}", content=chunks)
    assert "transfer-encoding" in chunked.request.headers
    error_of(chunked, 413, "too_large")


def test_served_index_is_json(url: str) -> None:
    response = httpx.get(url)
    assert response.headers["content-type"] == "application/json"
    assert "://" not in response.text


@pytest.mark.parametrize("wrong", ["setting", "bundle"])
def test_a_wrong_start_is_one_line_and_a_status(tmp_path: Path, wrong: str) -> None:
    bundle = shutil.copytree(DIGITS, tmp_path / "bundle")
    with (bundle / "model.onnx").open("ab") as model:
        model.write(b"!")
    settings, reason = {
        "setting": ({"DEITLT_WORKERS": "many"}, "DEITLT_WORKERS is 'many'"),
        "bundle": ({"DEITLT_MODEL": str(bundle)}, f"{bundle / 'model.onnx'}: changed since"),
    }[wrong]
    result = subprocess.run(
        serve_command(0),
        cwd=ROOT,
        env=serve_environ(tmp_path, **settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert result.returncode == 2
    (line,) = (result.stdout + result.stderr).splitlines()
    assert reason in line
