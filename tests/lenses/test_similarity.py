"""Patch similarity and mutual neighbors: against brute force, and the laws that they keep."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dino_core.errors import UserError
from dino_core.lenses import similarity as lens
from dino_core.lenses.similarity import best_match, matches, similarity
from dino_core.lenses.tokens import Tokens, read_tokens


def tokens_of(patches: np.ndarray, model: str = "a") -> Tokens:
    """`patches` [h, w, D] of any length as tokens of a model; nothing else of them counts here."""
    norms = np.linalg.norm(patches, axis=-1)
    unit = (patches / np.where(norms > 0, norms, 1)[..., None]).astype(np.float32)
    height, width = norms.shape
    return Tokens(
        patches=unit,
        norms=norms.astype(np.float32),
        keys=unit,
        cls=unit[0, 0],
        image_size=(8 * height, 8 * width),
        source_size=(8 * height, 8 * width),
        patch_size=8,
        model=model,
        model_hash=f"hash of {model}",
    )


def random_tokens(seed: int, height: int, width: int, dim: int = 6) -> Tokens:
    return tokens_of(np.random.default_rng(seed).standard_normal((height, width, dim)))


def as_set(found: lens.Matches) -> set[tuple[tuple[int, ...], tuple[int, ...], float]]:
    rows = zip(found.first.tolist(), found.second.tolist(), found.cosines.tolist(), strict=True)
    return {(tuple(first), tuple(second), cosine) for first, second, cosine in rows}


def swapped(found: lens.Matches) -> set[tuple[tuple[int, ...], tuple[int, ...], float]]:
    return {(second, first, cosine) for first, second, cosine in as_set(found)}


# -- one patch ----------------------------------------------------------------------------------


def test_cosines_by_hand():
    half = np.sqrt(0.5)
    tokens = tokens_of(np.array([[[1.0, 0], [0, 2]], [[-3, 0], [5, 5]]]))
    np.testing.assert_allclose(similarity(tokens, 0, 0), [[1, 0], [-1, half]], atol=1e-7)
    np.testing.assert_allclose(similarity(tokens, 1, 1), [[half, half], [-half, 1]], atol=1e-7)
    other = tokens_of(np.array([[[0.0, 1], [1, 1], [-1, -1]]]))
    np.testing.assert_allclose(similarity(tokens, 0, 1, other), [[1, half, -half]], atol=1e-7)
    assert similarity(tokens, 0, 1, other).dtype == np.float32


def test_of_a_model_s_own_tokens(model):
    image = np.random.default_rng(1).integers(0, 256, (40, 64, 3), np.uint8)
    tokens = read_tokens(model, image, size=40)
    assert tokens.grid == (5, 8)
    flat = tokens.patches.reshape(40, -1)
    alike = np.array([[similarity(tokens, r, c) for c in range(8)] for r in range(5)])
    alike = alike.reshape(40, 40)
    np.testing.assert_array_equal(np.diag(alike), 1)
    np.testing.assert_array_equal(alike, alike.T)
    np.testing.assert_allclose(alike, flat @ flat.T, atol=1e-6)


def test_a_patch_without_length_is_like_nothing():
    tokens = tokens_of(np.array([[[0.0, 0], [1, 0]]]))
    assert similarity(tokens, 0, 0).tolist() == [[0, 0]]


def test_the_best_match_is_the_highest_of_all():
    first, second = random_tokens(0, 3, 4), random_tokens(1, 5, 2)
    for row, column in np.ndindex(3, 4):
        everywhere = np.einsum("hwd,d->hw", second.patches, first.patches[row, column])
        best_row, best_column, cosine = best_match(first, row, column, second)
        assert cosine == pytest.approx(everywhere.max(), abs=1e-6)
        assert everywhere[best_row, best_column] == everywhere.max()


def test_of_equally_near_patches_the_first_wins():
    first = tokens_of(np.array([[[1.0, 0.3]]]))
    second = tokens_of(np.array([[[0.0, 1], [1, 0]], [[2, 0], [1, -9]]]))
    assert best_match(first, 0, 0, second)[:2] == (0, 1)


@pytest.mark.parametrize(("row", "column"), [(-1, 0), (3, 0), (0, 4), (0, -1)])
def test_a_place_outside_is_refused(row, column):
    tokens = random_tokens(0, 3, 4)
    with pytest.raises(UserError, match=f"row {row}, column {column}: the image has 3 rows and 4"):
        similarity(tokens, row, column)


def test_another_model_s_patches_are_refused():
    mine, other = random_tokens(0, 2, 2), replace(random_tokens(1, 2, 2), model_hash="else")
    for compare in (
        lambda: similarity(mine, 0, 0, other),
        lambda: best_match(mine, 0, 0, other),
        lambda: matches(mine, other),
    ):
        with pytest.raises(UserError, match="cannot be compared: the models differ"):
            compare()


# -- pairs --------------------------------------------------------------------------------------


def brute_force(first: Tokens, second: Tokens) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """One loop over all pairs, each held against its whole row and column."""
    a = first.patches.reshape(-1, first.patches.shape[-1]).astype(np.float64)
    b = second.patches.reshape(-1, second.patches.shape[-1]).astype(np.float64)
    distances = ((a[:, None] - b[None]) ** 2).sum(axis=-1)
    return {
        (divmod(i, first.grid[1]), divmod(j, second.grid[1]))
        for i, j in np.ndindex(*distances.shape)
        if distances[i, j] == distances[i].min() == distances[:, j].min()
    }


grids = st.tuples(st.integers(1, 5), st.integers(1, 5))


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), one=grids, two=grids, block=st.integers(1, 60))
def test_mutual_neighbors_are_those_of_brute_force(seed, one, two, block):
    first, second = random_tokens(seed, *one), random_tokens(seed + 1, *two)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lens, "_BLOCK", block)
        found = matches(first, second)
    assert {(one, two) for one, two, _ in as_set(found)} == brute_force(first, second)
    assert len(found) == len(as_set(found)) >= 1  # the nearest pair of all is always mutual
    assert (np.diff(found.cosines) <= 0).all()
    for (r, c), (row, column), cosine in as_set(found):
        assert cosine == pytest.approx(first.patches[r, c] @ second.patches[row, column], abs=1e-6)


def few_kinds(seed: int, height: int, width: int) -> Tokens:
    """Patches of three kinds only, so that nearly all neighbors are tied."""
    kinds = np.random.default_rng(0).standard_normal((3, 7))
    return tokens_of(kinds[np.random.default_rng(seed).integers(0, 3, (height, width))])


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    one=grids,
    two=grids,
    block=st.integers(1, 60),
    make=st.sampled_from([random_tokens, few_kinds]),
)
def test_swapping_the_images_swaps_the_pairs(seed, one, two, block, make):
    first, second = make(seed, *one), make(seed + 1, *two)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lens, "_BLOCK", block)
        assert swapped(matches(first, second)) == as_set(matches(second, first))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    grid=grids,
    block=st.integers(1, 60),
    make=st.sampled_from([random_tokens, few_kinds]),
)
def test_an_image_matches_itself_patch_by_patch(seed, grid, block, make):
    tokens = make(seed, *grid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lens, "_BLOCK", block)
        found = matches(tokens, tokens)
    assert found.first.tolist() == found.second.tolist() == [list(p) for p in np.ndindex(*grid)]
    np.testing.assert_array_equal(found.cosines, 1)


def test_a_shifted_image_is_found_shifted():
    """Two crops of one picture: what both show is matched, whatever lies around it."""
    whole = np.random.default_rng(5).standard_normal((9, 12, 16))
    first, second = tokens_of(whole[:7, :8]), tokens_of(whole[2:, 3:])
    found = matches(first, second)
    shared = found.cosines > 0.999
    assert shared.sum() == 5 * 5
    np.testing.assert_array_equal(found.first[shared] - found.second[shared], [[2, 3]] * 25)
    assert shared[:25].all()  # best first


def test_only_a_block_of_all_cosines_is_held():
    """4,096 x 4,096 of them would take 67 MB in float32, and 134 in float64."""
    first, second = random_tokens(0, 64, 64, dim=8), random_tokens(1, 64, 64, dim=8)
    tracemalloc.start()
    matches(first, second)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 2**20
