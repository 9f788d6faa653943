"""The wheel holds the library and nothing else, asks for one ONNX Runtime, and needs no torch."""

import csv
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

import deitlt
from deitlt.bundle import open_bundle
from deitlt.classifier import load

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


@pytest.fixture(scope="session")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built once; the build and the installation below need the package index."""
    folder = tmp_path_factory.mktemp("wheel")
    succeed(sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "-w", folder)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="session")
def wheel(wheel_file: Path) -> Iterator[zipfile.ZipFile]:
    """The open wheel."""
    with zipfile.ZipFile(wheel_file) as archive:
        yield archive


@pytest.fixture(scope="session")
def programs(wheel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the programs of a fresh environment: the wheel, what it asks for, nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    succeed(sys.executable, "-m", "venv", "--without-pip", folder)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python")]
    succeed(*pip, "install", "--no-compile", wheel_file)
    return programs


def succeed(*command: str | Path, cwd: Path | None = None) -> str:
    """Standard output of a program that must end with status 0, whatever this Python is told."""
    result = run(*command, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environ = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=600
    )


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
    assert {"deitlt/py.typed", "deitlt/bundles/cifar10/model.onnx"} <= expected
    assert {name for name in wheel.namelist() if name.startswith("deitlt/")} == expected


def test_the_bundle_in_the_wheel_is_whole(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    assert open_bundle(tmp_path / "deitlt" / "bundles" / "cifar10").classes


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    information = f"deitlt-{deitlt.__version__}.dist-info"
    metadata = message_from_bytes(wheel.read(f"{information}/METADATA"))
    assert metadata["Version"] == deitlt.__version__
    assert metadata["License-Expression"] == "MIT"
    assert f"{information}/licenses/LICENSE" in wheel.namelist()
    assert "deitlt = deitlt.cli:main" in wheel.read(f"{information}/entry_points.txt").decode()


def test_a_fresh_install_predicts_without_torch(
    programs: Path, tmp_path: Path, png: Callable[[int], bytes]
) -> None:
    (tmp_path / "photos").mkdir()
    images = [png(seed) for seed in range(7)]
    for number, image in enumerate(images):
        (tmp_path / "photos" / f"{number}.png").write_bytes(image)
    python = programs / "python"
    where = succeed(python, "-c", "import deitlt; print(deitlt.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(programs.parent)
    for missing in ("torch", "timm", "bentoml", "serving", "training", "export"):
        result = run(python, "-c", f"import {missing}", cwd=tmp_path)
        assert f"No module named '{missing}'" in result.stderr
    succeed(programs / "deitlt", "predict", "photos", "--output", "rows.csv", cwd=tmp_path)
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["filename"] for row in rows] == [f"{number}.png" for number in range(7)]
    packaged = load(device="cpu", num_threads=1)
    for row, expected in zip(rows, packaged.predict(images), strict=True):
        assert (row["label"], row["error"]) == (expected.label, "")
        assert float(row["prob"]) == pytest.approx(expected.probability, abs=1e-3)


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
