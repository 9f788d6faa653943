"""The rules of the layout as tests; each checker is also shown a violation it must find."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkout_support import BLOCKER, ROOT

PROGRAMS = ("training", "export", "serving")
ROOMS = ("deitlt", *PROGRAMS)
# A serving machine has none of these, or should not have to load them to classify an image.
HEAVY = (
    *("torch", "torchvision", "timm", "onnxruntime", "bentoml", "tritonclient"),
    *("fsspec", "matplotlib", "pandas", "pyarrow", "ray"),
)
TORCH_MODULES = {"deitlt.student", "deitlt.torch_runtime", "deitlt.weights"}
MAX_LINES = 350
TAKEN_NAMES = {
    *("fsspec", "pyarrow"),
    *("bentoml", "httptools", "httpx", "mypy", "numpy", "onnx", "onnxruntime", "onnxscript", "pil"),
    *("pillow", "pytest", "ray", "ruff", "safetensors", "scipy", "sklearn", "starlette", "timm"),
    *("torch", "torchvision", "tqdm", "triton", "tritonclient", "tyro", "uvicorn", "uvloop"),
}
EMPTY_NAMES = {"common", "helper", "helpers", "misc", "util", "utils"}


def sources(root: Path, *rooms: str) -> Iterator[Path]:
    for room in rooms:
        yield from sorted((root / room).rglob("*.py"))


def module_name(root: Path, file: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(file: Path) -> set[str]:
    """Top-level names of everything a file imports anywhere in it, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


def wrong_imports(root: Path) -> list[str]:
    """Files of a room that import a room they must not know."""
    found = []
    for room in ROOMS:
        forbidden = set(PROGRAMS) - {room}
        for file in sources(root, room):
            found += [f"{file.name} imports {name}" for name in imported(file) & forbidden]
    return found


def torch_modules(root: Path, room: str) -> set[str]:
    """Modules of a room that import torch or timm, also inside functions."""
    banned = {"torch", "torchvision", "timm"}
    files = sources(root, room)
    return {module_name(root, file) for file in files if imported(file) & banned}


def wrong_names(root: Path) -> list[str]:
    """Modules and folders that hide a dependency or say nothing."""
    bad = TAKEN_NAMES | EMPTY_NAMES
    names = {
        part.lower()
        for file in sources(root, *ROOMS)
        for part in file.relative_to(root).with_suffix("").parts
    }
    return sorted(names & bad)


def long_files(root: Path) -> list[str]:
    files = sources(root, *ROOMS, "tests")
    return [f.name for f in files if len(f.read_text(encoding="utf-8").splitlines()) > MAX_LINES]


def imports_of_tests(root: Path) -> list[str]:
    """Lines that take something from a module of tests; what tests share is in a `*_support`."""
    wanted = re.compile(r"\s*(from|import) tests\.test_")
    return [
        f"{file.name}: {line}"
        for file in sources(root, "tests")
        for line in file.read_text(encoding="utf-8").splitlines()
        if wanted.match(line)
    ]


def import_without_heavy(modules: list[str]) -> str:
    """What stops these modules from being imported in a fresh interpreter; empty if nothing."""
    script = BLOCKER.format(heavy=HEAVY, modules=modules)
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode == 0) == (result.stderr == ""), result.stderr
    return result.stderr


def plant(root: Path, file: str, text: str = "") -> Path:
    """A tree of all rooms with one file in it."""
    for room in (*ROOMS, "tests"):
        (root / room).mkdir(exist_ok=True)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text, encoding="utf-8")
    return root


def test_the_library_imports_without_torch() -> None:
    names = {module_name(ROOT, file) for file in sources(ROOT, "deitlt")} - TORCH_MODULES
    assert len(names) > 10
    assert import_without_heavy(["deitlt", *sorted(names)]) == ""


@pytest.mark.parametrize("module", sorted(TORCH_MODULES))
def test_the_blocker_stops_a_module_that_needs_torch(module: str) -> None:
    assert import_without_heavy(["deitlt", module]).startswith(f"{module}: ")


def test_only_three_modules_of_the_library_know_torch() -> None:
    assert torch_modules(ROOT, "deitlt") == TORCH_MODULES


def test_the_service_knows_no_torch() -> None:
    assert torch_modules(ROOT, "serving") == set()


@pytest.mark.parametrize("line", ["import timm", "def f():\n    from torch import nn"])
def test_a_planted_torch_import_is_found(line: str, tmp_path: Path) -> None:
    root = plant(tmp_path, "deitlt/sub/new.py", line)
    assert torch_modules(root, "deitlt") == {"deitlt.sub.new"}


def test_rooms_know_only_the_library() -> None:
    assert wrong_imports(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("training/a.py", "from export import fuse"),
        ("export/a.py", "import training.data"),
        ("serving/sub/a.py", "def f():\n    import training"),
        ("deitlt/a.py", "import serving.service as s"),
        ("deitlt/a.py", "from training.teachers.sam import SAM"),
    ],
)
def test_a_planted_import_is_found(file: str, line: str, tmp_path: Path) -> None:
    assert len(wrong_imports(plant(tmp_path, file, line))) == 1


def test_a_room_may_import_itself_and_the_library(tmp_path: Path) -> None:
    line = "import deitlt.bundle, export.fuse, torch"
    assert wrong_imports(plant(tmp_path, "export/a.py", line)) == []


def test_a_planted_relative_import_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="relative"):
        wrong_imports(plant(tmp_path, "deitlt/a.py", "from . import bundle"))


def test_no_module_hides_a_dependency_or_says_nothing() -> None:
    assert wrong_names(ROOT) == []


@pytest.mark.parametrize("file", ["export/onnx.py", "serving/triton.py", "training/Utils/a.py"])
def test_a_planted_name_is_found(file: str, tmp_path: Path) -> None:
    assert len(wrong_names(plant(tmp_path, file))) == 1


def test_a_file_is_read_in_one_sitting() -> None:
    assert long_files(ROOT) == []


def test_a_planted_long_file_is_found(tmp_path: Path) -> None:
    assert long_files(plant(tmp_path, "tests/test_a.py", "x = 1\n" * MAX_LINES)) == []
    assert long_files(plant(tmp_path, "tests/test_a.py", "x = 1\n" * (MAX_LINES + 1))) != []


def test_programs_and_tests_are_no_traps_for_imports() -> None:
    # tests/training/__init__.py would stand in for the real training package.
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert not list(ROOT.glob("tests/*/**/*.py"))


def test_tests_take_nothing_from_other_tests() -> None:
    assert imports_of_tests(ROOT) == []


@pytest.mark.parametrize(
    "line", ["from tests.test_b import c", "def f():\n    import tests.test_b"]
)
def test_a_planted_import_of_tests_is_found(line: str, tmp_path: Path) -> None:
    assert len(imports_of_tests(plant(tmp_path, "tests/test_a.py", line))) == 1


def test_the_tests_of_a_file_share_a_process(request: pytest.FixtureRequest) -> None:
    # Else each process makes what a file's tests share, unseen: twice the time and the disk space.
    grouped = request.config.getoption("loadgroup", default=False)  # pytest-xdist's, of a process
    assert not grouped or request.node.nodeid.endswith(f"@{Path(__file__).name}")
