"""The lens page's JavaScript without a server: what it asks, and when."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dino_core.lenses import Attention, LensPayload

ASSETS = Path(__file__).resolve().parents[2] / "apps" / "assets"
GRID = (6, 8)

# A server that notes what it is asked, and answers when the test says so.
SERVER = """() => {
    globalThis.asked = [];
    globalThis.values = {};
    const watchers = {};
    const part = (name) => {
        const element = document.body.appendChild(document.createElement("div"));
        element.id = `lens-${name}`;
        element.append(document.createElement("div"));
        const props = {get value() { return values[name]; }};
        const trigger = (event, details) => { if (details.about) asked.push(details); };
        const watch = (_, told) => { watchers[name] = told; };
        lensParts[name]({element, props, upload: null, watch, trigger});
    };
    globalThis.send = (name, value) => { values[name] = value; watchers[name](); };
    globalThis.answer = (at, answer, problem) =>
        send("answers", {number: asked[at].number, answer, problem});
    ["stage", "answers", "neighbors"].forEach(part);
}"""


@pytest.fixture
def lens_page(page: Any) -> Any:
    """A page with stage, answers and neighbors, and a picture on it."""
    page.route(
        "http://127.0.0.1:9/**", lambda route: route.fulfill(body="", content_type="text/html")
    )
    page.goto("http://127.0.0.1:9/")
    for name in ("overlay.js", "pieces.js", "lens.js"):
        page.add_script_tag(path=str(ASSETS / name))
    page.evaluate(SERVER)
    page.evaluate("sent => send('stage', sent)", drawing("one"))
    page.wait_for_selector(".lens-tile[data-head='1']")
    return page


def payload(seed: int = 0) -> str:
    maps = np.random.default_rng(seed).gamma(0.5, size=(2, 2, *GRID)).astype(np.float32)
    maps /= maps.sum(axis=(-2, -1), keepdims=True)
    one = LensPayload.from_attention(Attention(maps, (48, 64), (48, 64), 8, "small", "0"))
    return base64.b64encode(one.to_bytes()).decode()


def drawing(content: str) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(file, "PNG")
    image = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {
        "content": content, "model_hash": "0", "fed": [48, 64], "title": content, "image": image,
        "payload": payload(), "sizes": [[48, 48, 64, 48, 1000, 0.1]], "model": "small",
    }  # fmt: skip


NEAR = {
    "key": "few", "gallery": "few", "count": 3, "generated": False, "vote": [],
    "neighbors": [{"row": 0, "id": "a.jpg", "label": None, "score": 0.5}],
}  # fmt: skip


def place(page: Any, row: int, column: int) -> tuple[float, float]:
    page.locator(".lens-stage canvas").scroll_into_view_if_needed()
    box = page.locator(".lens-stage canvas").bounding_box()
    x, y = (column + 0.5) / GRID[1], (row + 0.5) / GRID[0]
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def click(page: Any, row: int, column: int) -> None:
    page.mouse.click(*place(page, row, column))


def asked(page: Any, about: str) -> list[dict[str, Any]]:
    """The details of what was asked so far of one kind."""
    return [one["details"] for one in page.evaluate("asked") if one["about"] == about]


def answer(page: Any, about: str, told: dict[str, Any]) -> None:
    """Answer the newest question of a kind."""
    page.evaluate(
        "([about, told]) => answer(asked.findLastIndex((one) => one.about === about), told)",
        [about, told],
    )


def soon(page: Any, holds: Callable[[], bool]) -> None:
    for _ in range(100):
        if holds():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not come to be")


def test_of_many_clicks_the_newest_is_asked_next(lens_page: Any) -> None:
    page = lens_page
    for column in (1, 2, 3, 4):
        click(page, 2, column)
    assert asked(page, "patch") == [{"row": 2, "column": 1}]
    answer(page, "patch", {"payload": payload(1)})
    soon(page, lambda: len(asked(page, "patch")) == 2)
    assert asked(page, "patch")[1] == {"row": 2, "column": 4}
    assert page.evaluate("document.querySelector('#panel-heads .lens').className") == (
        "lens lens-waiting"
    )
    answer(page, "patch", {"payload": payload(2)})
    page.wait_for_selector(".lens-waiting", state="detached")
    click(page, 2, 1)  # was answered, and is kept
    page.wait_for_timeout(100)
    assert len(asked(page, "patch")) == 2


def near_is_there(page: Any) -> None:
    page.evaluate("near => send('neighbors', near)", NEAR)
    answer(page, "filters", {"columns": {}, "patches": "49 of each"})
    page.wait_for_selector(".near-tools")


def test_a_box_drawn_to_beyond_the_picture_is_searched_once(lens_page: Any) -> None:
    page = lens_page
    near_is_there(page)
    page.mouse.move(*place(page, 2, 3))
    page.mouse.down()
    page.mouse.move(5, 5, steps=4)
    page.mouse.up()
    page.mouse.click(3, 3)
    page.mouse.click(4, 4)
    assert len(asked(page, "near")) == 1 and "box" in asked(page, "near")[0]
    click(page, 1, 1)  # the next click is a click
    assert asked(page, "patch") == [{"row": 1, "column": 1}]


def test_a_patch_asks_for_neighbors_only_where_they_are_of_a_patch(lens_page: Any) -> None:
    page = lens_page
    near_is_there(page)
    assert page.is_disabled(".near-tools input[value=patch]")
    click(page, 2, 1)
    page.wait_for_selector(".near-tools input[value=patch]:enabled")
    assert asked(page, "near") == []
    page.click(".near-tools input[value=patch]", force=True)
    click(page, 2, 5)
    click(page, 3, 5)
    assert len(asked(page, "near")) == 1
    answer(page, "near", NEAR)
    soon(page, lambda: len(asked(page, "near")) == 2)
    assert asked(page, "near")[1] == {"patch": {"x": 5.5 / GRID[1], "y": 3.5 / GRID[0]}}


def test_what_is_chosen_stays_while_the_picture_does(lens_page: Any) -> None:
    page = lens_page
    click(page, 2, 1)
    answer(page, "patch", {"payload": payload(1)})
    near_is_there(page)
    assert page.is_enabled(".near-tools input[value=patch]"), "it was told before they came"
    state = "() => document.querySelector('input[value=patch]').checked"
    page.evaluate("sent => send('stage', sent)", drawing("one"))  # as beside another gallery
    page.evaluate("near => send('neighbors', near)", NEAR | {"key": "more"})
    page.wait_for_timeout(100)
    assert page.evaluate(state) and len(asked(page, "patch")) == 1
    page.evaluate("sent => send('stage', sent)", drawing("two"))
    page.wait_for_function("document.querySelector('input[value=class]').checked")
    page.evaluate("near => send('neighbors', near)", NEAR)
    assert page.is_disabled(".near-tools input[value=patch]")


def test_a_question_that_is_never_answered_is_given_up(page: Any, request: Any) -> None:
    page.clock.install()
    lens = request.getfixturevalue("lens_page")
    lens.evaluate("void lensAsk('health').catch((error) => { globalThis.heard = error.message; })")
    lens.evaluate("void lensAsk('colors')")
    assert lens.evaluate("document.body.classList.contains('lens-busy')")
    answer(lens, "colors", {})
    lens.wait_for_function("lensWaits.questions === 1")
    assert lens.evaluate("document.body.classList.contains('lens-busy')"), "one is under way"
    lens.clock.fast_forward("09:59")
    assert lens.evaluate("globalThis.heard") is None
    lens.clock.fast_forward("00:02")
    lens.wait_for_function("heard === 'no answer came; try again'")
    assert not lens.evaluate("document.body.classList.contains('lens-busy')")


def test_a_look_that_does_not_come_is_asked_for_again(page: Any, request: Any) -> None:
    """Until something comes, less and less often; the newest wish alone."""
    page.clock.install()
    lens = request.getfixturevalue("lens_page")
    lens.evaluate(
        """() => {
        globalThis.wished = [];
        const element = document.body.appendChild(document.createElement("div"));
        element.append(document.createElement("div"));
        const examples = ["one", "two"].map((title) => ({title, credit: "", image: "data:,"}));
        const trigger = (event, {index}) => wished.push(index);
        lensParts.picker({element, props: {value: {examples, limit: 9}}, trigger, upload: null});
    }"""
    )
    lens.evaluate("document.querySelectorAll('.example').forEach((tile) => tile.click())")
    lens.clock.fast_forward("00:21")
    assert lens.evaluate("wished") == [0, 1, 1]
    lens.clock.fast_forward("00:30")
    assert lens.evaluate("wished") == [0, 1, 1]
    lens.clock.fast_forward("00:11")
    assert lens.evaluate("wished") == [0, 1, 1, 1]
    lens.evaluate("lensBusy(false)")
    lens.clock.fast_forward("10:00")
    assert lens.evaluate("wished") == [0, 1, 1, 1]


def test_a_page_that_may_store_nothing_works_all_the_same(page: Any, request: Any) -> None:
    page.add_init_script("Object.defineProperty(globalThis, 'localStorage', {get() { throw 1; }})")
    lens = request.getfixturevalue("lens_page")
    sent = drawing("mine") | {"upload": {"path": "/x", "name": "mine.jpg"}}
    lens.evaluate("sent => send('stage', sent)", sent)
    lens.wait_for_function(
        "document.querySelector('.lens-stage canvas').ariaLabel.startsWith('mine')"
    )
