"""What Python draws is what the browser draws, and each step is what it says."""

import base64
import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dino_core.errors import UserError
from dino_core.lenses import LensPayload, paint
from dino_core.lenses.attention import Attention
from dino_core.lenses.colormap import ANCHORS, table
from dino_core.lenses.paint import Style, painted, painted_heads, staged

OVERLAY = Path(__file__).resolve().parents[2] / "apps" / "assets" / "overlay.js"
GRID = (9, 13)


def payload_of(seed: int = 0, heads: int = 3) -> LensPayload:
    maps = np.random.default_rng(seed).gamma(0.5, size=(1, heads, *GRID)).astype(np.float32)
    maps /= maps.sum(axis=(-2, -1), keepdims=True)
    return LensPayload.from_attention(Attention(maps, (72, 104), (72, 104), 8, "small", "0"))


def photo_of(height: int, width: int) -> np.ndarray:
    """Colors without hard edges, as photos have them."""
    small = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    smooth = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth)


# -- the browser's twin -------------------------------------------------------------------------

# Mounts the overlay as a page does, waits until it has drawn, and returns the drawing as a PNG.
DRAW = """async ([payload, image, state, anchors, alike]) => {
    Object.assign(LENS_COLORS, anchors);
    const element = document.body.appendChild(document.createElement("div"));
    const ask = alike && (async () => ({payload, similarity: alike}));
    const lens = mountLens(element, {payload: bytesFromBase64(payload), image, state, ask});
    await lens.ready;
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    await frame();
    await frame();
    const drawn = element.querySelector(".lens-stage canvas").toDataURL();
    lens.destroy();
    return drawn;
}"""


@pytest.fixture
def drawn(page):
    """`drawn(payload, photo, head, style)`: what the browser draws, int [H, W, 3]."""
    page.set_content("<p>overlay</p>")
    page.add_script_tag(path=str(OVERLAY))

    def draw(
        payload: LensPayload, photo: np.ndarray, head: int, style: Style, alike=None, **more: Any
    ) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(photo).save(file, "PNG", compress_level=1)
        state = dataclasses.asdict(style) | {"layer": 0, "head": head, "colors": style.colormap}
        state |= more
        image = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        codes = base64.b64encode(payload.to_bytes()).decode()
        answer = page.evaluate(DRAW, [codes, image, state, ANCHORS, alike])
        png = base64.b64decode(answer.partition(",")[2])
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)

    return draw


def check_alike(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Within 2 of 255 on the whole; a hundredth of the pixels may be an outline's edge."""
    assert ours.shape == theirs.shape
    apart = np.abs(ours.astype(int) - theirs)
    assert apart.mean() < 2
    assert (apart.max(axis=-1) <= 12).mean() >= 0.99


STYLES = [
    Style(),
    Style("heat", 0.45, 0.6, "turbo", smooth=False),
    Style("masked", 0.7, 0.43, "viridis"),
    Style("masked", 0.9, 0.3, "gray", smooth=False),
    Style("spotlight", 0.8, 0.6),
    Style("spotlight", 0.5, 0.95, smooth=False, outline=False),
]


def test_python_draws_what_the_browser_draws(drawn):
    payload, photo = payload_of(), photo_of(450, 1200)
    for style in STYLES:
        count = int(payload.mass_mask(style.keep)[0, 1].sum())
        ours = painted(photo, payload.maps()[0, 1], style, count)
        check_alike(ours, drawn(payload, photo, 1, style))


def test_a_layer_s_mean_and_a_small_photo_are_drawn_alike(drawn):
    payload, photo = payload_of(2), photo_of(200, 300)
    ours = painted(staged(photo), payload.maps()[0].mean(axis=0), Style())
    check_alike(ours, drawn(payload, photo, -1, Style()))


def test_all_heads_at_once_are_drawn_alike(drawn):
    payload, photo, style = payload_of(3), photo_of(450, 1200), Style(opacity=0.7, keep=0.4)
    counts = payload.mass_mask(0.4)[0].sum(axis=(-2, -1)).tolist()
    ours = painted_heads(photo, payload.maps()[0], style, counts)
    check_alike(ours, drawn(payload, photo, 1, style, mode="colored"))


@pytest.mark.parametrize("keep", [0.3, 0.6])
def test_what_is_like_a_patch_is_drawn_alike(drawn, keep):
    photo, style = photo_of(450, 1200), Style("masked", 0.7, keep)
    codes = np.random.default_rng(4).integers(0, 256, GRID, dtype=np.uint8)
    codes.flat[:2] = 0, 255
    sent = {"grid": GRID, "low": 0.25, "high": 1.0, "codes": base64.b64encode(codes).decode()}
    cosines = (0.25 + 0.75 * (codes / 255)).astype(np.float32)
    shown, mask = paint.liking(cosines, keep)
    np.testing.assert_array_equal(mask, codes / 255 >= 1 - keep)
    ours = paint.with_patch(painted(photo, shown, style, int(mask.sum())), (3, 4), GRID)
    patch = {"row": 3, "column": 4}
    theirs = drawn(payload_of(), photo, -2, style, sent, **{"from": "patch", "patch": patch})
    check_alike(ours, theirs)


MARK = """([width, height, row, column, h, w]) => {
    const canvas = Object.assign(document.createElement("canvas"), {width, height});
    const context = canvas.getContext("2d");
    context.fillStyle = "rgb(128 128 128)";
    context.fillRect(0, 0, width, height);
    paintPatch(context, {row, column}, {h, w}, true);
    return canvas.toDataURL();
}"""


def test_the_patch_that_looks_is_marked_alike(page):
    page.set_content("<p>overlay</p>")
    page.add_script_tag(path=str(OVERLAY))
    answer = page.evaluate(MARK, [1200, 500, 3, 4, *GRID])
    theirs = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.partition(",")[2]))))
    ours = paint.with_patch(np.full((500, 1200, 3), 128, np.uint8), (3, 4), GRID)
    assert np.abs(ours.astype(int) - theirs[..., :3]).max() <= 12


