"""The graph by blocks: its plain twin, exact copies, any number of threads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from dino_core.gallery import all_pairs, neighbors
from dino_core.gallery.all_pairs import graph_by_blocks
from dino_core.gallery.neighbors import neighbor_graph, plain_graph
from dino_core.rng import generator


def unit(n: int, dim: int = 24) -> np.ndarray:
    features = generator(0, "all pairs").standard_normal((n, dim)).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def coarse(n: int, dim: int = 8) -> np.ndarray:
    """Features of few values: their products are exact, and many are equal."""
    return generator(0, "coarse").integers(-1, 2, (n, dim)).astype(np.float32) / 4


def by_sorting(features: np.ndarray, k: int) -> np.ndarray:
    similarity = features @ features.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k]


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 300), st.integers(1, 40), st.integers(30, 400), st.integers(1, 5))
def test_ties_come_in_the_order_of_rows(n: int, k: int, block: int, threads: int) -> None:
    features, k = coarse(n), min(k, n - 1)
    rows, scores = graph_by_blocks(features, k, threads=threads, block=block)
    np.testing.assert_array_equal(rows, by_sorting(features, k))
    np.testing.assert_array_equal(scores, np.einsum("nd,nkd->nk", features, features[rows]))


@pytest.mark.parametrize("block", [64, 100, 1000, 4096])
def test_it_is_the_plain_graph(block: int) -> None:
    features = unit(1003)
    rows, scores = graph_by_blocks(features, 15, block=block)
    expected, expected_scores = plain_graph(features, 15)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    apart = np.abs(np.diff(expected_scores, axis=1)).min(axis=1) > 1e-6  # no equal scores
    assert apart.mean() > 0.9
    np.testing.assert_array_equal(rows[apart], expected[apart])
    assert rows.dtype == expected.dtype and scores.dtype == expected_scores.dtype


def test_exact_copies_hold_each_other_first() -> None:
    features = np.repeat(unit(30), 40, axis=0)
    rows, scores = graph_by_blocks(features, 39, block=256)
    image = np.arange(1200)[:, None]
    assert not (rows == image).any()
    np.testing.assert_array_equal(np.sort(rows), rows)
    np.testing.assert_array_equal(rows // 40, np.broadcast_to(image // 40, rows.shape))
    np.testing.assert_allclose(scores, 1, atol=1e-6)


@pytest.mark.parametrize("dim", [384, 1000])
def test_any_number_of_threads_finds_the_same(dim: int) -> None:
    features = unit(1100, dim)
    with threadpool_limits(1, user_api="blas"):
        alone = graph_by_blocks(features, 10, threads=1, block=500)
    for threads in (2, 7):
        with threadpool_limits(threads, user_api="blas"):
            again = graph_by_blocks(features, 10, threads=threads, block=500)
        np.testing.assert_array_equal(again[0], alone[0])
        np.testing.assert_array_equal(again[1], alone[1])


def test_a_memory_map_is_read_block_by_block(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "features.npy", unit(400))
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    taken, block = [], all_pairs._block
    monkeypatch.setattr(
        all_pairs, "_block", lambda *place: taken.append(place[2] - place[1]) or block(*place)
    )
    rows, _ = graph_by_blocks(mapped, 5, block=50)
    np.testing.assert_array_equal(rows, graph_by_blocks(unit(400), 5)[0])
    assert max(taken[:64]) == 50


def test_it_tells_how_far_it_is() -> None:
    told: list[tuple[int, int, str]] = []
    graph_by_blocks(unit(300), 5, lambda *news: told.append(news), block=100)
    assert [done for done, _, _ in told] == [50, 100, 150, 200, 250, 300]
    assert {news[1:] for news in told} == {(300, "Finding neighbors")}


def test_the_number_of_images_and_neighbors_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(neighbors, "FEWEST_BY_BLOCKS", 50)
    monkeypatch.setattr(all_pairs, "graph_by_blocks", lambda *given: chosen.append(given))
    for n, k in ((49, 5), (50, 0), (200, 129), (0, 3), (1, 3), (2, 3)):
        assert neighbor_graph(unit(n), k)[0].shape == (n, max(0, min(k, n - 1)))
    assert not chosen
    neighbor_graph(unit(50), 5)
    neighbor_graph(unit(200), 128)
    assert len(chosen) == 2


def test_as_many_neighbors_as_there_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "FEWEST_BY_BLOCKS", 2)
    for n in (2, 3, 20):
        rows, _ = neighbor_graph(coarse(n), 100)
        np.testing.assert_array_equal(rows, by_sorting(coarse(n), n - 1))
