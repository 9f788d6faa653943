"""The pages, driven in a real Chromium against the real routes; and their HTTP headers."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.responses import JSONResponse

from deitlt import __version__
from serving import pages
from serving.openapi import PATHS
from tests.browser_support import Tab, serve_app
from tests.bundle_support import DIGITS
from tests.page_support import World, busy
from tests.service_support import CLASSIFY, MAX_BYTES, PATIENCE_S, wide_picture

BROWSER_ACCEPT = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
REMOVE = "\N{MULTIPLICATION SIGN}"
EVIL_NAME = "<img src=x onerror=alert(1)>.png"
CARD = "#answers > .card"
SETTLED = "document.querySelectorAll('#answers > .card:not([aria-busy])').length"


@pytest.fixture(scope="module")
def served_world() -> Iterator[World]:
    world = World()
    with closing(world.backend), serve_app(world) as world.url:
        yield world


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Digits of the digits bundle as picture files."""
    folder = tmp_path_factory.mktemp("digits")
    with np.load(DIGITS / "golden.npz") as golden:
        images = golden["pixels"]
    files = [folder / f"digit {number}.png" for number in range(len(images))]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file)
    return files


def answers(tab: Tab, num: int) -> list[str]:
    """The text of all cards as soon as this many are settled."""
    tab.until(f"{SETTLED} === {num}")
    return tab.texts(CARD)


def asked(world: World, digit: Path, **query: str) -> Any:
    url = f"{world.url}{CLASSIFY}"
    given = {"experts": "true", **query}
    answer = httpx.post(url, params=given, content=digit.read_bytes(), timeout=PATIENCE_S)
    world.queries.clear()
    return answer.json()


def test_a_picked_picture_is_answered(tab: Tab, world: World, digits: Sequence[Path]) -> None:
    right = asked(world, digits[0])
    tab.pick("#files", digits[:1])
    (card,) = answers(tab, 1)
    label, index = right["label"], right["index"]
    assert tab.text(".verdict h3") == label
    assert tab.text(".chip").startswith(f"{right['group']} class")
    assert f"Training saw {world.bundle.train_counts[index]} image" in card
    assert "the classes have 5 to 117 each" in card
    assert ("agree" in card, "disagree" in card) == (True, not right["experts"]["agree"])
    for kind, scores in [
        ("both", right["top_k"]),
        *((kind, right["experts"][kind]) for kind in ("cls", "dist")),
    ]:
        rows = tab.texts(f".{kind} .score > span:first-child")
        assert rows == [score["label"] for score in scores]
        widths = tab.js(
            f"[...document.querySelectorAll('.{kind} .fill')].map((e) => parseFloat(e.style.width))"
        )
        assert widths == pytest.approx([100 * s["probability"] for s in scores], abs=0.01)
    assert tab.js("document.querySelectorAll('.counts .here').length") == 1
    assert world.queries == [{"experts": "true", "top_k": "5", "blend": "0.5"}]
    facts = tab.text("#model")
    assert f"{world.bundle.name} {world.bundle.version}" in facts
    assert "processor (CPU)" in facts
    assert tab.complaints == []


def test_dropped_pictures_each_have_an_answer_or_an_error(
    tab: Tab, digits: Sequence[Path], tmp_path: Path
) -> None:
    broken, empty, cut = (tmp_path / name for name in ("broken.png", "empty.png", "cut.png"))
    broken.write_bytes(b"junk")
    empty.write_bytes(b"")
    cut.write_bytes(digits[0].read_bytes()[:-60])
    wide, heavy, folder = (tmp_path / name for name in ("wide.png", "heavy.png", "folder"))
    wide.write_bytes(wide_picture())
    heavy.write_bytes(bytes(MAX_BYTES + 1))
    folder.mkdir()
    tab.drop([digits[0], broken, empty, cut, wide, heavy, folder, digits[1]], 600, 400)
    cards = answers(tab, 8)
    titles = tab.texts(f"{CARD} h3")
    assert "not a picture the service can read" in titles[1]
    assert "did not understand" in titles[2]
    assert "damaged" in titles[3]
    assert titles[4] == titles[5] == "This picture is too large"
    assert titles[6] == "This file cannot be read"
    assert all("unsupported_image · request " in card for card in cards[1:2])
    assert tab.text("#status") == "2 answered, 6 failed"
    # A browser notes every answer that is an error by itself.
    assert all("Failed to load resource" in text for text in tab.complaints)
    tab.js("document.querySelector('#clear').click()")
    assert tab.texts(CARD) == []


