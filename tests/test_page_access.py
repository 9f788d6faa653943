"""The page in Chromium where the service asks for a key, and with several or changing models."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from tests.browser_support import Tab, serve_app
from tests.page_support import World, write_average
from tests.service_support import picture

SETTLED = "document.querySelectorAll('#answers > .card:not([aria-busy])').length"
NAMES = ("first", "second")


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, make_bundle: Callable[..., Path]
) -> Iterator[World]:
    """Two models behind a key."""
    folder = tmp_path_factory.mktemp("bundles")
    paths = [str(make_bundle(folder / name, name=name)) for name in NAMES]
    world = World(DEITLT_API_KEY="sesame", DEITLT_MODEL=os.pathsep.join(paths))
    with closing(world.backend), serve_app(world) as world.url:
        yield world


@pytest.fixture
def tab(opened: Tab, world: World) -> Tab:
    opened.resize(1280, 900)
    opened.open(world.url)
    opened.until("!document.querySelector('#access').hidden")
    return opened


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    files = [tmp_path / "one.png", tmp_path / "two.png"]
    for seed, file in enumerate(files):
        file.write_bytes(picture(seed))
    return files


def send_key(tab: Tab, key: str) -> None:
    tab.js(f"document.querySelector('#key').value = '{key}'")
    tab.js("document.querySelector('#access button').click()")


def test_a_key_is_asked_for_once_and_kept_nowhere(
    tab: Tab, world: World, pictures: list[Path]
) -> None:
    tab.pick("#files", pictures)
    tab.until(f"{SETTLED} === 2")
    assert tab.texts("#answers h3") == ["The service asks for a key"] * 2
    assert tab.text("#access-words") == ""
    send_key(tab, "wrong")
    tab.until("document.querySelector('#access-words').textContent")
    assert tab.text("#access-words") == "The service does not take this key."
    send_key(tab, "sesame")
    tab.until("document.querySelectorAll('.opinions').length === 2")
    assert tab.js("document.querySelector('#access').hidden")
    assert tab.text("#status") == "2 answered"
    assert tab.js("document.querySelector('#key').value") == ""
    kept = "[localStorage.length, sessionStorage.length, document.cookie, location.search]"
    assert tab.js(kept) == [0, 0, "", ""]
    tab.open(world.url)
    tab.until("!document.querySelector('#access').hidden")


def test_one_of_several_models_can_be_chosen(tab: Tab, world: World, pictures: list[Path]) -> None:
    send_key(tab, "sesame")
    tab.until("!document.querySelector('#which').hidden")
    version = world.bundle.version
    versions = {model.name: model.version for model in world.backend.models.all()}
    options = tab.texts("#choice option")
    assert options == [f"{name} {versions[name]}" for name in NAMES]
    assert tab.js("document.querySelector('#choice').value") == "0"
    tab.pick("#files", pictures)
    tab.until("document.querySelectorAll('.opinions').length === 2")
    assert f"first {version}" in tab.text("#model")
    world.queries.clear()
    tab.js(
        "(() => { const choice = document.querySelector('#choice'); choice.value = '1';"
        " choice.dispatchEvent(new Event('change')); })()"
    )
    tab.until("document.querySelector('#model').innerText.includes('second')")
    tab.until(f"{SETTLED} === 2")
    asked = [(query["model"], query["version"]) for query in world.queries]
    assert asked == [("second", versions["second"])] * 2
    assert tab.js("document.querySelector('#choice').value") == "1"


def test_a_model_without_experts_is_asked_for_none(
    opened: Tab, make_bundle: Callable[..., Path], tmp_path: Path, pictures: list[Path]
) -> None:
    bundle = write_average(make_bundle(tmp_path / "plain", name="plain"), tmp_path / "average")
    world = World(DEITLT_MODEL=str(bundle), DEITLT_VARIANT="average")
    with closing(world.backend), serve_app(world) as world.url:
        opened.open(world.url)
        opened.pick("#files", pictures)  # before the page knows the model
        opened.until(f"{SETTLED} === 2")
        assert opened.text("#status") == "2 answered"
        assert world.queries == [{"top_k": "5"}] * 2
        assert opened.texts(".opinions h4") == ["Best classes\nboth experts alike"] * 2
        assert not opened.js("document.querySelector('#who').checkVisibility()")
        assert opened.complaints == []


def test_a_chosen_model_is_followed_to_its_next_version(
    opened: Tab, make_bundle: Callable[..., Path], tmp_path: Path, pictures: list[Path]
) -> None:
    paths = [make_bundle(tmp_path / name, name=name) for name in NAMES]
    world = World(DEITLT_MODEL=os.pathsep.join(map(str, paths)))
    with closing(world.backend), serve_app(world) as world.url:
        opened.open(world.url)
        opened.until("!document.querySelector('#which').hidden")
        opened.js(
            "(() => { const choice = document.querySelector('#choice'); choice.value = '1';"
            " choice.dispatchEvent(new Event('change')); })()"
        )
        new = write_average(paths[1], tmp_path / "new")
        paths[1].rename(tmp_path / "old")
        new.rename(paths[1])
        (second,) = world.backend.models.refresh()
        opened.pick("#files", pictures)
        opened.until(f"{SETTLED} === 2")
        assert opened.text("#status") == "2 answered"
        assert f"second {second.version}" in opened.text("#model")
        asked = [(query["model"], query["version"]) for query in world.queries]
        assert asked[-2:] == [("second", second.version)] * 2


def test_a_proxy_may_put_the_pages_under_a_path(opened: Tab, pictures: list[Path]) -> None:
    world = World()

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            inside = scope["path"].startswith("/birds/")
            path = scope["path"].removeprefix("/birds") if inside else "/another/service"
            scope = {**scope, "path": path}
        await world(scope, receive, send)

    with closing(world.backend), serve_app(proxy) as url:
        opened.open(f"{url}/birds/")
        opened.pick("#files", pictures)
        opened.until(f"{SETTLED} === 2")
        assert opened.text("#status") == "2 answered"
        opened.js("document.querySelectorAll('nav a')[1].click()")
        opened.until("document.querySelector('.operation')")
        opened.js("document.querySelectorAll('nav a')[0].click()")
        opened.until("document.querySelector('#model dd')")
        assert opened.js("location.pathname") == "/birds/"
        assert opened.complaints == []
