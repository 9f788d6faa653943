"""What several test files share: a bundle to damage, a classifier, pictures and labelled trees."""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from deitlt.bundle import MANIFEST, write_bundle
from deitlt.classifier import Classifier, load
from tests.bundle_support import DIGITS

if TYPE_CHECKING:
    import httpx
    from starlette.testclient import TestClient
    from tritonclient.http import (  # type: ignore[import-untyped]
        InferenceServerClient as TritonClient,
    )

    from tests.browser_support import Tab
    from tests.kserve_support import Server
    from tests.page_support import World
    from tests.predict_support import BreakOff
    from tests.triton_support import Environment

pytest.register_assert_rewrite("tests.export_support", "tests.service_support")

# Made once a process and costly: the files that use one of them run in the same process.
COSTLY = ("triton_environment", "browser_python", "fitted_run")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests must share a process (`--dist loadgroup`): a file's, and COSTLY's."""
    used: dict[Path, set[str]] = {}
    for item in items:
        used.setdefault(item.path, set()).update(getattr(item, "fixturenames", ()))
    for item in items:
        group = next((name for name in COSTLY if name in used[item.path]), item.path.name)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    """Leaves PyTorch's number of threads as it was: sums in another order differ in their bits."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    yield
    if torch and torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture
def bundle_path(tmp_path: Path) -> Path:
    """A copy of the digits bundle that a test may damage."""
    return shutil.copytree(DIGITS, tmp_path / "bundle")


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., Path]:
    """Writes the digits bundle under another name: `make_bundle(path, name="a")`."""

    def make(path: Path, *, name: str) -> Path:
        source = DIGITS
        manifest = json.loads((source / MANIFEST).read_text(encoding="utf-8"))

        def fill(folder: Path) -> dict[str, Any]:
            for file in manifest["files"]:
                shutil.copy(source / file, folder)
            kept = {"schema_version", "files", "sha256"}
            return {**{k: v for k, v in manifest.items() if k not in kept}, "name": name}

        return write_bundle(path, fill).path

    return make


@pytest.fixture(scope="session")
def explaining_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle `digits` with the variant explain; tests must not change it."""
    from tests.export_support import write_explaining  # loads torch

    return write_explaining(tmp_path_factory.mktemp("explaining") / "digits")


@pytest.fixture(scope="session")
def classifier() -> Classifier:
    """The digits bundle on one CPU thread, so that its answers repeat to the last bit."""
    return load(DIGITS, device="cpu", num_threads=1)


@pytest.fixture(scope="session")
def pixels() -> Callable[..., Image.Image]:
    """Makes a picture of blurred noise: `pixels(width, height, seed=0, mode="RGB")`."""

    def make(width: int = 24, height: int = 20, seed: int = 0, mode: str = "RGB") -> Image.Image:
        generator = np.random.default_rng(seed)
        noise = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        return smooth.convert(mode)

    return make


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """Makes the bytes of an image file: `encode(image, "PNG", **save_options)`."""

    def make(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def png(pixels: Callable[..., Image.Image], encode: Callable[..., bytes]) -> Callable[[int], bytes]:
    """Makes the bytes of a PNG, another for each seed."""
    return lambda seed: encode(pixels(seed=seed))


@pytest.fixture(scope="session")
def class_tree(png: Callable[[int], bytes]) -> Callable[[Path, Mapping[str, int]], Path]:
    """Makes `root/<class>/<n>.png` for each class and number of images."""

    def make(root: Path, counts: Mapping[str, int]) -> Path:
        for name, count in counts.items():
            (root / name).mkdir(parents=True)
            for number in range(count):
                (root / name / f"{number}.png").write_bytes(png(number))
        return root

    return make


@pytest.fixture
def breaks_off(monkeypatch: pytest.MonkeyPatch) -> "BreakOff":
    """Has `deitlt predict` use a classifier that costs nothing, and end after so many images."""
    from deitlt.batch.pipeline import predict_iter
    from tests.predict_support import Ended, hash_classifier

    classifier = hash_classifier()
    monkeypatch.setattr("deitlt.commands.predict.open_model", lambda arguments, bundle: classifier)

    def after(count: int) -> None:
        def broken(*arguments: Any, **named: Any) -> Iterator[object]:
            for number, item in enumerate(predict_iter(*arguments, **named)):
                if number == count:
                    raise Ended
                yield item

        monkeypatch.setattr("deitlt.commands.predict.predict_iter", broken)

    return after


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits as PNG files, 1,300 to train on and 440 to test on."""
    from training.digits import write_digits

    folder = tmp_path_factory.mktemp("digits") / "digits"
    write_digits(folder)
    return folder


