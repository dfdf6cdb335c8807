"""The map without WebGL2: a sample is drawn, everything is selected from."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from explore import fallback

from dino_core.gallery.selection import RAMP_STEPS, Selection, color_by, select
from dino_core.rng import generator

SQUARE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))


def drawn(count: int, values: list[Any]) -> tuple[fallback.Drawn, Any]:
    x, y = generator(0, "fallback").uniform(-1, 1, (2, count)).astype(np.float32)
    coloring = color_by(pd.Series(values), "kind <b>")
    rows = np.arange(count)
    names = np.array([f"{row}.jpg" for row in rows], object)
    return fallback.Drawn(rows, x, y, coloring.codes, names), coloring


def test_the_sample_is_fixed_leaves_out_what_lies_nowhere_and_holds_what_is_marked():
    x = generator(0, "sample").uniform(-1, 1, 50_000).astype(np.float32)
    x[:1000] = np.nan
    rows = fallback.sampled(x, x)
    assert len(rows) == fallback.MOST and (np.diff(rows) > 0).all() and rows.min() >= 1000
    np.testing.assert_array_equal(rows, fallback.sampled(x, x))
    left_out = np.setdiff1d(np.arange(1000, 50_000), rows)
    more = fallback.sampled(x, x, [int(left_out[0]), int(rows[0]), 3, 99_999])
    np.testing.assert_array_equal(np.setdiff1d(more, rows), left_out[:1])
    assert np.abs(np.histogram(rows, 7)[0] - fallback.MOST / 7).max() < 300, "from everywhere"
    assert len(fallback.sampled(x[:1500], x[:1500])) == 500, "few are drawn all"


def test_the_sentence_says_how_many_are_drawn():
    assert "20,000 of 1,000,000" in fallback.sentence(20_000, 1_000_000)
    assert "points" not in fallback.sentence(50, 50)


def test_what_is_selected_keeps_its_color_and_the_rest_is_faint():
    points, coloring = drawn(200, ["a", "b"] * 100)
    chosen = Selection((SQUARE,), frozenset({1}))
    figure = fallback.figure(points, coloring, chosen, lit=[3], query=[0.0, 0.5])
    inside = select(points.x, points.y, points.codes, chosen)
    faint, of_b, marked, star = figure.data
    assert list(of_b.customdata) == inside.tolist() and of_b.name == "b"
    assert sorted(faint.customdata) == np.setdiff1d(np.arange(200), inside).tolist()
    assert list(marked.customdata) == [3] and (star.x, star.y) == ((0.0,), (0.5,))
    assert all(trace.type == "scatter" for trace in figure.data), "scattergl needs WebGL itself"
    assert len(figure.layout.shapes) == 1


def test_every_category_stands_in_the_legend_unless_there_are_too_many():
    points, coloring = drawn(90, [f"<{i % 9}>" for i in range(90)])
    figure = fallback.figure(points, coloring, Selection())
    assert [trace.name for trace in figure.data] == [f"&lt;{i}&gt;" for i in range(9)]
    assert len({trace.marker.color for trace in figure.data}) == 9
    points, coloring = drawn(90, [str(i) for i in range(90)])
    (one,) = fallback.figure(points, coloring, Selection()).data
    colors = coloring.colors(dark=False)
    assert list(one.marker.color) == [colors[code] for code in points.codes]


def test_numbers_run_along_the_ramp_and_missing_ones_are_gray():
    points, coloring = drawn(100, [*range(99), None])
    known, missing = fallback.figure(points, coloring, Selection()).data
    assert (known.marker.cmin, known.marker.cmax) == (0, 98)
    assert np.abs(np.array(known.marker.color) - np.arange(99)).max() <= 98 / RAMP_STEPS
    assert list(missing.customdata) == [99]


def test_clicks_boxes_and_lassos_are_told_apart():
    x = y = np.array([-1.0, np.nan, 19.0], np.float32)
    nothing = {"points": [], "box": [], "lasso": []}
    assert fallback.told(nothing, x, y) == (None, ())
    assert fallback.told(nothing | {"points": [{"customdata": 2}]}, x, y) == (2, ())
    assert fallback.told(nothing | {"points": [{"customdata": [0]}]}, x, y) == (0, ())
    for foreign in ({"customdata": 3}, {"customdata": "1"}, {}):
        assert fallback.told(nothing | {"points": [foreign]}, x, y) == (None, ())
    box = {"x": [2.00049, 1.0], "y": [0.0, 1.0]}
    lasso = {"x": [0, 1, 1.23456], "y": [0, 0, 1]}
    both = nothing | {"points": [{"customdata": 2}], "box": [box], "lasso": [lasso]}
    row, (first, second) = fallback.told(both, x, y)
    assert row is None
    assert first == ((0.0, 0.0), (1.0, 0.0), (1.235, 1.0)), "to 1/20,000 of 20"
    assert second == ((1.0, 0.0), (2.0, 0.0), (2.0, 1.0), (1.0, 1.0))


@pytest.mark.parametrize("corners", [4, 120, 121, 1000])
def test_an_outline_becomes_short_and_stays_close(corners):
    turns = [2 * math.pi * i / corners for i in range(corners)]
    outline = [(math.cos(turn), math.sin(turn)) for turn in turns]
    short = fallback.shortened(outline, 2.0)
    assert len(short) == (
        corners if corners <= 120 else math.ceil(corners / math.ceil(corners / 120))
    )
    assert all(min(math.dist(corner, other) for other in outline) < 1e-3 for corner in short)


@pytest.mark.soak
def test_a_browser_without_webgl2_shows_a_map_that_selects_and_picks(explorer, page):
    address, _ = explorer
    page.add_init_script(
        """const get = HTMLCanvasElement.prototype.getContext;
        HTMLCanvasElement.prototype.getContext = function (kind, ...how) {
          return kind.startsWith("webgl") ? null : get.call(this, kind, ...how);
        };"""
    )
    page.goto(f"{address}?gallery=scenes")
    page.wait_for_selector(".js-plotly-plot .point")
    assert "has no WebGL2" in page.locator(".st-key-map_side").inner_text()
    page.locator('.modebar-btn[data-val="select"]').click()
    box = page.locator(".nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + box["height"] - 5, steps=4)
    page.mouse.up()
    page.wait_for_selector(".st-key-panel h2:has-text('selected')")
    page.wait_for_function("location.search.includes('region=')")

    page.locator('.modebar-btn[data-val="pan"]').first.click()
    point = page.locator(".js-plotly-plot .point").first.bounding_box()
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    page.wait_for_selector(".hoverlayer .hovertext")
    page.mouse.down()
    page.mouse.up()
    page.wait_for_selector(".st-key-neighbors .score")
    page.wait_for_function("location.search.includes('image=scenes')")
