"""TokenCut against its definition, on graphs whose cut is known, and where nothing can be cut."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import linalg

from dino_core.errors import UserError
from dino_core.lenses.objects import (
    ObjectMask,
    bipartition,
    object_mask,
    padded_keys,
    second_smallest,
)
from dino_core.lenses.render import nearest
from dino_core.lenses.tokens import Tokens, read_tokens


def tokens_of(keys: np.ndarray, source: tuple[int, int] | None = None) -> Tokens:
    h, w, width = keys.shape
    keys = np.asarray(keys, dtype=np.float32)
    unit = np.zeros_like(keys)
    size = (8 * h, 8 * w)
    return Tokens(
        unit, unit[..., 0], keys, np.zeros(width), size, source or size, 8, "made up", "0" * 64
    )


def painted(*rows: str) -> np.ndarray:
    """Keys [h, w, 26]: each letter a direction of its own, "." the same as "a"."""
    letters = np.array([[ord(c) - ord("a") if c != "." else 0 for c in row] for row in rows])
    return np.eye(26)[letters]


def wavy(h: int, w: int, width: int, seed: int) -> np.ndarray:
    """Keys that change smoothly over the grid, as a photo's do."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w] / max(h, w)
    turns, phases = random.normal(size=(2, width)) * 6, random.uniform(0, 6.28, width)
    return np.sin(y[..., None] * turns[0] + x[..., None] * turns[1] + phases)


def plain_cut(keys: np.ndarray, tau: float) -> tuple[np.ndarray, np.ndarray, float]:
    """The paper, word for word: edges one by one, the generalized problem by LAPACK, the mean."""
    flat = keys.reshape(-1, keys.shape[-1]).astype(np.float64)
    n = len(flat)
    edges = np.full((n, n), 1e-5)
    for i in range(n):
        for j in range(n):
            cosine = flat[i] @ flat[j] / np.sqrt((flat[i] @ flat[i]) * (flat[j] @ flat[j]))
            if i == j or cosine >= tau:
                edges[i, j] = 1
    degree = np.diag(edges.sum(axis=1))
    values, vectors = linalg.eigh(degree - edges, degree)
    y = vectors[:, 1]
    side = y > y.mean()
    if not side[np.abs(y).argmax()]:
        side = ~side
    return side.reshape(keys.shape[:2]), y.reshape(keys.shape[:2]), values[1]


def plain_component(mask: np.ndarray, seed: tuple[int, int]) -> np.ndarray:
    """Flood fill by edge neighbors."""
    filled, edge = np.zeros_like(mask), [seed]
    while edge:
        row, column = edge.pop()
        in_grid = 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]
        if in_grid and mask[row, column] and not filled[row, column]:
            filled[row, column] = True
            edge += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    return filled


@pytest.mark.parametrize(
    ("h", "w", "width", "tau"),
    [(6, 9, 8, 0.2), (11, 13, 8, 0.2), (13, 12, 5, 0.2), (12, 11, 12, 0.5), (1, 140, 6, 0.2)],
)
@pytest.mark.parametrize("center", [False, True])
def test_agrees_with_the_plain_twin(h, w, width, tau, center):
    """Both solvers: LAPACK on small grids, Lanczos on larger ones."""
    keys = wavy(h, w, width, seed=h * w).astype(np.float32).astype(np.float64)
    found = object_mask(tokens_of(keys + 0.1), tau=tau, center=center)
    shown = np.float64(np.float32(keys + 0.1))
    side, y, cost = plain_cut(shown - shown.mean(axis=(0, 1)) if center else shown, tau)
    assert found.seed is not None
    assert found.cost == pytest.approx(cost, abs=1e-9)
    np.testing.assert_array_equal(found.foreground, side)
    np.testing.assert_array_equal(found.component, plain_component(side, found.seed))
    assert found.y[found.seed] > 0
    np.testing.assert_allclose(found.y, y * np.sign(y[found.seed]), atol=1e-7)


def test_the_solution_solves_the_published_equation():
    """(D - E) y = lambda D y, D-orthogonal to the constant, of length 1 under D."""
    random = np.random.default_rng(3)
    edges = random.uniform(0.01, 1, (300, 300))
    edges = edges + edges.T
    y, value = second_smallest(edges)
    degree = edges.sum(axis=1)
    np.testing.assert_allclose(degree * y - edges @ y, value * degree * y, atol=1e-8)
    assert (degree * y).sum() == pytest.approx(0, abs=1e-8)
    assert (degree * y * y).sum() == pytest.approx(1)


