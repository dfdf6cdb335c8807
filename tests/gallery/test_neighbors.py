"""Exact search against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_core.gallery.neighbors import nearest, neighbor_graph
from dino_core.rng import generator


def unit(n: int, dim: int, *key: str) -> np.ndarray:
    features = generator(0, *key).standard_normal((n, dim)).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@given(st.integers(1, 60), st.integers(1, 30), st.integers(1, 25), st.floats(0, 1))
def test_it_is_brute_force(n: int, queries: int, k: int, share: float) -> None:
    features, query = unit(n, 7, "features"), unit(queries, 7, "queries")
    allowed = generator(0, "allowed").random(n) < share
    rows, scores = nearest(features, query, k, allowed)
    similarity = np.where(allowed, query @ features.T, -np.inf)
    expected = np.argsort(-similarity, axis=1, kind="stable")[:, : min(k, allowed.sum())]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(similarity, expected, 1), atol=1e-6)


def test_equal_scores_come_in_the_order_of_rows() -> None:
    features = np.repeat(unit(1, 5, "copy"), 6, axis=0)
    rows, _ = nearest(features, features[:1], 6)
    assert rows[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_straight_on_a_memory_map(tmp_path) -> None:
    features = unit(50, 6, "mapped")
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    for allowed in (None, np.arange(50) % 2 == 0):
        for found, expected in zip(
            nearest(mapped, features[:3], 4, allowed),
            nearest(features, features[:3], 4, allowed),
            strict=True,
        ):
            np.testing.assert_array_equal(found, expected)


def test_graph_holds_the_others() -> None:
    features = unit(3000, 6, "graph")  # more than one chunk
    rows, scores = neighbor_graph(features, 5)
    similarity = features @ features.T
    np.fill_diagonal(similarity, -np.inf)
    np.testing.assert_array_equal(rows, np.argsort(-similarity, axis=1, kind="stable")[:, :5])
    np.testing.assert_allclose(scores, np.take_along_axis(similarity, rows, 1), atol=1e-6)


def test_graph_of_many_exact_copies_never_holds_the_image_itself() -> None:
    features = np.repeat(unit(2, 5, "copies"), 40, axis=0)
    rows, scores = neighbor_graph(features, 5)
    assert not (rows == np.arange(80)[:, None]).any()
    np.testing.assert_allclose(scores, 1, atol=1e-6)


@pytest.mark.parametrize(("n", "k"), [(0, 0), (1, 0), (2, 1), (4, 3)])
def test_graph_of_fewer_images_than_neighbors(n: int, k: int) -> None:
    rows, scores = neighbor_graph(unit(n, 5, "few"), 30)
    assert rows.shape == scores.shape == (n, k)