# -- each step ----------------------------------------------------------------------------------

FLAT = np.full((60, 90, 3), (200, 100, 40), np.uint8)
ONE = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32)  # all mass on one patch


def test_a_masked_map_covers_the_kept_patches_alone():
    picture = painted(FLAT, ONE, Style("masked", 1.0, 0.5, "viridis", smooth=False, outline=False))
    assert (picture[30:, 30:60] == table("viridis")[255]).all()
    gray = round(0.3 * 200 + 0.59 * 100 + 0.11 * 40)  # W3C Compositing 1: Lum, saturation 0
    picture[30:, 30:60] = gray
    assert (picture == gray).all(), "opacity 1 takes all color from the photo"


def test_a_spotlight_darkens_all_but_the_kept_patches():
    picture = painted(FLAT, ONE, Style("spotlight", 0.5, 0.5, smooth=False, outline=False))
    assert (picture[30:, 30:60] == FLAT[0, 0]).all()
    picture[30:, 30:60] = picture[0, 0]
    assert (picture == picture[0, 0]).all()
    np.testing.assert_allclose(picture[0, 0], (100, 50, 20), atol=1)


@given(opacity=st.floats(0, 1))
def test_alpha_rises_with_the_shade_from_nearly_nothing(opacity):
    alpha = paint.alphas(opacity).astype(int)
    assert (np.diff(alpha) >= 0).all()
    np.testing.assert_allclose(alpha[[0, 255]] / 255, [opacity**2.4, opacity**0.5], atol=1 / 255)


def test_without_opacity_and_outline_the_photo_is_as_it_was():
    photo = photo_of(60, 90)
    np.testing.assert_array_equal(painted(photo, ONE, Style(opacity=0, outline=False)), photo)


@given(h=st.integers(1, 5), w=st.integers(1, 5), factor=st.integers(1, 6))
def test_bilinear_is_exact_on_a_plane_away_from_the_frame(h, w, factor):
    rows, columns = np.mgrid[:h, :w] + 0.5
    fine_rows, fine_columns = (np.mgrid[: h * factor, : w * factor] + 0.5) / factor
    enlarged = paint.bilinear(2 * rows - 3 * columns, h * factor, w * factor)
    held = 2 * fine_rows.clip(0.5, h - 0.5) - 3 * fine_columns.clip(0.5, w - 0.5)
    np.testing.assert_allclose(enlarged, held, atol=1e-5)


@given(data=st.data(), h=st.integers(1, 6), w=st.integers(1, 6))
def test_block_lines_are_the_edges_between_in_and_out(data, h, w):
    flat = data.draw(st.lists(st.booleans(), min_size=h * w, max_size=h * w))
    inside = np.array(flat).reshape(h, w)
    found = {tuple(line) for line in paint.block_lines(inside).tolist()}
    expected = set()
    for y, x in zip(*np.nonzero(inside), strict=True):
        for side in ((x, y, x + 1, y), (x, y + 1, x + 1, y + 1)):
            expected ^= {tuple(map(float, side))}  # an edge that two kept patches share is none
        for side in ((x, y, x, y + 1), (x + 1, y, x + 1, y + 1)):
            expected ^= {tuple(map(float, side))}
    assert found == expected


def test_the_level_line_of_a_slope_is_straight_and_where_it_should_be():
    slope = np.tile(np.arange(5, dtype=np.float32) / 4, (3, 1))  # at x + 0.5: x / 4
    lines = paint.level_lines(slope, 0.6)
    np.testing.assert_allclose(lines[:, [0, 2]], 2.9)  # (x - 0.5) / 4 = 0.6
    assert sorted(lines[:, [1, 3]].min(axis=1)) == [-0.5, 0.5, 1.5, 2.5]


