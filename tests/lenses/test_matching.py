"""Matching heads: permutations are found, scale does not count, and the pairing is the best."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_core.errors import UserError
from dino_core.lenses.matching import match_heads, on_grid


def maps(seed: int, heads: int = 4, h: int = 5, w: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).random((heads, h, w))


@given(seed=st.integers(0, 999), order=st.permutations(range(6)), scale=st.floats(1e-6, 1e6))
def test_permuted_and_scaled_heads_are_found_exactly(seed, order, scale):
    first = maps(seed, heads=6)
    second = first[order] * scale + 0.5 * scale
    found = match_heads(first, second)
    assert [pair.first for pair in found.pairs] == list(range(6))
    assert [order[pair.second] for pair in found.pairs] == list(range(6))
    assert found.mean == pytest.approx(1, abs=1e-6)
    assert not found.alone_first and not found.alone_second


def test_a_case_by_hand():
    """Left, right and top; the other model has them in another order and half as strong."""
    left, right = np.array([[1, 0], [1, 0]]), np.array([[0, 1], [0, 1]])
    top = np.array([[1, 1], [0, 0]])
    found = match_heads(np.stack([left, right, top]), np.stack([top, left, right]) / 2)
    assert [(pair.first, pair.second) for pair in found.pairs] == [(0, 1), (1, 2), (2, 0)]
    np.testing.assert_allclose(found.similarity, [[0, 1, -1], [0, -1, 1], [1, 0, 0]], atol=1e-12)
    assert found.sentence().startswith("3 of 3 pairs of heads look alike")
    assert "3 of them under another number; mean correlation 1.00." in found.sentence()


@given(seed=st.integers(0, 999), heads=st.integers(1, 5), others=st.integers(1, 5))
def test_no_other_pairing_is_better(seed, heads, others):
    """Against all of them: the sum of correlations, which numpy's corrcoef gives, is the largest"""
    first, second = maps(seed, heads), maps(seed + 1, others)
    found = match_heads(first, second)
    rows = np.concatenate([first.reshape(heads, -1), second.reshape(others, -1)])
    corr = np.corrcoef(rows)[:heads, heads:] if heads + others > 1 else np.ones((1, 1))
    np.testing.assert_allclose(found.similarity, corr, atol=1e-12)
    few = corr if heads <= others else corr.T
    best = max(
        sum(few[i, j] for i, j in enumerate(chosen))
        for chosen in permutations(range(few.shape[1]), few.shape[0])
    )
    assert sum(pair.similarity for pair in found.pairs) == pytest.approx(best)
    assert len(found.pairs) == min(heads, others)


def test_the_greedy_choice_is_not_taken_where_it_costs_more():
    """0 likes both, 1 only the first: 0 has to give way (a greedy match takes 0-0 first)."""
    u, v = np.array([[[3, -1, -1, -1]]]) / 12**0.5, np.array([[[0, 2, -1, -1]]]) / 6**0.5
    first = np.concatenate([0.8 * u + 0.6 * v, u])
    second = np.concatenate([0.9 * u + np.sqrt(0.19) * v, v])
    found = match_heads(first, second)
    assert found.similarity[0].argmax() == 0
    assert [pair.second for pair in found.pairs] == [1, 0]


def test_different_numbers_of_heads_leave_some_alone():
    first = maps(0, heads=5)
    found = match_heads(first, first[[3, 1]])
    assert [(pair.first, pair.second) for pair in found.pairs] == [(1, 1), (3, 0)]
    assert (found.alone_first, found.alone_second) == ((0, 2, 4), ())
    assert found.partner(3) == 0 and found.partner(4) is None
    assert "3 without a partner" in found.sentence()
    back = match_heads(first[[3, 1]], first)
    assert (back.alone_first, back.alone_second) == ((), (0, 2, 4))
    np.testing.assert_allclose(back.similarity, found.similarity.T, atol=1e-12)


@given(seed=st.integers(0, 99), factor=st.integers(1, 4))
def test_a_finer_grid_of_the_same_maps_changes_nothing(seed, factor):
    first = maps(seed)
    fine = np.kron(first, np.ones((1, factor, factor)))[[2, 0, 3, 1]]
    found = match_heads(first, fine)
    assert found.grid == (5, 7)
    assert [pair.second for pair in found.pairs] == [1, 3, 0, 2]
    assert found.mean == pytest.approx(1)


@given(h=st.integers(1, 9), w=st.integers(1, 9), down=st.integers(1, 9), across=st.integers(1, 9))
def test_averaging_keeps_the_mean_and_commutes_with_flips(h, w, down, across):
    some = maps(h * w, 2, h, w)
    coarse = on_grid(some, (down, across))
    assert coarse.shape == (2, down, across)
    np.testing.assert_allclose(coarse.mean((1, 2)), some.mean((1, 2)))
    np.testing.assert_allclose(
        on_grid(some[:, ::-1, ::-1], (down, across)), coarse[:, ::-1, ::-1], atol=1e-12
    )


def test_a_patch_between_two_cells_counts_in_both():
    np.testing.assert_allclose(on_grid(np.array([[[3.0, 6, 9]]]), (1, 2)), [[[4, 8]]])


def test_grids_of_other_shapes_meet_on_the_coarser_side_of_each():
    assert match_heads(maps(0, 2, 4, 9), maps(1, 2, 6, 5)).grid == (4, 5)


def test_a_flat_map_is_like_none():
    first = maps(0, heads=2).astype(np.float32)
    first[0] = 0.1
    found = match_heads(first, first[::-1])
    np.testing.assert_array_equal(found.similarity[0], 0)
    assert found.similarity[1, 0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (np.zeros((3, 3)), r"shape \(3, 3\).*give \[heads, h, w\]"),
        (np.zeros((0, 3, 3)), r"shape \(0, 3, 3\)"),
        (np.full((1, 2, 2), np.nan), "not numbers"),
    ],
)
def test_what_is_refused(bad, said):
    with pytest.raises(UserError, match=said):
        match_heads(maps(0), bad)
    with pytest.raises(UserError, match=said):
        match_heads(bad, maps(0))
