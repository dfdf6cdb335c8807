"""Maps: every image of a gallery as a point in the plane, near to those that are like it.

Shapes: N images, D dimensions, K neighbors.
"""

import warnings
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from dino_core.gallery.fuzzy import fuzzy_graph
from dino_core.gallery.progress import Progress
from dino_core.rng import generator

FEWEST_FOR_UMAP = 10
UMAP_NEIGHBORS = 15  # the image itself included, as the paper counts
UMAP_MIN_DIST = 0.1
PLACING_NEIGHBORS = 10
PLACING_TEMPERATURE = 0.07


def pca_map(features_ND: np.ndarray) -> np.ndarray:
    """The first two principal components, float32 [N, 2]; zeros where there are none.

    Signs are fixed (each axis' largest loading is positive), so equal features give equal maps.
    """
    count, dim = features_ND.shape
    if count == 0:
        return np.zeros((0, 2), np.float32)
    mean_D = features_ND.mean(axis=0, dtype=np.float64)
    covariance_DD = np.zeros((dim, dim))
    for start in range(0, count, 16384):  # the memory map is never copied whole
        part = features_ND[start : start + 16384] - mean_D
        covariance_DD += part.T @ part
    _, axes_DD = np.linalg.eigh(covariance_DD)
    axes_D2 = axes_DD[:, ::-1][:, :2]
    axes_D2 = axes_D2 * np.sign(axes_D2[np.abs(axes_D2).argmax(axis=0), range(axes_D2.shape[1])])
    xy_N2 = np.zeros((count, 2), np.float32)
    xy_N2[:, : axes_D2.shape[1]] = features_ND @ axes_D2 - mean_D @ axes_D2
    return xy_N2


def umap_map(
    features_ND: np.ndarray,
    neighbor_rows_NK: np.ndarray,
    neighbor_scores_NK: np.ndarray,
    progress: Progress | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """UMAP on the gallery's own neighbor graph, begun from PCA: float32 [N, 2], and how made.

    The result depends on the features alone (fixed seed, one thread). With fewer than ten images
    it is the PCA map, and the second value says so.
    """
    count = len(features_ND)
    start_N2 = pca_map(features_ND)
    if count < FEWEST_FOR_UMAP:
        return start_N2, {"method": "pca", "why": f"fewer than {FEWEST_FOR_UMAP} images"}
    say = progress or (lambda done, total, message: None)
    message = "Drawing the map (UMAP compiles itself first, which takes a while)"
    say(0, 1, message)
    neighbors = min(UMAP_NEIGHBORS, neighbor_rows_NK.shape[1] + 1)
    graph = fuzzy_graph(
        neighbor_rows_NK[:, : neighbors - 1],
        (1 - neighbor_scores_NK[:, : neighbors - 1]).clip(min=0),
    )
    xy_N2 = _laid_out(graph, _spread(start_N2))
    say(1, 1, message)
    how = {"method": "umap", "n_neighbors": neighbors, "min_dist": UMAP_MIN_DIST}
    return xy_N2, how | {"metric": "cosine"}


def _laid_out(graph: csr_array, start_N2: np.ndarray) -> np.ndarray:
    """umap-learn's layout of a fuzzy graph from starting points, float32 [N, 2]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TensorFlow is missing: not used here
        from umap.umap_ import find_ab_params, simplicial_set_embedding

        a, b = find_ab_params(spread=1.0, min_dist=UMAP_MIN_DIST)
        xy_N2, _ = simplicial_set_embedding(
            data=start_N2,
            graph=graph,
            n_components=2,
            initial_alpha=1.0,
            a=a,
            b=b,
            gamma=1.0,
            negative_sample_rate=5,
            n_epochs=None,
            init=start_N2,
            random_state=np.random.RandomState(0),
            metric="euclidean",
            metric_kwds={},
            densmap=False,
            densmap_kwds={},
            output_dens=False,
            tqdm_kwds={"disable": True},
        )
    return np.ascontiguousarray(xy_N2, np.float32)


def place(
    xy_N2: np.ndarray, neighbor_rows_MK: np.ndarray, neighbor_scores_MK: np.ndarray
) -> np.ndarray:
    """Where new images go on a map: at the weighted mean of their neighbors, float32 [M, 2].

    Weights are exp(cosine / PLACING_TEMPERATURE), as in the k-NN vote.
    """
    weights_MK = np.exp(
        (neighbor_scores_MK - neighbor_scores_MK.max(1, keepdims=True)) / PLACING_TEMPERATURE
    )
    weights_MK /= weights_MK.sum(axis=1, keepdims=True)
    return np.einsum("mk,mkd->md", weights_MK, xy_N2[neighbor_rows_MK]).astype(np.float32)


def _spread(xy_N2: np.ndarray) -> np.ndarray:
    """PCA coordinates in UMAP's usual extent, with a little noise to part exact copies."""
    noise_N2 = generator(0, "umap start").standard_normal(xy_N2.shape)
    scale = np.abs(xy_N2).max() or 1.0
    return (10 * xy_N2 / scale + 1e-3 * noise_N2).astype(np.float32)
