"""UMAP's graph: its defining law, and umap-learn's own as the reference.

golden/fuzzy.npz holds the first of `graph_with_copies`, 120 vectors of which 20 are copies, and
what umap-learn 0.5.12 makes of it. It was written by

    _, rows, distances = graph_with_copies(120)
    graph = np.triu(umap_learns(rows, distances))
    np.savez_compressed("fuzzy.npz", rows=rows.astype(np.int16), distances=distances,
                        at=np.flatnonzero(graph).astype(np.int16), values=graph[graph > 0])
"""

from pathlib import Path

import numpy as np
import pytest

from dino_core.gallery.fuzzy import fuzzy_graph, local_scale
from dino_core.gallery.neighbors import neighbor_graph
from dino_core.rng import generator

GOLDEN = Path(__file__).parents[1] / "golden" / "fuzzy.npz"


def graph_with_copies(count: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors, from 100 to 130 copies of one: features, rows, distances of 14 neighbors."""
    features = generator(0, "fuzzy").standard_normal((count, 12)).astype(np.float32)
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


def umap_learns(rows: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """The same graph by umap-learn, float32 [N, N]; it asks for the features, and ignores them."""
    from umap.umap_ import fuzzy_simplicial_set

    itself = np.arange(len(rows))[:, None]
    expected, *_ = fuzzy_simplicial_set(
        np.empty((len(rows), 1)),
        15,
        np.random.RandomState(0),
        "cosine",
        knn_indices=np.hstack([itself, rows]).astype(np.int32),
        knn_dists=np.hstack([0 * itself, distances]).astype(np.float32),
    )
    return expected.toarray()


def test_golden() -> None:
    golden = np.load(GOLDEN)
    rows, distances = golden["rows"].astype(np.int32), golden["distances"]
    expected = np.zeros(len(rows) ** 2, np.float32)
    expected[golden["at"]] = golden["values"]
    graph = np.triu(fuzzy_graph(rows, distances).toarray())
    np.testing.assert_allclose(graph.ravel(), expected, atol=1e-5)


@pytest.mark.soak
def test_it_is_umap_learns() -> None:
    _, rows, distances = graph_with_copies()
    np.testing.assert_allclose(
        fuzzy_graph(rows, distances).toarray(), umap_learns(rows, distances), atol=1e-5
    )