def test_two_kinds_of_patches_are_told_apart_and_the_smaller_is_the_object():
    keys = painted(".......", "..bb...", "..bb.b.", ".......", "b......")
    cut = object_mask(tokens_of(keys))
    is_b = keys[..., 1] == 1
    np.testing.assert_array_equal(cut.foreground, is_b)
    assert cut.seed == (1, 2)  # all of b are alike: the first in reading order
    assert cut.component.sum() == 4
    assert cut.box == (2, 1, 4, 3)
    assert cut.box_pixels == (16, 8, 32, 24)
    assert cut.joined == pytest.approx((6 * 5 + 29 * 28) / (35 * 34))
    assert not cut.centered


def test_the_cost_of_a_cut_counted_by_hand():
    """Two squares of 8 patches: 8 x 8 weak edges between them, 64 strong ones in each."""
    cut = object_mask(tokens_of(painted("aaaabbbb", "aaaabbbb")))
    between, volume = 64e-5, 64 + 64e-5
    assert cut.cost == pytest.approx(between / volume + between / volume, rel=1e-6)


def test_neither_the_length_of_keys_nor_a_turn_of_all_matters():
    keys = wavy(9, 10, 6, seed=1)
    turn, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(6, 6)))
    one = object_mask(tokens_of(keys))
    other = object_mask(tokens_of(3 * keys @ turn))
    np.testing.assert_array_equal(one.foreground, other.foreground)
    assert one.cost == pytest.approx(other.cost, abs=1e-9)


def test_what_all_keys_share_hides_the_cut_until_it_is_taken_off():
    keys = 2 * wavy(10, 12, 6, seed=2)
    shared = 1000 * np.ones(6)
    as_published = object_mask(tokens_of(keys + shared), center=False)
    assert as_published.joined == 1
    assert not as_published.foreground.any()
    by_itself = object_mask(tokens_of(keys + shared))
    assert by_itself.centered
    np.testing.assert_array_equal(
        by_itself.foreground, object_mask(tokens_of(keys), center=True).foreground
    )


@pytest.mark.parametrize(
    "keys",
    [
        np.ones((4, 5, 3)),
        np.full((5, 3, 4), 0.1) * np.array([1, 2, 3, 4]),  # not exact in binary
        np.zeros((3, 3, 2)),
        np.ones((1, 1, 3)),
        np.zeros((1, 1, 3)),
        np.eye(6).reshape(2, 3, 6),  # none like another
        np.eye(2).reshape(1, 2, 2),
        np.full((3, 3, 2), np.nan),
    ],
    ids=["alike", "alike, rounded", "no keys", "one", "one, no key", "unlike", "two", "broken"],
)
@pytest.mark.parametrize("center", [None, False, True])
def test_where_there_is_nothing_to_cut_there_is_no_object(keys, center):
    cut = object_mask(tokens_of(keys), center=center)
    assert not cut.foreground.any()
    assert not cut.component.any()
    assert cut.foreground.shape == cut.component.shape == cut.y.shape == keys.shape[:2]
    assert not cut.y.any()
    assert (cut.seed, cut.box, cut.box_pixels, cut.cost) == (None, None, None, 0)


def test_a_single_row_and_a_single_column():
    row = object_mask(tokens_of(painted("aaabbaaaa")))
    column = object_mask(tokens_of(painted(*"aaabbaaaa")))
    np.testing.assert_array_equal(np.flatnonzero(row.foreground), [3, 4])
    np.testing.assert_array_equal(row.foreground, column.foreground.T)
    assert row.box == (3, 0, 5, 1)
    assert column.box == (0, 3, 1, 5)


def test_the_box_in_pixels_bounds_the_mask_as_pictures_show_it():
    random = np.random.default_rng(0)
    plain = object_mask(tokens_of(painted("aab", "aaa")))
    for _ in range(200):
        h, w = random.integers(1, 9, 2)
        component = np.zeros((h, w), dtype=bool)
        top, left = random.integers(0, h), random.integers(0, w)
        component[top : random.integers(top, h) + 1, left : random.integers(left, w) + 1] = True
        source = (int(random.integers(h, 60)), int(random.integers(w, 60)))
        cut = replace(plain, component=component, source_size=source)
        rows, columns = np.nonzero(nearest(component, *source))
        expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert cut.box_pixels == expected


def test_a_box_of_a_source_coarser_than_the_grid_has_a_pixel():
    cut = replace(object_mask(tokens_of(painted("abaaaaaa"))), source_size=(1, 3))
    assert cut.box == (1, 0, 2, 1)
    assert cut.box_pixels in {(0, 0, 1, 1), (1, 0, 2, 1)}
    last = replace(object_mask(tokens_of(painted("aaaaaaab"))), source_size=(1, 3))
    assert last.box_pixels == (2, 0, 3, 1)


