"""The page shows where each expert looked, in Chromium against the real `/v1/explain`."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.responses import JSONResponse

from tests.browser_support import Tab, serve_app
from tests.bundle_support import DIGITS
from tests.page_support import World, busy
from tests.service_support import CLASSIFY, EXPLAIN, PATIENCE_S, picture

ASK = "#answers > .card .looks > button"
DRAWN = "document.querySelectorAll('.maps canvas').length"
# Of each drawing: the colour in the middle of every ninth of the square in it, rows from the top,
# and one left of the square.
COLOURS = """[...document.querySelectorAll('.maps canvas')].map((canvas) => {
  const at = (column, row) => [...canvas.getContext("2d").getImageData(
    Math.round(canvas.width / 2 + canvas.height * (column - 1) / 3),
    Math.round(canvas.height * (row + 0.5) / 3), 1, 1).data];
  return [...Array.from({ length: 9 }, (_, i) => at(i % 3, Math.floor(i / 3))), at(-1, 1)];
})"""


@pytest.fixture(scope="module")
def served_world(explaining_bundle: Path) -> Iterator[World]:
    world = World(DEITLT_MODEL=str(explaining_bundle), DEITLT_EXPLAIN="true")
    with closing(world.backend), serve_app(world) as world.url:
        yield world


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture that is wider than high."""
    file = tmp_path / "photo.png"
    file.write_bytes(picture(1, size=(150, 100)))
    return file


def answered(tab: Tab, files: Sequence[Path]) -> None:
    tab.pick("#files", files)
    tab.until(f"document.querySelectorAll('{ASK}').length === {len(files)}")


def press(tab: Tab) -> None:
    tab.js(f"document.querySelector('{ASK}').click()")


def module(tab: Tab, expression: str) -> Any:
    """The value of an expression with the functions of explain.js, called `its`."""
    return tab.js(f"import('/page/explain.js').then((its) => {expression})")


def test_a_picture_is_shown_under_both_maps(tab: Tab, world: World, photo: Path) -> None:
    answered(tab, [photo])
    world.queries.clear()
    press(tab)
    tab.until(f"{DRAWN} === 2")
    model = world.backend.models.default
    assert world.queries == [{"model": model.name, "version": model.version}]
    url = f"{world.url}{EXPLAIN}"
    maps = httpx.post(url, content=photo.read_bytes(), timeout=PATIENCE_S).json()["rollouts"]
    assert tab.texts(".maps h4") == [
        "CLS looked here\nhead expert: frequent classes",
        "DIST looked here\ntail expert: rare classes",
    ]
    captions = tab.texts(".maps figcaption")
    for rows, caption in zip(maps.values(), captions, strict=True):
        assert f"{100 * ninths(rows).max():.1f}%" in caption
    spoken = tab.js("[...document.querySelectorAll('.maps canvas')].map((e) => e.ariaLabel)")
    assert spoken == [
        f"Where {name} looked. {words}"
        for name, words in zip(("CLS", "DIST"), captions, strict=True)
    ]
    shares = [np.array(rows) / np.sum(rows) for rows in maps.values()]
    overlap = f"The two maps overlap by {100 * np.minimum(*shares).sum():.1f}%."
    assert overlap in tab.text(".maps > .detail")
    assert "bright square" in tab.text(".maps > .detail")
    assert tab.js(
        "[...document.querySelectorAll('.maps canvas')].map((e) => e.width / e.height)"
    ) == pytest.approx([1.5, 1.5], abs=0.01)
    assert tab.complaints == []


def ninths(rows: Any) -> Any:
    """What each ninth of a map holds, by enlarging every patch to 3 x 3 equal pieces."""
    fine = np.kron(np.array(rows), np.ones((3, 3)))
    side = len(rows)
    return fine.reshape(3, side, 3, side).sum(axis=(1, 3)) / fine.sum()


def test_the_most_is_yellow_and_lies_where_the_map_says(
    tab: Tab, world: World, tmp_path: Path
) -> None:
    """One patch of three by three has it all: another in each map."""
    grey = tmp_path / "grey.png"
    Image.new("RGB", (180, 90), (128, 128, 128)).save(grey)
    answered(tab, [grey])
    corner, bottom = np.zeros((2, 3, 3))
    corner[0, 2] = bottom[2, 1] = 0.5
    rollouts = {"cls_rollout": corner.tolist(), "distillation_rollout": bottom.tolist()}
    world.instead[:] = [JSONResponse({"rollouts": rollouts})]
    press(tab)
    tab.until(f"{DRAWN} === 2")
    for drawn, place in zip(tab.js(COLOURS), (2, 7), strict=True):
        *inside, outside = drawn
        assert outside[:3] == pytest.approx([50] * 3, abs=20), "dark, and no map there"
        assert np.ptp(outside[:3]) < 15
        red, green, blue, _ = np.array(inside).T
        yellow = np.minimum(red, green) - blue
        assert yellow.argmax() == place
        assert yellow[place] > 60
        assert np.delete(yellow, place).max() < 0, "all other ninths are blue"
    assert tab.texts(".maps figcaption") == [
        "Most at the upper right: this ninth of what it sees holds 100.0% "
        "(11.1% if it looked everywhere alike).",
        "Most at the bottom: this ninth of what it sees holds 100.0% "
        "(11.1% if it looked everywhere alike).",
    ]
    assert "overlap by 0.0%" in tab.text(".maps > .detail")


