"""Outlines give their mask back; simplified they stay near; cutouts hand on nothing else."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageDraw
from scipy import ndimage

from dino_core.errors import UserError
from dino_core.lenses.outlines import polygons, rgba, to_json

masks = arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def grid(*rows: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in rows])


def filled(rings, height, width):
    """Even-odd at the pixel centers: edges of all rings crossed on the way to the left."""
    crossed = np.zeros((height, width), dtype=int)
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    for ring in rings:
        ends = np.roll(ring.points, -1, axis=0)
        for (x0, y0), (x1, y1) in zip(ring.points, ends, strict=True):
            rows = (y0 > y) != (y1 > y)
            at = x0 + (y[rows] - y0) / (y1 - y0) * (x1 - x0) if y0 != y1 else y[rows]
            crossed[rows] += x > at[:, None]
    return crossed % 2 == 1


def shoelace(points):
    following = np.roll(points, -1, axis=0)
    return (points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]).sum() / 2


def distance_to_ring(point, ring):
    """From one point to the nearest of a ring's sides."""
    nearest = np.inf
    for start, end in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        along = end - start
        share = min(max((point - start) @ along / (along @ along), 0), 1)
        nearest = min(nearest, np.linalg.norm(point - start - share * along))
    return nearest


def blob(seed: int, side: int = 90) -> np.ndarray:
    """A round shape with a wavy outline and an off-center hole."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] - side / 2
    angle, reach = np.arctan2(y, x), np.hypot(x, y)
    waves = sum(random.normal() * np.sin(k * angle + random.uniform(0, 6)) for k in range(2, 6))
    return (reach < side / 3 + 2.5 * waves) & (np.hypot(x - 5, y + 4) > side / 9)


@given(mask=masks)
def test_filled_outlines_are_the_mask_again(mask):
    rings = polygons(mask, tolerance=0)
    np.testing.assert_array_equal(filled(rings, *mask.shape), mask)
    assert sum(shoelace(ring.points) for ring in rings) == mask.sum()


@given(mask=masks)
def test_an_image_library_fills_them_alike(mask):
    """Pillow paints the corners' pixels too: at 8 times the size, minus half a pixel, it agrees."""
    picture = Image.new("1", (8 * mask.shape[1], 8 * mask.shape[0]))
    pen = ImageDraw.Draw(picture)
    painted = np.zeros(mask.shape, dtype=bool)
    for ring in polygons(mask, tolerance=0):
        pen.rectangle((0, 0, *picture.size), fill=0)
        pen.polygon([(8 * x - 0.5, 8 * y - 0.5) for x, y in ring.points.tolist()], fill=1)
        painted ^= np.asarray(picture)[4::8, 4::8]
    np.testing.assert_array_equal(painted, mask)


@given(mask=masks)
def test_rings_are_closed_ways_of_right_angles_that_never_share_an_edge(mask):
    seen = set()
    for ring in polygons(mask, tolerance=0):
        steps = np.roll(ring.points, -1, axis=0) - ring.points
        assert ((steps == 0).sum(axis=1) == 1).all()
        assert ((steps[:, 0] == 0) != (np.roll(steps[:, 0], 1) == 0)).all(), "a corner that is none"
        for (x, y), (dx, dy) in zip(ring.points.tolist(), steps.tolist(), strict=True):
            for k in range(max(abs(dx), abs(dy))):
                edge = (2 * x + np.sign(dx) * (2 * k + 1), 2 * y + np.sign(dy) * (2 * k + 1))
                assert edge not in seen
                seen.add(edge)
    padded = np.pad(mask, 1).astype(int)
    assert len(seen) == sum(np.abs(np.diff(padded, axis=axis)).sum() for axis in (0, 1))


@pytest.mark.parametrize("tolerance", [0, 1.0])
def test_nothing_has_no_outline(tolerance):
    assert polygons(np.zeros((4, 6), dtype=bool), tolerance) == []


def test_everything_is_the_frame():
    (ring,) = polygons(np.ones((4, 6), dtype=bool))
    assert ring.points.tolist() == [[0, 0], [6, 0], [6, 4], [0, 4]]
    assert not ring.hole


