"""UMAP's graph: its defining law, and umap-learn's own as the reference."""

import numpy as np
import pytest

from dino_core.gallery.fuzzy import fuzzy_graph, local_scale
from dino_core.gallery.neighbors import neighbor_graph
from dino_core.rng import generator


def graph_with_copies() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """300 unit vectors, 31 of them copies of one: features, rows and distances of 14 neighbors."""
    features = generator(0, "fuzzy").standard_normal((300, 12)).astype(np.float32)
    features[100:130] = features[7]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    rows, scores = neighbor_graph(features, 14)
    return features, rows, (1 - scores).clip(min=0)


def test_memberships_sum_to_log2_of_the_neighbors() -> None:
    distances = np.sort(generator(0, "distances").random((50, 14)), axis=1) + 0.1
    rho, sigma = local_scale(distances)
    np.testing.assert_array_equal(rho[:, 0], distances[:, 0])
    sums = np.exp(-np.maximum(distances - rho, 0) / sigma).sum(axis=1)
    np.testing.assert_allclose(sums, np.log2(15), atol=1e-4)


def test_it_is_symmetric_and_a_probability() -> None:
    _, rows, distances = graph_with_copies()
    graph = fuzzy_graph(rows, distances).toarray()
    np.testing.assert_array_equal(graph, graph.T)
    assert graph.min() >= 0 and graph.max() <= 1 and not graph.diagonal().any()


@pytest.mark.soak
def test_it_is_umap_learns() -> None:
    from umap.umap_ import fuzzy_simplicial_set

    features, rows, distances = graph_with_copies()
    itself = np.arange(len(rows))[:, None]
    expected, *_ = fuzzy_simplicial_set(
        features,
        15,
        np.random.RandomState(0),
        "cosine",
        knn_indices=np.hstack([itself, rows]).astype(np.int32),
        knn_dists=np.hstack([0 * itself, distances]).astype(np.float32),
    )
    np.testing.assert_allclose(
        fuzzy_graph(rows, distances).toarray(), expected.toarray(), atol=1e-5
    )
