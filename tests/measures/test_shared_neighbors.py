"""Neighbor overlap image by image, against sets and against the mean over features."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_core.measures import neighbor_consistency
from dino_core.measures.shared_neighbors import CHUNK, neighbor_overlap, overlap_by_chance


def test_by_hand():
    first = np.array([[1, 2, 3, 4], [0, 2, 3, 4], [0, 1, 3, 4]])
    second = np.array([[4, 3, 2, 1], [2, 0, 5, 6], [5, 6, 7, 8]])
    assert neighbor_overlap(first, second, 4).tolist() == [1, 0.5, 0]
    assert neighbor_overlap(first, second, 2).tolist() == [0, 1, 0]
    assert neighbor_overlap(first, second, 1).tolist() == [0, 0, 0]


@given(st.integers(0, 999), st.integers(1, 12))
def test_it_is_the_size_of_the_common_set(seed, k):
    random = np.random.default_rng(seed)
    first, second = (
        np.array([random.permutation(30)[:12] for _ in range(9)], np.int32) for _ in range(2)
    )
    expected = [len({*a[:k]} & {*b[:k]}) / k for a, b in zip(first, second, strict=True)]
    assert neighbor_overlap(first, second, k) == pytest.approx(expected)


def test_its_mean_is_the_neighbor_consistency_of_the_features():
    random = np.random.default_rng(0)
    features = [random.standard_normal((60, 8)) for _ in range(2)]
    features = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in features]
    graphs = []
    for one in features:
        similarity = one @ one.T - 9 * np.eye(60)
        graphs.append(np.argsort(-similarity, axis=1)[:, :10])
    mean = neighbor_overlap(*graphs, 7).mean()
    assert mean == pytest.approx(neighbor_consistency(*features, 7))


def test_more_images_than_are_compared_at_a_time():
    lists = np.arange(3)[None] + 5 * np.arange(CHUNK + 3)[:, None]
    other = lists.copy()
    other[-1] += 2
    overlap = neighbor_overlap(lists, other, 3)
    assert (overlap[:-1] == 1).all() and overlap[-1] == pytest.approx(1 / 3)


def test_chance_is_what_random_lists_come_to():
    random = np.random.default_rng(0)
    lists = [np.array([random.permutation(20)[:5] for _ in range(4000)]) for _ in range(2)]
    mean = neighbor_overlap(*lists, 5).mean()  # 20 others, so 21 images
    assert overlap_by_chance(21, 5) == 0.25 == pytest.approx(mean, abs=0.01)
    assert overlap_by_chance(3, 5) == 1 and overlap_by_chance(1, 1) == 0


def test_lists_that_do_not_fit_are_refused():
    lists = np.zeros((3, 4), int)
    with pytest.raises(ValueError, match="5 neighbors of 4 and 4"):
        neighbor_overlap(lists, lists, 5)
    with pytest.raises(ValueError, match="3 and 2 images"):
        neighbor_overlap(lists, lists[:2], 1)