def test_what_was_padded_is_cut_off():
    """2 x 3 patches of 8 px over an image of 12 x 20 px: 4 rows and 4 columns are padding."""
    cut = object_mask(tokens_of(painted("aab", "aab")))
    padded = replace(cut, source_size=(12, 20), padded=(4, 4))
    patches = np.arange(6).reshape(2, 3)
    expected = [[patches[y // 8, x // 8] for x in range(20)] for y in range(12)]
    np.testing.assert_array_equal(padded.enlarged(patches, 12, 20), expected)
    expected = [[patches[y // 16, x // 16] for x in range(40)] for y in range(24)]
    np.testing.assert_array_equal(padded.enlarged(patches, 24, 40), expected)
    assert cut.box == (2, 0, 3, 2)
    assert cut.box_pixels == (16, 0, 24, 16)
    assert padded.box_pixels == (16, 0, 20, 12)


def test_without_padding_masks_are_enlarged_as_pictures_show_them():
    random = np.random.default_rng(1)
    plain = object_mask(tokens_of(painted("aab", "aaa")))
    for _ in range(50):
        patches = random.integers(0, 9, random.integers(1, 9, 2))
        source = (int(random.integers(1, 60)), int(random.integers(1, 60)))
        height, width = random.integers(1, 60, 2)
        found = replace(plain, source_size=source).enlarged(patches, height, width)
        np.testing.assert_array_equal(found, nearest(patches, height, width))


def test_the_sign_of_the_eigenvector_does_not_matter():
    y = np.random.default_rng(4).normal(size=(7, 8))
    one, other = bipartition(y), bipartition(-y)
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])
    assert one[2] == other[2] == np.unravel_index(np.abs(y).argmax(), y.shape)


def test_every_call_gives_the_same_also_where_cuts_cost_the_same():
    """Three patches like no other: their cuts cost the same, any mix of them is a solution."""
    keys = np.concatenate([np.ones((200, 1)) @ np.eye(1, 5), np.eye(5)[1:4]]).reshape(1, 203, 5)
    cuts = [object_mask(tokens_of(keys)) for _ in range(3)]
    for cut in cuts[1:]:
        np.testing.assert_array_equal(cut.y, cuts[0].y)
    assert cuts[0].foreground[0, 200:].any()
    assert not cuts[0].foreground[0, :200].any()


def test_too_many_patches_are_refused_in_a_sentence():
    with pytest.raises(UserError, match="100 x 41 patches are too many"):
        object_mask(tokens_of(np.ones((41, 100, 1))))


def test_of_a_model(model):
    image = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    tokens = read_tokens(model, image)
    cut = object_mask(tokens)
    assert isinstance(cut, ObjectMask)
    assert cut.foreground.shape == tokens.grid
    assert cut.source_size == (60, 100)
    assert (cut.model, cut.model_hash) == (tokens.model, tokens.model_hash)
    assert (cut.component <= cut.foreground).all()


def test_padded_keys_are_of_the_normalized_image_with_zeros_around_it(model):
    """Once more with a hook on the projection, on an image that was padded by hand."""
    image = np.random.default_rng(0).integers(0, 256, (21, 34, 3), dtype=np.uint8)
    patch, width = model.backbone.patch_size, model.backbone.embed_dim
    h, w = (int(np.ceil(side / patch)) for side in image.shape[:2])
    pixels = np.zeros((h * patch, w * patch, 3), np.float32)
    pixels[:21, :34] = (image / 255 - np.array(model.info.mean)) / np.array(model.info.std)
    seen = []
    projection = model.backbone.vit.blocks[-1].attn.qkv
    handle = projection.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        model.backbone.tokens(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    handle.remove()
    expected = seen[0][0, model.backbone.num_prefix_tokens :, width : 2 * width]

    found = padded_keys(model, image)
    assert (found.grid, found.source_size) == ((h, w), (21, 34))
    assert found.padded == (h * patch - 21, w * patch - 34)
    np.testing.assert_allclose(found.keys.reshape(h * w, -1), expected, atol=1e-5)
    cut = object_mask(found)
    assert cut.padded == found.padded and cut.foreground.shape == (h, w)


def test_whole_patches_need_no_padding(model):
    side = 4 * model.backbone.patch_size
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    found, tokens = padded_keys(model, image), read_tokens(model, image, size=side)
    assert found.padded == (0, 0)
    np.testing.assert_allclose(found.keys, tokens.keys, atol=1e-6)