@pytest.mark.parametrize(
    ("size", "crop_pct", "square"),
    [
        ((300, 200), 1, (50, 0, 200)),
        ((200, 300), 0.875, (12.5, 62.5, 175)),
        ((64, 64), 0.5, (16, 16, 32)),
    ],
)
def test_the_square_is_what_preprocessing_keeps(
    tab: Tab, size: tuple[int, int], crop_pct: float, square: tuple[float, float, float]
) -> None:
    found = module(tab, f"its.seen({size[0]}, {size[1]}, {crop_pct})")
    assert (found["x"], found["y"], found["side"]) == square


def test_a_map_is_enlarged_smoothly(tab: Tab) -> None:
    rows = np.random.default_rng(0).random((4, 4))
    drawn = module(tab, f"[...its.smooth({json.dumps(rows.tolist())}, 40)]")
    # Pillow's bilinear filter is this interpolation where it enlarges.
    bilinear = np.asarray(Image.fromarray(rows.astype(np.float32)).resize((40, 40), 2))
    scaled = (bilinear - rows.min()) / np.ptp(rows)
    np.testing.assert_allclose(np.reshape(drawn, (40, 40)), scaled, atol=1e-5)
    assert module(tab, "[...its.smooth([[0.1, 0.1], [0.1, 0.1]], 2)]") == [0.5] * 4


def test_the_colours_grow_lighter_for_every_kind_of_eye(tab: Tab) -> None:
    colours = np.array(module(tab, "Array.from({length: 101}, (_, i) => its.colourOf(i / 100))"))
    linear = (colours / 255) ** 2.2
    assert np.diff(linear @ [0.2126, 0.7152, 0.0722]).min() > 0
    # Without red cones (protanopia) red counts for nothing, without green ones green.
    for blind in ([0, 0.9, 0.1], [0.9, 0, 0.1]):
        assert np.diff(linear @ blind).min() >= 0


def test_it_opens_closes_and_outlives_the_slider(tab: Tab, world: World, photo: Path) -> None:
    answered(tab, [photo])
    press(tab)
    tab.until(f"{DRAWN} === 2")
    expanded = f"document.querySelector('{ASK}').ariaExpanded"
    assert tab.js(expanded) == "true"
    world.queries.clear()
    press(tab)
    assert tab.js(expanded) == "false"
    assert tab.js("document.querySelector('.maps').checkVisibility()") is False
    press(tab)
    assert tab.js("document.querySelector('.maps').checkVisibility()") is True
    assert world.queries == [], "what is there is not asked for again"
    tab.js("document.querySelector('#blend').focus()")
    tab.press("ArrowLeft", 37)
    tab.until("document.querySelector('.both small')?.innerText === '45% CLS, 55% DIST'")
    tab.until("document.querySelector('.maps')?.checkVisibility()")
    assert len(world.queries) == 1


def test_trouble_is_said_and_can_be_tried_again(tab: Tab, world: World, photo: Path) -> None:
    answered(tab, [photo])
    gone = {"error": {"code": "unknown_model", "message": "it is gone", "request_id": "id-7"}}
    world.instead[:] = [busy(429, "overloaded", {"Retry-After": "0.1"}), JSONResponse(gone, 404)]
    press(tab)
    tab.until("document.querySelector('.looks [role=status]').innerText.includes('gone')")
    assert tab.text(".looks [role=status]") == "This service does not do that. It is gone."
    press(tab)
    tab.until(f"{DRAWN} === 2")
    assert tab.text(".looks [role=status]") == ""


def test_a_model_that_was_replaced_is_asked_anew(tab: Tab, world: World, photo: Path) -> None:
    answered(tab, [photo])
    world.queries.clear()
    body = {"error": {"code": "unknown_model", "message": "no such model", "request_id": "id"}}
    world.instead[:] = [JSONResponse(body, 404)]
    press(tab)
    for _ in range(PATIENCE_S * 20):
        if len(world.queries) == 2:
            break
        time.sleep(0.05)
    assert [set(query) for query in world.queries] == [
        {"model", "version"},
        {"experts", "top_k", "blend"},
    ]
    tab.until("!document.querySelector('.card[aria-busy]')")
    press(tab)
    tab.until(f"{DRAWN} === 2")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_small_screen_and_can_be_read(
    tab: Tab, world: World, photo: Path, scheme: str
) -> None:
    tab.resize(360, 740, mobile=True)
    tab.prefer(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    answered(tab, [photo])
    press(tab)
    tab.until(f"{DRAWN} === 2")
    assert tab.js("document.documentElement.scrollWidth") == 360
    widths = tab.js(
        "[...document.querySelectorAll('.maps canvas')].map((e) => e.getBoundingClientRect().width)"
    )
    assert min(widths) > 280
    assert tab.hard_to_use() == []


def test_a_picture_that_the_browser_cannot_show_has_its_maps(
    tab: Tab, world: World, tmp_path: Path
) -> None:
    file = tmp_path / "scan.tiff"
    Image.new("RGB", (40, 20), (9, 99, 9)).save(file)
    answered(tab, [file])
    press(tab)
    tab.until(f"{DRAWN} === 2")
    sides = tab.js("[...document.querySelectorAll('.maps canvas')].map((e) => e.width - e.height)")
    assert sides == [0, 0]
    assert "bright square" not in tab.text(".maps > .detail")


def test_without_explanations_there_is_no_such_button(opened: Tab, photo: Path) -> None:
    world = World(DEITLT_MODEL=str(DIGITS))
    with closing(world.backend), serve_app(world) as url:
        opened.open(url)
        opened.pick("#files", [photo])
        opened.until("document.querySelector('.opinions')")
        assert opened.texts(ASK) == []
        asked = httpx.post(f"{url}{CLASSIFY}", content=photo.read_bytes(), timeout=PATIENCE_S)
        assert "rollouts" not in asked.json()