def test_the_slider_asks_again(tab: Tab, world: World, digits: Sequence[Path]) -> None:
    tab.pick("#files", digits[:2])
    answers(tab, 2)
    world.queries.clear()
    tab.js("document.querySelector('#blend').focus()")
    for _ in range(10):
        tab.press("ArrowLeft", 37)
    tab.until("document.querySelector('.both small')?.innerText === '0% CLS, 100% DIST'")
    answers(tab, 2)
    assert [query["blend"] for query in world.queries] == ["0", "0"]
    assert tab.text("#blend-words") == "only DIST"
    assert tab.js("document.querySelector('#blend').ariaValueText") == "only DIST"
    first, second = f"{CARD}:first-child .both", f"{CARD}:first-child .dist"
    assert tab.texts(f"{first} .share") == tab.texts(f"{second} .share")
    right = asked(world, digits[0], blend="0")
    assert tab.text(".verdict h3") == right["label"]
    tab.js("document.querySelector('#blend-reset').click()")
    tab.until("document.querySelector('.both small')?.innerText === '50% CLS, 50% DIST'")
    assert tab.complaints == []


def test_busy_is_tried_again(tab: Tab, world: World, digits: Sequence[Path]) -> None:
    world.instead[:] = [busy(429, "overloaded", {"Retry-After": "0.2"})] * 2
    tab.pick("#files", digits[:1])
    answers(tab, 1)
    assert len(world.queries) == 3
    assert tab.texts(".verdict h3")


def test_busy_for_long_is_said_and_can_be_tried_by_hand(
    tab: Tab, world: World, digits: Sequence[Path]
) -> None:
    world.instead[:] = [busy(503, "not_ready", {"Retry-After": "0.1"})] * 4
    tab.pick("#files", digits[:1])
    (card,) = answers(tab, 1)
    assert "The service is not ready\nThere is no room." in card.replace("\n\n", "\n")
    assert "not_ready · request id-7" in card
    tab.js("document.querySelector('.words button').click()")
    tab.until("document.querySelector('.verdict')")


def test_a_lost_network_is_said(tab: Tab, digits: Sequence[Path]) -> None:
    def network(*, offline: bool) -> None:
        limits = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        tab.call("Network.emulateNetworkConditions", offline=offline, **limits)

    network(offline=True)
    try:
        tab.pick("#files", digits[:1])
        (card,) = answers(tab, 1)
    finally:
        network(offline=False)
    assert "No connection to the service" in card
    tab.js("document.querySelector('.words button').click()")
    tab.until("document.querySelector('.verdict')")


