"""Maps: every image of a gallery as a point in the plane, near to those that are like it.

Shapes: N images, D dimensions, K neighbors.
"""

import warnings
from typing import Any

import numpy as np

from dino_core.gallery.progress import Progress
from dino_core.rng import generator

FEWEST_FOR_UMAP = 10
UMAP_NEIGHBORS = 15  # itself included, as umap-learn counts
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
    if progress is not None:
        progress(0, 1, "Drawing the map (UMAP compiles itself first: up to a minute)")
    neighbors = min(UMAP_NEIGHBORS, neighbor_rows_NK.shape[1] + 1)
    settings = {"n_neighbors": neighbors, "min_dist": UMAP_MIN_DIST, "metric": "cosine"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about TensorFlow, threads, and transform: none used here
        from umap import UMAP

        xy_N2 = UMAP(
            **settings,
            init=_spread(start_N2),
            precomputed_knn=_with_itself(neighbor_rows_NK, neighbor_scores_NK, neighbors),
            random_state=0,
            n_jobs=1,
        ).fit_transform(features_ND)
    if progress is not None:
        progress(1, 1, "Drawing the map (UMAP compiles itself first: up to a minute)")
    return np.ascontiguousarray(xy_N2, np.float32), {"method": "umap", **settings}


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


def _with_itself(
    rows_NK: np.ndarray, scores_NK: np.ndarray, neighbors: int
) -> tuple[np.ndarray, np.ndarray]:
    """The graph in umap-learn's form: each image its own first neighbor, cosine distances."""
    itself_N1 = np.arange(len(rows_NK), dtype=np.int32)[:, None]
    rows = np.hstack([itself_N1, rows_NK])[:, :neighbors]
    distances = np.hstack([np.zeros((len(rows_NK), 1), np.float32), 1 - scores_NK])[:, :neighbors]
    return np.ascontiguousarray(rows), np.ascontiguousarray(distances.clip(min=0))


def _spread(xy_N2: np.ndarray) -> np.ndarray:
    """PCA coordinates in UMAP's usual extent, with a little noise to part exact copies."""
    noise_N2 = generator(0, "umap start").standard_normal(xy_N2.shape)
    scale = np.abs(xy_N2).max() or 1.0
    return (10 * xy_N2 / scale + 1e-3 * noise_N2).astype(np.float32)
