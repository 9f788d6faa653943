"""The wheel holds the library and nothing else, and asks for exactly one ONNX Runtime."""

import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

import deitlt
from deitlt.bundle import open_bundle

ROOT = Path(__file__).parents[1]
RUNTIMES = {"onnxruntime", "onnxruntime-gpu"}
# sys_platform, platform_machine, the runtime that there are wheels of.
MACHINES = [
    ("linux", "x86_64", "onnxruntime-gpu"),
    ("linux", "aarch64", "onnxruntime"),
    ("darwin", "arm64", "onnxruntime"),
    ("darwin", "x86_64", "onnxruntime"),
    ("win32", "AMD64", "onnxruntime-gpu"),
    ("win32", "ARM64", "onnxruntime"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "-w", str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        yield archive


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return table["project"]  # type: ignore[no-any-return]


def test_the_wheel_holds_the_library_only(wheel: zipfile.ZipFile) -> None:
    information = f"deitlt-{deitlt.__version__}.dist-info"
    assert {name.split("/")[0] for name in wheel.namelist()} == {"deitlt", information}


def test_the_wheel_holds_every_file_of_the_library(wheel: zipfile.ZipFile) -> None:
    expected = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "deitlt").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {"deitlt/py.typed", "deitlt/bundles/digits/model.onnx"} <= expected
    assert {name for name in wheel.namelist() if name.startswith("deitlt/")} == expected


def test_the_bundle_in_the_wheel_is_whole(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    assert open_bundle(tmp_path / "deitlt" / "bundles" / "digits").classes


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    information = f"deitlt-{deitlt.__version__}.dist-info"
    metadata = message_from_bytes(wheel.read(f"{information}/METADATA"))
    assert metadata["Version"] == deitlt.__version__
    assert metadata["License-Expression"] == "MIT"
    assert f"{information}/licenses/LICENSE" in wheel.namelist()
    assert "deitlt = deitlt.cli:main" in wheel.read(f"{information}/entry_points.txt").decode()


@pytest.mark.parametrize(("platform", "machine", "expected"), MACHINES)
def test_exactly_one_runtime_a_machine(
    platform: str, machine: str, expected: str, project: dict[str, Any]
) -> None:
    system = {"linux": "Linux", "darwin": "Darwin", "win32": "Windows"}[platform]
    environment = {
        **{key: str(value) for key, value in default_environment().items()},
        "sys_platform": platform,
        "platform_machine": machine,
        "platform_system": system,
        "os_name": "nt" if platform == "win32" else "posix",
    }
    requirements = [Requirement(text) for text in project["dependencies"]]
    chosen = [
        requirement.name
        for requirement in requirements
        if requirement.name in RUNTIMES
        and (requirement.marker is None or requirement.marker.evaluate(environment))
    ]
    assert chosen == [expected]


def test_the_library_asks_for_no_torch(project: dict[str, Any]) -> None:
    names = {Requirement(text).name for text in project["dependencies"]}
    assert names == {"numpy", "pillow", "tqdm", *RUNTIMES}


def test_all_means_every_extra(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    (everything,) = extras["all"]
    assert Requirement(everything).extras == set(extras) - {"all"}
