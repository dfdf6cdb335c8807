"""The approximate graph: its recall is true, it holds others only, and it repeats itself."""

import numpy as np
import pytest

from dino_core.gallery import approximate
from dino_core.gallery.approximate import approximate_graph, graph_of_all
from dino_core.gallery.maps import umap_map
from dino_core.gallery.neighbors import neighbor_graph
from dino_core.rng import generator


def clustered(count: int, dim: int = 16, groups: int = 20) -> np.ndarray:
    random = generator(0, "clustered")
    centers = random.standard_normal((groups, dim))
    features = centers[random.integers(0, groups, count)] + 0.4 * random.standard_normal(
        (count, dim)
    )
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def test_it_says_its_true_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clustered(1500)
    monkeypatch.setattr(approximate, "RECALL_AIM", 0.9)
    rows, scores, how = approximate_graph(features, 8)
    truth, _ = neighbor_graph(features, 8)
    recall = np.mean([np.isin(*pair).mean() for pair in zip(rows, truth, strict=True)])
    assert how["method"] == "ivf" and how["judged"] == 1000 and 0.9 <= how["recall"] < 1
    assert abs(recall - how["recall"]) < 0.02
    found = np.einsum("nd,nkd->nk", features, features[rows])
    np.testing.assert_allclose(scores, found, atol=1e-5)


def test_all_lists_probed_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clustered(600)
    monkeypatch.setattr(approximate, "RECALL_AIM", 1.1)
    rows, _, how = approximate_graph(features, 8)
    assert how["probes"] == how["lists"] == 24 and how["recall"] == 1
    np.testing.assert_array_equal(rows, neighbor_graph(features, 8)[0])


def test_it_holds_each_other_once_and_never_the_image_itself() -> None:
    features = clustered(500)
    features[100:200] = features[7]  # exact copies
    rows, scores, _ = approximate_graph(features, 12)
    assert (np.diff(np.sort(rows, axis=1), axis=1) > 0).all() and rows.min() >= 0
    assert not (rows == np.arange(500)[:, None]).any()
    assert (np.diff(scores, axis=1) <= 0).all()
    np.testing.assert_allclose(scores[100:200], 1, atol=1e-6)


def test_lists_too_small_are_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clustered(100, dim=4, groups=100)
    monkeypatch.setattr(approximate, "MOST_PROBES", 1)
    rows, _, how = approximate_graph(features, 50)
    assert how["probes"] == 1
    np.testing.assert_array_equal(rows, neighbor_graph(features, 50)[0])


def test_it_repeats_itself_and_tells_how_far_it_is() -> None:
    features, told = clustered(400), []
    first = approximate_graph(features, 5, lambda *news: told.append(news))
    again = approximate_graph(features, 5)
    np.testing.assert_array_equal(first.rows_NK, again.rows_NK)
    assert told[0][0] == 0 and told[-1][0] == told[-1][1]


def test_the_number_of_images_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert graph_of_all(clustered(200), 5).how == {"method": "exact"}
    monkeypatch.setattr(approximate, "EXACT_AT_MOST", 199)
    assert graph_of_all(clustered(200), 5).how["method"] == "ivf"


@pytest.mark.soak
def test_two_hundred_and_ten_thousand(tmp_path) -> None:
    np.save(tmp_path / "features.npy", clustered(210_000, 64, 500))
    features = np.load(tmp_path / "features.npy", mmap_mode="r")
    rows, scores, how = graph_of_all(features, 30)
    assert how["method"] == "ivf" and how["recall"] > 0.9
    xy, made = umap_map(features, rows, scores)
    assert (made["laid_out"], made["placed"]) == (100_000, 110_000)
    assert np.isfinite(xy).all()