def test_holes_are_told_apart_and_an_island_in_a_hole_is_none():
    rings = polygons(
        grid(
            "#######",
            "#.....#",
            "#.##..#",
            "#.....#",
            "#######",
        ),
        tolerance=0,
    )
    assert [ring.hole for ring in rings] == [False, False, True]
    outer, island, hole = (ring.points.tolist() for ring in rings)
    assert outer == [[0, 0], [7, 0], [7, 5], [0, 5]]
    assert sorted(hole) == [[1, 1], [1, 4], [6, 1], [6, 4]]
    assert island == [[2, 2], [4, 2], [4, 3], [2, 3]]
    assert shoelace(rings[2].points) == -15


def test_pixels_that_touch_at_a_corner_are_two():
    rings = polygons(grid("#.", ".#"), tolerance=0)
    assert [ring.points.tolist() for ring in rings] == [
        [[0, 0], [1, 0], [1, 1], [0, 1]],
        [[1, 1], [2, 1], [2, 2], [1, 2]],
    ]


@given(mask=masks)
def test_one_outline_for_each_part_and_one_for_each_hole(mask):
    """Parts hang together by edges, the ground around them by corners, too."""
    rings = polygons(mask, tolerance=0)
    _, parts = ndimage.label(mask)
    _, grounds = ndimage.label(np.pad(~mask, 1, constant_values=True), np.ones((3, 3)))
    assert sum(not ring.hole for ring in rings) == parts
    assert sum(ring.hole for ring in rings) == grounds - 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tolerance", [0.5, 1.0, 3.0])
def test_a_simplified_outline_is_within_the_tolerance(seed, tolerance):
    mask = blob(seed)
    exact, simple = polygons(mask, 0), polygons(mask, tolerance)
    assert [ring.hole for ring in simple] == [ring.hole for ring in exact]
    for ring, shorter in zip(exact, simple, strict=True):
        assert {*map(tuple, shorter.points.tolist())} <= {*map(tuple, ring.points.tolist())}
        assert len(shorter.points) < len(ring.points)
        furthest = max(distance_to_ring(point, shorter.points) for point in ring.points)
        assert furthest <= tolerance + 1e-9


def test_a_straight_slope_of_stairs_becomes_a_triangle():
    mask = np.tri(20, dtype=bool)
    (ring,) = polygons(mask, tolerance=1)
    assert len(ring.points) <= 4
    assert len(polygons(mask, tolerance=0)[0].points) == 20 * 2 + 2  # two a stair, two ends


def test_specks_smaller_than_the_tolerance_are_left_out():
    mask = np.zeros((40, 40), dtype=bool)
    mask[2, 2] = True
    mask[10:30, 10:30] = True
    assert len(polygons(mask, tolerance=0)) == 2
    (ring,) = polygons(mask, tolerance=3)
    assert ring.points.min() == 10


@pytest.mark.parametrize("tolerance", [-1, float("nan")])
def test_a_tolerance_below_zero_is_refused(tolerance):
    with pytest.raises(UserError, match="must be 0 pixels or more"):
        polygons(np.ones((2, 2), dtype=bool), tolerance)


def test_a_cutout_keeps_the_object_and_nothing_of_the_rest():
    image = np.random.default_rng(0).integers(1, 256, (9, 7, 3), dtype=np.uint8)
    mask = np.random.default_rng(1).random((9, 7)) > 0.5
    picture = rgba(image, mask)
    assert (picture.mode, picture.size) == ("RGBA", (7, 9))
    pixels = np.asarray(picture)
    np.testing.assert_array_equal(pixels[..., 3] == 255, mask)
    np.testing.assert_array_equal(pixels[mask][:, :3], image[mask])
    assert not pixels[~mask].any()


def test_json_says_what_it_is_of():
    mask = grid("###", "#.#", "###")
    rings = polygons(mask, tolerance=0)
    text = to_json(rings, mask.shape, model="starter", model_hash="abc")
    assert json.loads(text) == {
        "version": 1,
        "image": [3, 3],
        "model": "starter",
        "model_hash": "abc",
        "polygons": [
            {"hole": ring.hole, "points": [[int(x), int(y)] for x, y in ring.points]}
            for ring in rings
        ],
    }
    assert [polygon["hole"] for polygon in json.loads(text)["polygons"]] == [False, True]