def test_names_are_text_and_never_html(
    tab: Tab, world: World, digits: Sequence[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / EVIL_NAME.replace("/", "")
    file.write_bytes(digits[0].read_bytes())
    right = asked(world, file)
    evil = {**right, "label": EVIL_NAME}
    evil["top_k"] = [{**right["top_k"][0], "label": EVIL_NAME * 20}]
    world.instead[:] = [JSONResponse(evil)]
    tab.pick("#files", [file])
    (card,) = answers(tab, 1)
    assert card.count(EVIL_NAME) == 22
    assert tab.js("document.querySelectorAll('#answers img').length") == 1
    assert tab.js("document.documentElement.scrollWidth") <= 1280
    assert tab.complaints == []


def test_a_pasted_picture_is_answered(tab: Tab, digits: Sequence[Path]) -> None:
    data = list(digits[0].read_bytes())
    tab.js(
        f"""(() => {{
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array({data})], "image.png", {{ type: "image/png" }}));
          const paste = new ClipboardEvent("paste", {{ clipboardData: data, bubbles: true }});
          document.body.dispatchEvent(paste);
        }})()"""
    )
    (card,) = answers(tab, 1)
    assert card.startswith("image.png")
    assert tab.js("document.querySelector('.preview img').naturalWidth") > 0
    assert tab.complaints == []


@pytest.mark.parametrize("page", ["/", "/docs"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_small_screen_fits_and_can_be_read(
    tab: Tab, world: World, digits: Sequence[Path], tmp_path: Path, page: str, scheme: str
) -> None:
    tab.resize(360, 740, mobile=True)
    tab.prefer(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    tab.open(world.url + page)
    if page == "/":
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"junk")
        tab.pick("#files", [*digits[:2], broken])
        answers(tab, 3)
    else:
        tab.until("!document.querySelector('[aria-busy]')")
        tab.js("for (const each of document.querySelectorAll('details')) each.open = true")
    assert tab.js("document.documentElement.scrollWidth") == 360
    assert tab.hard_to_use() == []


def test_keys_reach_everything_and_show_where_they_are(tab: Tab, digits: Sequence[Path]) -> None:
    tab.pick("#files", digits[:1])
    answers(tab, 1)
    tab.js("document.activeElement.blur(), window.scrollTo(0, 0)")
    reached = []
    for _ in range(7):
        tab.press("Tab", 9)
        reached.append(tab.js("document.activeElement.id || document.activeElement.innerText"))
        lined = "getComputedStyle(document.activeElement.closest('label, :focus-visible'))"
        assert tab.js(f"{lined}.outlineStyle") == "solid", reached
    assert reached == ["Skip to the content", "Classify", "API", "files", "blend", "clear", REMOVE]


def test_the_documentation_lists_every_route(tab: Tab, world: World) -> None:
    tab.open(f"{world.url}/docs")
    tab.until("!document.querySelector('[aria-busy]')")
    assert tab.text("#title") == f"DeiT-LT {__version__}"
    listed = [text.replace("\n", " ") for text in tab.texts("#routes a")]
    paths = [(path, *each) for path, methods in PATHS.items() for each in methods.items()]
    assert listed == [f"{kind.upper()} {path} {about['summary']}" for path, kind, about in paths]
    tab.js("for (const each of document.querySelectorAll('details')) each.open = true")
    post = tab.text("#post-v1-classify")
    for words in ("number, 0 to 1", "// How rare the class is in training.", "a damaged image"):
        assert words in post
    assert tab.js("document.querySelectorAll('#post-v1-classify form').length") == 0
    assert tab.complaints == []


def test_the_documentation_tries_a_route(tab: Tab, world: World) -> None:
    tab.open(f"{world.url}/docs")
    tab.until("!document.querySelector('[aria-busy]')")
    form, version = "#get-v1-models-name-", world.bundle.version
    for name, value in (("name", "digits"), ("version", version)):
        tab.js(f"document.querySelector('{form} input[name={name}]').value = '{value}'")
    tab.js(f"document.querySelector('{form} button').click()")
    tab.until(f"document.querySelector('{form} [role=status] .status')")
    assert f"200 GET /v1/models/digits?version={version}" in (shown := tab.text(form))
    assert '"name": "digits"' in shown
    assert tab.complaints == []


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (BROWSER_ACCEPT, True),
        ("text/html", True),
        ("text/*", True),
        ("*/*", False),
        ("", False),
        ("application/json", False),
        ("application/json, text/html;q=0.9", False),
        ("text/html;q=0, */*", False),
        ("text/html;q=often", False),
    ],
)
def test_the_page_is_for_browsers_and_json_for_programs(
    world: World, accept: str, html: bool
) -> None:
    response = httpx.get(world.url, headers={"Accept": accept})
    kind = "text/html; charset=utf-8" if html else "application/json"
    assert response.headers["content-type"] == kind
    assert response.headers["vary"] == "Accept"


@pytest.mark.parametrize("path", ["/docs", "/page/base.css", "/page/docs.js", "/page/icon.svg"])
def test_pages_are_locked_down_and_kept_by_the_browser(world: World, path: str) -> None:
    response = httpx.get(world.url + path)
    assert response.status_code == 200
    policy = response.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers.get_list("cache-control") == ["no-cache"]
    known = {"If-None-Match": response.headers["etag"]}
    again = httpx.get(world.url + path, headers=known)
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/page/none.js", "/page/..%2Fpages.py", "/page/", "/page"])
def test_only_files_of_the_page_are_served(world: World, path: str) -> None:
    assert httpx.get(world.url + path).status_code == 404


def test_files_name_no_other_host_and_are_short() -> None:
    for file in pages.FOLDER.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, file.name
        assert len(text.splitlines()) <= 350, file.name
        assert "innerHTML" not in text, file.name
