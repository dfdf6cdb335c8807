"""Colors, polygons, shares and pages of a map: plain arrays in, plain arrays out."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_core.gallery.selection import (
    MAX_CATEGORIES,
    NO_VALUE,
    OTHER,
    RAMP_STEPS,
    Selection,
    category_colors,
    color_by,
    gray,
    page_of,
    points_in_polygon,
    ramp_colors,
    select,
    shares,
)
from dino_core.rng import generator

SQUARE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))


def test_a_square_holds_what_lies_between_its_sides():
    x = np.array([0.5, 1.5, 0.5, -0.1, 0.999, np.nan])
    y = np.array([0.5, 0.5, 1.5, 0.5, 0.001, 0.5])
    assert points_in_polygon(x, y, SQUARE).tolist() == [True, False, False, False, True, False]


def test_a_polygon_that_crosses_itself_has_a_hole_where_it_overlaps():
    pentagram = [(math.sin(4 * math.pi * i / 5), math.cos(4 * math.pi * i / 5)) for i in range(5)]
    inside = points_in_polygon(np.array([0.0, 0.0]), np.array([0.0, 0.8]), pentagram)
    assert inside.tolist() == [False, True]  # even-odd: the middle is outside, the tip is inside


@given(st.integers(0, 2**32), st.integers(3, 12))
def test_inside_depends_neither_on_the_direction_nor_on_the_first_corner(seed, corners):
    random = generator(seed, "polygon")
    polygon = [tuple(corner) for corner in random.uniform(-1, 1, (corners, 2))]
    x, y = random.uniform(-1, 1, (2, 50))
    expected = points_in_polygon(x, y, polygon)
    assert (points_in_polygon(x, y, polygon[::-1]) == expected).all()
    assert (points_in_polygon(x, y, polygon[2:] + polygon[:2]) == expected).all()


@given(st.integers(0, 2**32))
def test_two_polygons_that_share_a_side_count_every_point_once(seed):
    random = generator(seed, "tiles")
    cut = float(random.uniform(0, 1))
    left = ((0.0, 0.0), (cut, 0.0), (cut, 1.0), (0.0, 1.0))
    right = ((cut, 0.0), (1.0, 0.0), (1.0, 1.0), (cut, 1.0))
    x = np.append(random.uniform(0, 1, 60), cut)
    y = random.uniform(0, 1, 61)
    both = points_in_polygon(x, y, left).astype(int) + points_in_polygon(x, y, right)
    assert (both == 1).all()


def test_a_selection_is_polygon_and_filter_together():
    x, y = np.array([0.2, 0.4, 0.6, 5.0, np.nan]), np.full(5, 0.5)
    codes = np.array([0, 1, 0, 0, 0], np.uint8)
    assert select(x, y, codes, Selection((SQUARE,))).tolist() == [0, 1, 2]
    assert select(x, y, codes, Selection(shown=frozenset({0}))).tolist() == [0, 2, 3]
    assert select(x, y, codes, Selection((SQUARE,), frozenset({0}))).tolist() == [0, 2]
    assert select(x, y, codes, Selection()).tolist() == []


@given(st.integers(0, 2**32), st.integers(1, 3))
def test_several_polygons_select_what_lies_in_any(seed, count):
    random = generator(seed, "several")
    polygons = tuple(tuple(map(tuple, random.uniform(-1, 1, (5, 2)))) for _ in range(count))
    x, y = random.uniform(-1, 1, (2, 80))
    either = np.any([points_in_polygon(x, y, polygon) for polygon in polygons], axis=0)
    codes = np.zeros(80, np.uint8)
    assert select(x, y, codes, Selection(polygons)).tolist() == np.flatnonzero(either).tolist()


@given(st.integers(0, 2**32), st.integers(3, 12))
def test_inside_is_what_an_uneven_number_of_crossings_makes(seed, corners):
    """Counted one point at a time, on a grid so coarse that points lie level with corners."""
    random = generator(seed, "crossings")
    polygon = [(float(x), float(y)) for x, y in random.integers(-3, 4, (corners, 2))]
    x, y = random.integers(-6, 7, (2, 40)) / 2 + 0.25, random.integers(-6, 7, (2, 40)) / 2
    for at_x, at_y, found in zip(x[0], y[0], points_in_polygon(x[0], y[0], polygon), strict=True):
        crossed = 0
        for (x_i, y_i), (x_j, y_j) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            if min(y_i, y_j) <= at_y < max(y_i, y_j):
                crossed += at_x < x_i + (at_y - y_i) * (x_j - x_i) / (y_j - y_i)
        assert found == crossed % 2


@pytest.mark.parametrize(
    "message",
    [
        None,
        {},
        {"polygon": [[0, 0], [1, 1]]},
        {"polygon": [[0, 0], [1, float("nan")], [1, 0]]},
        {"polygon": "lasso", "shown": None},
        {"polygon": [[0, 0, 0]] * 3},
        {"polygons": [[[0, 0], [1, 0]]]},
        {"polygons": [[[0, 0], [1, 0], [0, 1]], [[0, 0], [1, float("inf")], [0, 1]]]},
        {"polygons": 7},
        {"shown": ["dog"]},
    ],
)
def test_a_malformed_message_selects_nothing(message):
    assert not Selection.from_browser(message)


def test_the_browser_s_message_is_read():
    corners, other = [[0, 0], [1, 0], [1, 1]], [[5, 5], [6, 5], [5, 6]]
    triangle = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0))
    message = {"polygons": [corners, other], "shown": [2, 5], "stamp": 17}
    both = Selection((triangle, ((5.0, 5.0), (6.0, 5.0), (5.0, 6.0))), frozenset({2, 5}))
    assert Selection.from_browser(message) == both
    assert Selection.from_browser({"polygon": corners}) == Selection((triangle,)), "of before"
    assert Selection.from_browser({"polygons": [], "shown": [1]}) == Selection((), frozenset({1}))


def test_categories_come_most_frequent_first_and_what_is_missing_last():
    coloring = color_by(pd.Series(["cat", None, "dog", "dog", "ant"], name="label"))
    assert coloring.title == "label" and coloring.kind == "categories"
    assert coloring.entries == [("dog", 2), ("ant", 1), ("cat", 1), (NO_VALUE, 1)]
    assert coloring.codes.tolist() == [2, 3, 0, 0, 1] and coloring.codes.dtype == np.uint8
    assert len(set(coloring.colors(dark=False))) == len(coloring.colors(dark=True)) == 4


def test_a_name_keeps_its_color_when_the_counts_change():
    def colors(values: pd.Series) -> dict[str, str]:
        coloring = color_by(values, "label")
        named = zip(coloring.entries, coloring.colors(dark=False), strict=True)
        return {name: color for (name, _), color in named}

    before = colors(pd.Series(["ant", "cat", "cat", "dog", None]))
    after = colors(pd.Series(["dog"] * 9 + ["ant", "cat"]))
    assert before == after | {NO_VALUE: gray(dark=False)} and len(set(before.values())) == 4
    clusters = pd.Categorical.from_codes([0, 1, 1, 2], ["0", "1", "2"])
    merged = pd.Categorical.from_codes([0, 2, 2, 2], ["0", "1", "ships"])  # 2 got a name
    before, after = colors(pd.Series(clusters)), colors(pd.Series(merged))
    assert before["0"] == after["0"] and before["2"] == after["ships"]


def test_many_categories_take_two_bytes_and_the_rarest_share_one_code():
    values = pd.Series([f"class {i}" for i in range(MAX_CATEGORIES + 5)] + ["class 7"])
    coloring = color_by(values, "label")
    assert coloring.codes.dtype == np.uint16
    assert coloring.entries[0] == ("class 7", 2) and coloring.entries[-1] == (OTHER, 5)
    assert (coloring.codes == MAX_CATEGORIES).sum() == 5


def test_numbers_run_along_a_ramp_and_missing_ones_have_their_own_code():
    coloring = color_by(pd.Series([*range(100), np.nan], name="score", dtype=float))
    assert (coloring.kind, coloring.low, coloring.high) == ("numbers", 0.0, 99.0)
    assert coloring.codes[0] == 0 and coloring.codes[99] == RAMP_STEPS - 1
    assert coloring.codes[100] == RAMP_STEPS
    assert (np.diff(coloring.codes[:100].astype(int)) >= 0).all()
    assert len(coloring.colors(dark=True)) == RAMP_STEPS + 1


def test_few_numbers_flags_and_empty_columns_are_categories():
    assert color_by(pd.Series([1, 2, 2, 3])).entries == [("2", 2), ("1", 1), ("3", 1)]
    assert color_by(pd.Series([True, False, True])).entries == [("True", 2), ("False", 1)]
    assert color_by(pd.Series([None, None], dtype=object)).entries == [(NO_VALUE, 2)]
    assert color_by(pd.Series([np.nan, np.nan])).entries == [(NO_VALUE, 2)]
    assert color_by(pd.Series([], dtype=object)).entries == []


def test_shares_sum_to_one_and_name_the_rest():
    labels = pd.Series(["a"] * 6 + ["b"] * 3 + ["c"] + [None] * 2, dtype=object)
    assert shares(labels) == [
        ("a", 6, 0.5), ("b", 3, 0.25), (NO_VALUE, 2, pytest.approx(1 / 6)),
        ("c", 1, pytest.approx(1 / 12)),
    ]  # fmt: skip
    assert shares(labels, top=1) == [("a", 6, 0.5), (OTHER, 6, 0.5)]
    assert shares(labels[:0]) == []


def test_a_page_is_clamped_to_what_exists():
    rows = np.arange(50)
    assert page_of(rows, 1, 24)[0].tolist() == list(range(24, 48))
    last, page, pages = page_of(rows, 99, 24)
    assert (last.tolist(), page, pages) == ([48, 49], 2, 3)
    assert page_of(rows[:0], 3, 24)[1:] == (0, 1)


@pytest.mark.parametrize("dark", [False, True])
def test_neighboring_colors_differ_and_stand_out_from_the_page(dark):
    page = np.array([0x13, 0x19, 0x29] if dark else [255, 255, 255]) / 255
    colors = np.array([_rgb(color) for color in category_colors(24, dark=dark)])
    ratios = [_contrast(color, page) for color in colors[:12]]
    assert min(ratios) > 2.2, ratios
    apart = np.abs(colors[1:12] - colors[:11]).sum(1)
    assert apart.min() > 0.35
    assert len({tuple(color) for color in colors}) == 24


def test_a_ramp_grows_steadily_in_contrast_to_the_page():
    for dark in (False, True):
        light = [_luminance(_rgb(color)) for color in ramp_colors(16, dark=dark)]
        steps = np.diff(light)
        assert (steps > 0).all() if dark else (steps < 0).all()


def _rgb(color: str) -> np.ndarray:
    return np.array([int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)])


def _luminance(rgb: np.ndarray) -> float:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _contrast(one: np.ndarray, other: np.ndarray) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
