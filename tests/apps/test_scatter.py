"""The map by itself, in a browser: what it selects, how much it draws and fetches, how it moves."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dino_core.gallery.selection import Selection, points_in_polygon, select
from dino_core.rng import generator

ASSETS = Path(__file__).resolve().parents[2] / "apps" / "assets"
HERE = "http://127.0.0.1:1/"  # every request to it is answered below
COLORS = ["#d62728", "#2ca02c", "#1f77b4"]
TYPES = {".js": "text/javascript", ".css": "text/css"}
SETTLE = "scatter.frame.dataset.drawn === '{}'"


class Board:
    """A page with one map, and what was asked of the server."""

    def __init__(self, page: Any) -> None:
        self.page, self.files, self.asked = page, {}, []
        self.thumbnail: Callable[[int], dict[str, Any]] = lambda row: {"status": 404}
        page.route("**/*", self._answer)
        style = (ASSETS / "theme.css").read_text() + (ASSETS / "scatter.css").read_text()
        style += "body { margin: 0 } .scatter { height: 600px !important }"
        self.files[""] = f"<!doctype html><style>{style}</style><div id=home></div>".encode()
        page.goto(HERE)

    def _answer(self, route: Any) -> None:
        path = route.request.url.removeprefix(HERE)
        if path in self.files:
            return route.fulfill(body=self.files[path], content_type="text/html")
        if path.startswith("thumbs/"):
            self.asked.append(int(path.removeprefix("thumbs/")))
            return route.fulfill(**self.thumbnail(self.asked[-1]))
        file = ASSETS / path
        if not file.is_file():
            return route.fulfill(status=404)
        return route.fulfill(body=file.read_bytes(), content_type=TYPES[file.suffix])

    def mount(self, xy: np.ndarray, codes: np.ndarray, **props: Any) -> None:
        """Show points float32 [2, n] with codes uint8 [n]."""
        self.files |= {"points": xy.astype("<f4").tobytes(), "codes": codes.tobytes()}
        self.props = {
            "points": "points", "codes": "codes", "thumbs": "thumbs", "info": None,
            "legend": {"title": "label", "kind": "categories", "entries": [["a", 1], ["b", 1]]},
            "colors": {"light": COLORS, "dark": COLORS}, "panel": "#none", "lit": [],
            "selection": {"polygons": [], "shown": [], "stamp": 0},
        }  # fmt: skip
        self.page.evaluate(
            """async () => {
              const { mount } = await import("/scatter.js");
              window.told = [];
              window.scatter = mount(document.querySelector("#home"), (...what) => told.push(what));
            }"""
        )
        self.update(**props)

    def update(self, **props: Any) -> None:
        self.props |= props
        self.page.evaluate("(props) => scatter.update(props)", self.props)

    def told(self) -> list[Any]:
        return self.page.evaluate("told")

    def drag(self, *places: tuple[float, float], shift: bool = False) -> None:
        """A drag over these places, each given from 0 to 1 across the map."""
        box = self.page.locator("canvas.points").bounding_box()
        at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
        if shift:
            self.page.keyboard.down("Shift")
        self.page.mouse.move(*at[0])
        self.page.mouse.down()
        for place in at[1:]:
            self.page.mouse.move(*place, steps=2)
        self.page.mouse.up()
        if shift:
            self.page.keyboard.up("Shift")


@pytest.fixture
def board(page: Any) -> Board:
    return Board(page)


def scattered(count: int, key: str) -> tuple[np.ndarray, np.ndarray]:
    random = generator(0, "scatter", key)
    xy = random.standard_normal((2, count)).astype(np.float32)
    return xy, random.integers(0, 3, count).astype(np.uint8)


def test_shift_adds_to_a_selection_and_both_sides_count_the_same(board):
    xy, codes = scattered(3000, "shift")
    xy[:, :5] = np.nan
    board.mount(xy, codes)
    turns = np.linspace(0, 2 * np.pi, 20)
    around = [(0.4 + 0.15 * np.cos(t), 0.45 + 0.2 * np.sin(t)) for t in turns]
    board.drag(*around, shift=True)
    board.drag((0.35, 0.4), (0.7, 0.4), (0.7, 0.7), shift=True)  # over a part of the first
    (_, first), (_, both) = board.told()
    assert len(first["polygons"]) == 1 and both["polygons"][:1] == first["polygons"]
    one, two = (Selection.from_browser(message) for message in (first, both))
    assert len(two.polygons) == 2
    assert len(two.polygons[1]) == 3, "corners on a line are left out"
    found = select(*xy, codes, two)
    assert len(select(*xy, codes, one)) < len(found) < 3000
    assert board.page.locator(".scatter").get_attribute("data-selected") == str(len(found))
    assert Selection.from_text(two.to_text()) == Selection(two.polygons), "a link says the same"

    board.page.locator(".legend .entry").first.click()
    filtered = Selection.from_browser(board.told()[-1][1])
    rows = select(*xy, codes, filtered)
    assert rows.tolist() == [row for row in found if codes[row] == 0]
    assert board.page.locator(".scatter").get_attribute("data-selected") == str(len(rows))

    board.page.locator("[data-tool=lasso]").click()
    board.drag((0.2, 0.2), (0.5, 0.2), (0.5, 0.5))
    assert len(board.told()[-1][1]["polygons"]) == 1, "without Shift it begins anew"
    board.page.locator(".clear").click()
    assert board.told()[-1][1]["polygons"] == [] and board.told()[-1][1]["shown"] == []


def test_an_outline_of_a_thousand_corners_stays_close_in_120_short_ones(board):
    simplified, rounded = board.page.evaluate(
        """async () => {
          const { simplified, rounded } = await import("/geometry.js");
          const wave = (i) => 200 + 12 * Math.sin(i / 7) + 5 * Math.cos(i / 3);
          const outline = Array.from({ length: 1000 }, (_, i) =>
            [400 + wave(i) * Math.cos(i / 159), 300 + wave(i) * Math.sin(i / 159)]);
          const few = simplified(outline);
          return [few, rounded(few.map(([x, y]) => [x / 31, y / 31]), 25.6)];
        }"""
    )
    turns = np.arange(1000)
    wave = 200 + 12 * np.sin(turns / 7) + 5 * np.cos(turns / 3)
    outline = np.stack([400 + wave * np.cos(turns / 159), 300 + wave * np.sin(turns / 159)], 1)
    assert len(simplified) <= 120
    grid = np.stack(np.meshgrid(np.arange(150, 650, 4), np.arange(50, 550, 4)), -1).reshape(-1, 2)
    before, after = (points_in_polygon(*grid.T, corners) for corners in (outline, simplified))
    assert (before != after).mean() < 0.01, "two pixels along it"
    assert np.abs(np.array(rounded) * 31 - simplified).max() < 31 * 25.6 / 20_000
    digits = [len(json.dumps(value).partition(".")[2]) for corner in rounded for value in corner]
    assert max(digits) <= 3, "25.6 / 20,000 is 0.00128"


def test_points_in_cells_answer_as_looking_at_all_of_them_does(board):
    xy, _ = scattered(2000, "cells")
    xy[0, ::97] = np.nan
    polygons = generator(0, "polygons").uniform(-2, 2, (20, 7, 2))
    polygons[:5] = np.round(polygons[:5])  # level sides, and corners at one height
    found, near, within = board.page.evaluate(
        """async ({ xy, polygons }) => {
          const { Cells } = await import("/geometry.js");
          const [x, y] = xy.map((values) => Float32Array.from(values, (v) => v ?? NaN));
          const cells = new Cells(x, y);
          const found = polygons.map((polygon) => {
            const rows = [];
            cells.eachInside(polygon, (row) => rows.push(row));
            return rows.sort((a, b) => a - b);
          });
          const near = polygons.map(([[a, b]]) => cells.nearest(a, b, 0.3, (row) => row % 2));
          return [found, near, cells.within([-0.5, -0.2, 0.1, 0.4], 1000, (row) => row % 3)];
        }""",
        {"xy": np.where(np.isnan(xy), None, xy).tolist(), "polygons": polygons.tolist()},
    )
    x, y = xy.astype(np.float64)
    for polygon, rows, row in zip(polygons, found, near, strict=True):
        assert rows == np.flatnonzero(points_in_polygon(x, y, polygon)).tolist()
        distance = np.hypot(x - polygon[0, 0], y - polygon[0, 1])
        distance[::2] = np.inf  # those that do not count
        best = int(np.nanargmin(distance))
        assert row == (best if distance[best] < 0.3 else -1)
    inside = (x >= -0.5) & (x <= 0.1) & (y >= -0.2) & (y <= 0.4) & (np.arange(2000) % 3 > 0)
    assert sorted(within) == np.flatnonzero(inside).tolist()


def test_while_it_moves_a_hundred_thousand_stand_for_all_and_always_the_same(board):
    xy, codes = scattered(130_000, "many")
    board.mount(xy, codes)
    board.page.wait_for_function(SETTLE.format(130_000))
    drawn = board.page.evaluate(
        """async () => {
          const drawn = [];
          const paint = scatter.paintPoints.bind(scatter);
          scatter.paintPoints = (...how) => {
            paint(...how);
            drawn.push(scatter.frame.dataset.drawn);
          };
          for (let i = 0; i < 3; i++) {
            scatter.move(3, 0);
            await new Promise(requestAnimationFrame);
            await new Promise(requestAnimationFrame);
          }
          return drawn;
        }"""
    )
    assert set(drawn) == {"100000"}
    board.page.wait_for_function(SETTLE.format(130_000))
    same, rows, tenths = board.page.evaluate(
        """async () => {
          const { shuffled } = await import("/geometry.js");
          const { order } = scatter.layer, again = shuffled(order.length);
          const tenths = new Array(10).fill(0);
          for (const row of order.subarray(0, 100000)) tenths[Math.floor(row / 13000)]++;
          return [order.every((row, i) => row === again[i]), new Set(order).size, tenths];
        }"""
    )
    assert same and rows == 130_000, "each row once"
    assert np.abs(np.array(tenths) - 10_000).max() < 230, "fair: five standard deviations"


def test_points_become_thumbnails_where_few_are_in_sight(board):
    xy, codes = scattered(4000, "thumbnails")
    xy[:, 7] = 6.0, 6.0  # far from the rest
    xy[:, 8] = 6.02, 6.0  # on top of it, almost
    xy[:, 9] = 6.4, 6.0  # its file is gone
    xy[:, 10] = 6.0, 6.3
    picture = io.BytesIO()
    Image.new("RGB", (60, 40), "#ff00ff").save(picture, "JPEG")
    kept = {"body": picture.getvalue(), "headers": {"Cache-Control": "max-age=9"}}
    gone = kept | {"headers": {"Cache-Control": "no-store"}}
    board.thumbnail = lambda row: gone if row == 9 else kept
    board.mount(xy, codes)
    board.page.wait_for_timeout(300)
    assert board.asked == [], "none while everything is in sight"
    board.page.evaluate("Object.assign(scatter.camera.view, { x: 6.1, y: 6.1, scale: 500 })")
    board.page.evaluate("scatter.moved()")
    board.page.wait_for_function("scatter.frame.dataset.pictures === '2'")
    assert set(board.asked) in ({7, 9, 10}, {8, 9, 10}), "one of those on top of each other"
    there = [row for row in (7, 8) if row in board.asked]
    place = board.page.evaluate("(row) => scatter.camera.toPixel(...scatter.place(row))", there[0])
    assert board.page.evaluate("([x, y]) => scatter.nearest(x + 20, y)", place) == there[0]
    board.page.wait_for_function("scatter.pictures.shade === 1 && !scatter.pictures.moving")
    box = board.page.locator("canvas.points").bounding_box()
    shot = Image.open(io.BytesIO(board.page.screenshot(clip=box))).convert("RGB")
    red, green, blue = shot.getpixel((round(place[0] + 10), round(place[1])))
    assert red > 230 and green < 30 and blue > 230

    board.page.evaluate("scatter.fit()")
    board.page.wait_for_function("scatter.frame.dataset.pictures === '0'")


def test_it_never_fetches_more_than_six_thumbnails_at_once_nor_those_that_left(board):
    most, every = board.page.evaluate(
        """async () => {
          const { Pictures } = await import("/pictures.js");
          const open = new Set(), every = [], answers = [];
          let most = 0;
          window.fetch = (url, { signal }) => new Promise((answer, refuse) => {
            open.add(url);
            every.push(url);
            most = Math.max(most, open.size);
            signal.addEventListener("abort", () => { open.delete(url); refuse(signal.reason); });
            answers.push(() => { open.delete(url); answer(new Response("", { status: 404 })); });
          });
          const pictures = new Pictures(() => {});
          pictures.forget("a");
          pictures.want(Array.from({ length: 100 }, (_, i) => i));
          pictures.want([3, 200]);
          for (let i = 0; i < 20; i++) {
            answers.forEach((answer) => answer());
            await new Promise((done) => setTimeout(done));
          }
          pictures.want([3, 200]);
          return [most, every];
        }"""
    )
    assert most == 6
    assert every == [f"a/{row}" for row in (0, 1, 2, 3, 4, 5, 200)], "and those gone only once"


def test_points_travel_to_new_places_and_jump_where_movement_is_not_wanted(board):
    xy, codes = scattered(50, "travel")
    board.mount(xy, codes, ease=True)
    board.page.evaluate("performance.now = () => window.clock ?? 0")
    for motion, expected in (("no-preference", 0.5), ("reduce", 1.0)):
        board.page.emulate_media(reduced_motion=motion)
        board.page.evaluate("window.clock = 1000")
        before, after = board.page.evaluate("[[...scatter.x], [...scatter.y]]"), xy[::-1] * 3
        board.files[motion] = after.astype("<f4").tobytes()
        board.update(points=motion)
        board.page.evaluate("window.clock = 1300; scatter.stale = true; scatter.paint()")
        assert board.page.evaluate("scatter.way") == expected
        place = board.page.evaluate("scatter.place(4)")
        half = [(1 - expected) * before[axis][4] + expected * after[axis, 4] for axis in (0, 1)]
        np.testing.assert_allclose(place, half, rtol=1e-6)
        board.page.evaluate("window.clock = 1601; scatter.stale = true; scatter.paint()")
        assert board.page.evaluate("[scatter.way, scatter.camera.depth]") == [1, 1]
        xy = xy[::-1]


def test_lit_points_say_where_they_were(board):
    xy, codes = np.array([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]), np.zeros(3, np.uint8)
    board.mount(xy, codes)
    ink = """() => {
      const [x, y] = scatter.camera.toPixel(0.25, 0.75);
      const ratio = scatter.overlay.width / scatter.camera.size[0];
      const pen = scatter.overlay.getContext("2d");
      const part = pen.getImageData(x * ratio - 6, y * ratio - 6, 12, 12);
      return part.data.some((value) => value > 0);
    }"""
    board.files["moves"] = np.array([[0.5, 0.0, 0.0], [1.5, 0.0, 0.0]]).astype("<f4").tobytes()
    board.update(lit=[0], moves="moves")
    board.page.wait_for_function(ink)
    board.update(moves=None)
    board.page.wait_for_function(f"!({ink})()")


def test_without_webgl2_it_says_so_and_tells(page):
    page.add_init_script(
        """const get = HTMLCanvasElement.prototype.getContext;
        HTMLCanvasElement.prototype.getContext = function (kind, ...how) {
          return kind === "webgl2" ? null : get.call(this, kind, ...how);
        };"""
    )
    board = Board(page)
    board.mount(*scattered(20, "missing"))
    assert board.told() == [["missing", True]]
    assert "WebGL2 is off or missing" in page.locator(".message").inner_text()
