"""Pictures of maps: nearest enlargement, colors, blending, outlines."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_core.errors import UserError
from dino_core.lenses import render
from dino_core.lenses.colormap import ANCHORS, codes, colored, table

GRID = np.arange(6, dtype=np.float32).reshape(2, 3)
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


@given(h=st.integers(1, 5), w=st.integers(1, 5), factor=st.integers(1, 4))
def test_whole_factors_repeat_patches(h, w, factor):
    grid = np.arange(h * w).reshape(h, w)
    enlarged = render.nearest(grid, h * factor, w * factor)
    np.testing.assert_array_equal(enlarged, np.kron(grid, np.ones((factor, factor), int)))


@given(
    h=st.integers(1, 6), w=st.integers(1, 6), height=st.integers(1, 40), width=st.integers(1, 40)
)
def test_flips_commute_with_enlarging(h, w, height, width):
    """Away from ties at patch borders, which odd sizes can have."""
    grid = np.arange(h * w).reshape(h, w)
    if height % h or width % w:
        return
    flipped = render.nearest(grid[::-1, ::-1], height, width)
    np.testing.assert_array_equal(flipped, render.nearest(grid, height, width)[::-1, ::-1])


def test_any_leading_axes():
    assert render.nearest(np.zeros((4, 3, 2, 5)), 7, 9).shape == (4, 3, 7, 9)


@pytest.mark.parametrize("name", ["viridis", "inferno", "magma", "gray"])
def test_color_tables_go_from_dark_to_light(name):
    colors = table(name)
    assert colors.shape == (256, 3)
    luminance = colors @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > -1).all() and luminance[-1] - luminance[0] > 150


# Entries 3, 31, 59, .. 227, 255 of the published tables, which lie between our anchors, too.
PUBLISHED = {
    "viridis": "450559 472c7a 3d4d8a 306a8e 25848e 1f9f88 37b878 6ece58 b5de2b fde725",
    "inferno": "010108 1f0c48 4f0d6c 7c1d6d a82e5f d04545 ee6a24 fb9b06 f7d13d fcffa4",
    "magma": "010108 1c1044 491078 752181 a1307e cf4070 f2625d fd9668 feca8d fcfdbf",
    "turbo": "341b51 4669e0 31aff5 1de7b2 79fe59 cbed34 fbb838 f56918 ca2a04 7a0403",
    "gray": "030303 1f1f1f 3b3b3b 575757 737373 8f8f8f ababab c7c7c7 e3e3e3 ffffff",
}


@pytest.mark.parametrize("name", ANCHORS)
def test_color_tables_are_near_the_originals(name):
    published = np.array([list(bytes.fromhex(code)) for code in PUBLISHED[name].split()])
    drawn = table(name)[[*range(3, 228, 28), 255]].astype(int)
    assert np.abs(drawn - published).max() <= 3


def test_unknown_color_map_is_a_sentence():
    with pytest.raises(UserError, match=r"jet.*use one of inferno"):
        table("jet")


def test_values_outside_are_clipped():
    np.testing.assert_array_equal(codes(np.array([-1, 0, 0.5, 1, 7.0])), [0, 0, 128, 255, 255])


def test_heat_map_is_stretched_between_least_and_largest():
    picture = np.asarray(render.heat(GRID, 4, 6, "viridis").convert("RGB"))
    np.testing.assert_array_equal(picture[0, 0], table("viridis")[0])
    np.testing.assert_array_equal(picture[-1, -1], table("viridis")[255])
    flat = np.asarray(render.heat(np.full((2, 2), 0.3), 4, 4).convert("RGB"))
    assert (flat == table("inferno")[0]).all()


def test_opacity_blends_between_photo_and_heat():
    np.testing.assert_array_equal(render.overlay(IMAGE, GRID, 0.0), IMAGE)
    heat = colored(render.nearest(render.relative(GRID), 40, 60), "inferno")
    np.testing.assert_array_equal(render.overlay(IMAGE, GRID, 1.0), heat)
    half = render.overlay(IMAGE, GRID, 0.5).astype(int)
    assert np.abs(half - (IMAGE.astype(int) + heat) / 2).max() <= 0.5


def test_cutout_keeps_the_inside_and_dims_the_rest():
    mask = np.array([[True, False]])
    cut = render.cutout(IMAGE, mask)
    np.testing.assert_array_equal(cut[:, :30], IMAGE[:, :30])
    assert cut[:, 30:].max() < 60 and (cut[:, 30:, 0] == cut[:, 30:, 2]).all()


def test_outline_runs_along_the_border_inside_the_mask():
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:4] = True
    drawn = render.outline(IMAGE, mask, color=(255, 0, 0))
    inside = render.nearest(mask, 40, 60)
    red = (drawn == (255, 0, 0)).all(-1)
    assert red[10, 20:40].all() and red[29, 20:40].all() and red[10:30, 20].all()
    np.testing.assert_array_equal(drawn[~inside], IMAGE[~inside])
    np.testing.assert_array_equal(drawn[15:25, 25:35], IMAGE[15:25, 25:35])


def test_an_outline_does_not_follow_the_frame():
    assert (render.outline(IMAGE, np.ones((2, 2), bool)) == IMAGE).all()


@pytest.mark.parametrize(
    ("shape", "shown"),
    [((100, 200), (256, 512)), ((600, 800), (600, 800)), ((3000, 4000), (768, 1024))],
)
def test_pictures_are_neither_tiny_nor_huge(shape, shown):
    assert render.display_size(*shape) == shown