@pytest.fixture(scope="session")
def fitted_run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a student that reads the digits."""
    from tests.export_support import fitted_student, save_student  # loads torch

    return save_student(tmp_path_factory.mktemp("fitted") / "run", *fitted_student(digits))


@pytest.fixture(scope="session")
def whole_bundle(fitted_run: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of that student with every variant in it; tests must not change it."""
    from export.variants import OPTIONAL
    from tests.export_support import export

    bundle = tmp_path_factory.mktemp("whole") / "digits-bundle"
    assert export(fitted_run, bundle, digits, "--variants", *OPTIONAL) == 0
    return bundle


@pytest.fixture(scope="session")
def triton_environment(tmp_path_factory: pytest.TempPathFactory) -> "Environment":
    """A virtual environment with a real Triton server in it."""
    from tests.triton_support import make_environment  # needs tritonclient

    return make_environment(tmp_path_factory.mktemp("triton") / "environment")


@pytest.fixture(scope="module")
def client() -> Iterator["TestClient"]:
    """The HTTP service in process, with the limits of `service_support`."""
    from tests.service_support import in_process  # loads BentoML, which most tests do without

    with in_process() as client:
        yield client


@pytest.fixture(scope="module")
def kserve() -> Iterator["Server"]:
    """The HTTP service behind a real socket, for clients of the Open Inference Protocol."""
    from tests.kserve_support import Server  # needs tritonclient

    with Server() as server:
        yield server


@pytest.fixture(scope="module")
def triton(kserve: "Server") -> Iterator["TritonClient"]:
    """NVIDIA's client of that service."""
    from tritonclient.http import InferenceServerClient

    with InferenceServerClient(kserve.address) as client:
        yield client


@pytest.fixture(scope="module")
def http(kserve: "Server") -> Iterator["httpx.Client"]:
    """A plain client of that service."""
    import httpx

    with httpx.Client(base_url=f"http://{kserve.address}", timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def browser_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment with Chromium in it."""
    from tests.browser_support import install_browser  # needs httpx-ws

    ready = os.environ.get("TEST_BROWSER_PYTHON")  # saves whoever works on a page the installation
    return Path(ready) if ready else install_browser(tmp_path_factory.mktemp("browser") / "venv")


@pytest.fixture(scope="module")
def opened(browser_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Tab"]:
    """A page of a running Chromium."""
    from tests.browser_support import browse

    with browse(browser_python, tmp_path_factory.mktemp("browsing")) as tab:
        yield tab


@pytest.fixture
def world(served_world: "World") -> "World":
    """What the pages of a file ask, its `served_world`, with nothing asked so far."""
    served_world.queries.clear()
    served_world.instead.clear()
    return served_world


@pytest.fixture
def tab(opened: "Tab", world: "World") -> Iterator["Tab"]:
    """Its page in a window of a desktop; at the end nothing has left this machine."""
    opened.resize(1280, 900)
    opened.prefer(prefers_color_scheme="light", prefers_reduced_motion="reduce")
    opened.open(world.url)
    opened.until("document.querySelector('#model dd')")
    yield opened
    opened.js("0")  # takes in what was reported until now
    own = (world.url, f"blob:{world.url}")
    assert [url for url in opened.requests if not url.startswith(own)] == []
