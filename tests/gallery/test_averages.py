"""Mean attention and shared colors of a group: that nothing is lost, and what is averaged."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_core.errors import UserError
from dino_core.gallery import Gallery, averages
from dino_core.gallery.averages import (
    look_size,
    mean_attention,
    on_square,
    picture,
    readable,
    shared_colors,
)
from dino_core.lenses import pca
from dino_core.lenses.attention import look
from dino_core.lenses.tokens import read_tokens
from dino_core.models import Model


def stretched(one: np.ndarray, side: int) -> np.ndarray:
    """`on_square` by cutting every cell into parts that both grids have."""
    height, width = one.shape
    rows, columns = math.lcm(height, side), math.lcm(width, side)
    parts = np.repeat(np.repeat(one, rows // height, 0), columns // width, 1)
    parts = parts / (rows // height * (columns // width))
    return parts.reshape(side, rows // side, side, columns // side).sum(axis=(1, 3))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 9), st.integers(0, 99))
def test_a_map_on_another_grid_keeps_its_mass_where_it_is(height, width, side, seed):
    one = np.random.default_rng(seed).random((height, width))
    found = on_square(one, side)
    np.testing.assert_allclose(found, stretched(one, side))
    assert found.sum() == pytest.approx(one.sum())
    np.testing.assert_allclose(on_square(one[::-1, ::-1], side), found[::-1, ::-1])


def test_the_mean_counts_every_image_the_same(model, scenes_gallery: Gallery, monkeypatch) -> None:
    monkeypatch.setattr(averages, "GRID", 5)  # not the 14 x 14 that these images have
    rows = np.array([2, 7, 30])
    found = mean_attention(model, scenes_gallery, rows)
    assert sorted(found.rows) == rows.tolist()
    expected = np.zeros_like(found.maps)
    for row in rows:
        maps = look(model, scenes_gallery.image(row), size=look_size(model)).maps
        for place in np.ndindex(maps.shape[:2]):
            expected[place] += stretched(maps[place] / maps[place].sum(), 5) / 3
    np.testing.assert_allclose(found.maps, expected, rtol=1e-5)
    np.testing.assert_allclose(found.maps.sum(axis=(-2, -1)), 1)
    assert not np.array_equal(found.picture(0), found.picture(1))
    assert found.picture().shape == (196, 196, 3)


def test_a_large_group_is_sampled_always_alike(model: Model, scenes_gallery: Gallery) -> None:
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int, _: str) -> None:
        told.append((done, total))

    rows = np.arange(60)
    found = mean_attention(model, scenes_gallery, rows, most=4, progress=tell)
    assert len(set(found.rows)) == 4
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert mean_attention(model, scenes_gallery, rows, most=4).rows == found.rows


def test_colors_are_those_of_one_basis(model: Model, scenes_gallery: Gallery) -> None:
    found = shared_colors(model, scenes_gallery, np.arange(40, 55))
    assert [one.row for one in found] == list(range(40, 52))  # the first twelve, in order
    tokens = [
        read_tokens(model, scenes_gallery.image(row), size=look_size(model))
        for row in range(40, 52)
    ]
    basis = pca.fit(tokens)
    for one, own in zip(found, tokens, strict=True):
        np.testing.assert_array_equal(one.colors, pca.colors(basis, own))
        assert one.photo.shape == (160, 160, 3)


def test_images_that_cannot_be_read_are_passed_over(scenes_gallery: Gallery, monkeypatch) -> None:
    real = Gallery.image

    def some(self: Gallery, row: int) -> np.ndarray:
        if row % 2:
            raise UserError("gone")
        return real(self, row)

    monkeypatch.setattr(Gallery, "image", some)
    found = readable(scenes_gallery, np.arange(10, 20), 3, in_order=True)
    assert [row for row, _ in found] == [10, 12, 14]
    with pytest.raises(UserError, match="none of the images could be read"):
        list(readable(scenes_gallery, np.array([1, 3, 5]), 3))
    with pytest.raises(UserError, match="has no images"):
        list(readable(scenes_gallery, np.array([], int), 3))


def test_a_picture_is_brightest_where_the_map_is() -> None:
    one = np.zeros((4, 4))
    one[3, 0] = 0.2
    drawn = picture(one, 40).astype(int).sum(axis=2)
    row, column = np.unravel_index(drawn.argmax(), drawn.shape)
    assert row >= 30
    assert column < 10
    assert drawn.max() > 600  # the end of the color map, whatever the map's own scale
    np.testing.assert_array_equal(picture(one), picture(one * 1e-3))
    np.testing.assert_array_equal(picture(one), picture(one + 1))
    assert len(np.unique(picture(np.full((3, 3), 0.1)).reshape(-1, 3), axis=0)) == 1
    seen = averages.MeanAttention(np.array([[[[0.4, 0.1], [0.3, 0.2]]]]), (0,))
    assert seen.extent(0) == pytest.approx((0.4, 1.6))


def test_the_size_that_groups_are_looked_at(model: Model) -> None:
    assert look_size(model) == 14 * 16  # trained at 32 px, which has four patches
    assert averages.MOST_PATCHES == 28