@given(st.lists(st.floats(0, 1, width=32), min_size=12, max_size=12), st.floats(0.05, 0.95))
def test_every_end_of_a_level_line_lies_at_the_level(values, level):
    field = np.array(values, np.float32).reshape(3, 4)
    padded = np.pad(field.astype(float), 1, mode="edge")
    for x, y in paint.level_lines(field, level).reshape(-1, 2):
        x, y = x + 0.5, y + 0.5  # in samples of the padded field
        (left, fx), (top, fy) = (divmod(round(place, 9), 1) for place in (x, y))
        assert fx == 0 or fy == 0, "on an edge between two samples"
        right, bottom = min(int(left) + 1, 5), min(int(top) + 1, 4)
        left, top = int(left), int(top)
        along_x = padded[top, left] * (1 - fx) + padded[top, right] * fx
        value = along_x if fy == 0 else padded[top, left] * (1 - fy) + padded[bottom, left] * fy
        assert value == pytest.approx(level, abs=1e-6)


def test_an_outline_is_light_on_the_line_dark_beside_it_and_nothing_further_off():
    photo = np.full((600, 600, 3), 128, np.uint8)  # the unit is one pixel here
    half = np.array([[1.0, 0.0]], np.float32)
    style = Style("spotlight", 0.0, 0.5, smooth=False)
    red = painted(photo, half, style)[300, 296:304, 0].astype(float)
    dark = 0.3 * 128 + 0.7 * 6  # 4 px wide around x = 300, and 1.7 px of white on it
    light = 0.15 * dark + 0.85 * 255
    np.testing.assert_allclose(red, [128, 128, dark, light, light, dark, 128, 128], atol=0.5)


@given(count=st.integers(0, 6))
def test_a_given_number_of_patches_is_kept_the_first_among_equals(count):
    flat = np.ones((2, 3), np.float32)
    style = Style("spotlight", 1.0, smooth=False, outline=False)
    kept = painted(FLAT, flat, style, count)[15::30, 15::30].any(axis=-1)
    assert kept.ravel().tolist() == [True] * count + [False] * (6 - count)


def test_heads_are_drawn_in_colors_of_their_own_the_stronger_in_front():
    maps = np.zeros((2, 1, 3), np.float32)
    maps[0, 0] = (3, 2, 0)
    maps[1, 0] = (0, 3, 2)
    style = Style(opacity=1.0, keep=1.0, smooth=False)
    picture = painted_heads(np.full((30, 90, 3), 77, np.uint8), maps, style)
    colors = [tuple(picture[15, x]) for x in (15, 45, 75)]
    first, second = paint.head_color(0), paint.head_color(1)
    assert colors == [first, second, second]


def test_a_square_stands_around_the_patch_with_a_dark_edge():
    photo = np.full((600, 600, 3), 128, np.uint8)  # the unit is one pixel here
    red = paint.with_patch(photo, (1, 2), (6, 6))[..., 0].astype(float)
    dark = 0.15 * 128 + 0.85 * 6  # 7 px wide around x = 200, and 3 px of white on it
    thin = (128 + dark) / 2
    side = [thin, dark, (dark + 255) / 2, 255, 255, (dark + 255) / 2, dark, thin]
    np.testing.assert_allclose(red[150, 196:204], side, atol=0.5)
    np.testing.assert_allclose(red[196:204, 250], side[::-1], atol=0.5)
    np.testing.assert_allclose(red[150, 296:304], side, atol=0.5)
    assert red[199, 199] == 255, "its corners are square"
    red[96:204, 196:304] = 128
    assert (red == 128).all()


def test_a_photo_is_shown_between_1200_and_1400_pixels():
    for given_size, shown in [
        ((100, 200), (600, 1200)),
        ((1300, 650), (1300, 650)),
        ((1500, 3000), (700, 1400)),
    ]:
        assert staged(np.zeros((*given_size, 3), np.uint8)).shape[:2] == shown


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"mode": "glow"}, "mode 'glow': unknown; use one of heat"),
        ({"opacity": 1.1}, "opacity 1.1"),
        ({"keep": float("nan")}, "keep nan"),
        ({"colormap": "jet"}, "color map 'jet'"),
    ],
)
def test_a_style_that_cannot_be_drawn_is_a_sentence(values, says):
    with pytest.raises(UserError, match=says):
        Style(**values)


def test_the_browser_has_the_same_color_maps():
    block = re.search(r"const LENS_COLORS = \{(.*?)\n\};", OVERLAY.read_text("utf-8"), re.DOTALL)
    assert block
    maps = re.findall(r'(\w+):((?:\s*"[^"]*"\s*\+?)+)', block[1])
    assert {name: "".join(re.findall(r'"([^"]*)"', text)) for name, text in maps} == ANCHORS
