"""Maps: PCA against the SVD; UMAP keeps groups apart and repeats itself; placing new images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_core.errors import UserError
from dino_core.gallery import maps
from dino_core.gallery.maps import UmapSettings, pca_map, place, place_rest, umap_map
from dino_core.gallery.neighbors import neighbor_graph
from dino_core.rng import generator


def groups(each: int, dim: int = 12) -> np.ndarray:
    """Three tight groups of `each` unit vectors."""
    random = generator(0, "groups")
    centers = np.repeat(random.standard_normal((3, dim)), each, axis=0)
    features = (centers + 0.1 * random.standard_normal(centers.shape)).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_pca_is_the_svd() -> None:
    features = groups(20)
    centered = features - features.mean(0)
    u, s, _ = np.linalg.svd(centered, full_matrices=False)
    found = pca_map(features)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.abs(found), np.abs(u[:, :2] * s[:2]), atol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_pca_of_next_to_nothing(n: int) -> None:
    found = pca_map(groups(1)[:n])
    assert found.shape == (n, 2) and np.isfinite(found).all()


def test_umap_parts_groups_and_repeats_itself() -> None:
    features = groups(20)
    graph = neighbor_graph(features, 30)
    first, how = umap_map(features, *graph)
    again, _ = umap_map(features, *graph)
    np.testing.assert_array_equal(first, again)
    assert how["method"] == "umap" and first.dtype == np.float32
    centers = first.reshape(3, 20, 2).mean(1)
    nearest = np.linalg.norm(first[:, None] - centers, axis=2).argmin(1)
    np.testing.assert_array_equal(nearest, np.repeat([0, 1, 2], 20))


def test_umap_of_exact_copies_is_finite() -> None:
    features = np.repeat(groups(1)[:1], 12, axis=0)
    found, _ = umap_map(features, *neighbor_graph(features, 30))
    assert np.isfinite(found).all()


def test_fewer_than_ten_images_get_their_pca_and_are_told() -> None:
    features = groups(3)
    found, how = umap_map(features, *neighbor_graph(features, 30))
    np.testing.assert_array_equal(found, pca_map(features))
    assert how == {"method": "pca", "why": "fewer than 10 images"}


@given(st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3))
def test_a_new_image_lies_among_its_neighbors(scores: list[float]) -> None:
    xy = np.array([[0, 0], [10, 0], [0, 10], [99, 99]], np.float32)
    placed = place(xy, np.array([[0, 1, 2]]), np.array([scores], np.float32))[0]
    assert (placed >= -1e-4).all() and placed.sum() <= 10.001
    weights = np.exp(np.array(scores) / 0.07)
    np.testing.assert_allclose(placed, weights @ xy[:3] / weights.sum(), rtol=1e-3, atol=1e-3)


def trust(features: np.ndarray, xy: np.ndarray) -> float:
    from sklearn.manifold import trustworthiness

    return trustworthiness(features, xy, n_neighbors=10, metric="cosine")


def test_neighbors_on_the_map_are_neighbors_among_the_features() -> None:
    """Against chance and against the PCA, which three groups in twelve dimensions overburden."""
    features = groups(50)
    xy, _ = umap_map(features, *neighbor_graph(features, 30))
    assert trust(features, xy) > max(0.85, trust(features, pca_map(features)) + 0.02)


def test_other_settings_draw_another_map_and_say_so() -> None:
    features = groups(20)
    graph = neighbor_graph(features, 30)
    usual, _ = umap_map(features, *graph)
    for settings in (UmapSettings(min_dist=0.5), UmapSettings(n_neighbors=5)):
        found, how = umap_map(features, *graph, settings=settings)
        assert not np.array_equal(found, usual)
        assert (how["n_neighbors"], how["min_dist"]) == (settings.n_neighbors, settings.min_dist)
    assert umap_map(features, *graph, settings=UmapSettings(60))[1]["n_neighbors"] == 31


def test_a_map_is_called_by_its_settings() -> None:
    assert UmapSettings().name == "umap"
    assert UmapSettings(30, 0.5).name == "umap-30-0.5"


@pytest.mark.parametrize("settings", [{"n_neighbors": 1}, {"min_dist": -0.1}, {"min_dist": 2.0}])
def test_settings_that_make_no_map(settings: dict) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        UmapSettings(**settings)


def test_of_many_images_a_sample_is_laid_out_and_the_rest_placed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = groups(60)
    graph = neighbor_graph(features, 12)
    monkeypatch.setattr(maps, "LAID_OUT_WHOLE", 100)
    monkeypatch.setattr(maps, "SAMPLE", 60)
    told: list[str] = []
    found, how = umap_map(features, *graph, lambda done, total, message: told.append(message))
    assert (how["laid_out"], how["placed"], how["n_neighbors"]) == (60, 120, 13)
    assert 0.9 < how["recall"] <= 1  # of the sample's own graph
    assert {"Drawing the map", "Placing the rest on the map"} <= set(told)
    assert np.isfinite(found).all()
    centers = found.reshape(3, 60, 2).mean(1)
    nearest = np.linalg.norm(found[:, None] - centers, axis=2).argmin(1)
    np.testing.assert_array_equal(nearest, np.repeat([0, 1, 2], 60))


def test_placing_goes_from_neighbor_to_neighbor_and_leaves_strangers() -> None:
    nan = np.nan
    xy = np.array([[3, 4], [nan, nan], [nan, nan], [nan, nan], [nan, nan]], np.float32)
    rows = np.array([[1], [0], [1], [4], [3]])  # 2 knows only 1; 3 and 4 know only each other
    place_rest(xy, rows, np.ones((5, 1), np.float32))
    np.testing.assert_allclose(xy[:3], [[3, 4]] * 3)
    assert np.isnan(xy[3:]).all()
