"""The neighbor graph of all images: exact up to 200,000, and beyond that by parts, recall stated.

Exact costs N^2: 50,000 x 384 takes 10 s on two cores, a million over an hour. So a big collection
is parted into about sqrt(N) lists by k-means (an inverted file, IVF), and each image is compared
with the lists nearest to it, one after the other, until a sample of images has nearly all of its
true neighbors. FAISS's own index would copy all features; here lists are read off the memory map.

Shapes: N images, D dimensions, K neighbors, L lists, P probes, M members of a list, S sample.
"""

import math
from typing import Any, NamedTuple

import faiss
import numpy as np

from dino_core.gallery.neighbors import nearest_others, neighbor_graph
from dino_core.gallery.progress import Progress, silent
from dino_core.rng import permutation

EXACT_AT_MOST = 200_000  # images
RECALL_AIM = 0.98
MOST_PROBES = 64
JUDGED = 1_000  # images whose true neighbors are known
TRAINED_ON = 64  # images a list, for k-means
CHUNK = 16_384

MESSAGE = "Finding neighbors, approximately"


class Graph(NamedTuple):
    """Each image's nearest others, best first, and how they were found."""

    rows_NK: np.ndarray  # int32
    scores_NK: np.ndarray  # float32, cosines
    how: dict[str, Any]  # for gallery.json: `method`, and of an approximate one `recall`


def graph_of_all(features_ND: np.ndarray, k: int, progress: Progress | None = None) -> Graph:
    """The `k` nearest others of every image, by the method that its number asks for."""
    if len(features_ND) <= EXACT_AT_MOST:
        return Graph(*neighbor_graph(features_ND, k, progress), {"method": "exact"})
    return approximate_graph(features_ND, k, progress)


def approximate_graph(features_ND: np.ndarray, k: int, progress: Progress | None = None) -> Graph:
    """The `k` nearest others of every image, nearly; `how` says the recall on a sample.

    `features_ND`: float32, L2-normalized, more than `k` rows; may be a memory map.
    """
    say = progress or silent
    say(0, MOST_PROBES, MESSAGE)
    centroids_LD = _centroids(features_ND)
    probes_NP = _nearest_lists(features_ND, centroids_LD)
    members = _grouped(probes_NP[:, 0], len(centroids_LD))
    judged_S = np.sort(permutation(len(features_ND), "judged neighbors")[:JUDGED])
    truth_SK = nearest_others(features_ND, judged_S, k)[0]
    rows_NK = np.full((len(features_ND), k), -1, np.int32)
    scores_NK = np.full(rows_NK.shape, -np.inf, np.float32)
    probed, recall = 0, 0.0
    while probed < probes_NP.shape[1] and recall < RECALL_AIM:
        asking = _grouped(probes_NP[:, probed], len(centroids_LD))
        for askers_Q, members_M in zip(asking, members, strict=True):
            _look_in_list(features_ND, askers_Q, members_M, rows_NK, scores_NK)
        probed += 1
        recall = _recall(rows_NK[judged_S], truth_SK)
        say(probed, MOST_PROBES, MESSAGE)
    _fill_gaps(features_ND, rows_NK, scores_NK)
    _put_in_order(rows_NK, scores_NK)
    say(MOST_PROBES, MOST_PROBES, MESSAGE)
    how = {"method": "ivf", "lists": len(centroids_LD), "probes": probed}
    recall = _recall(rows_NK[judged_S], truth_SK)
    return Graph(rows_NK, scores_NK, how | {"recall": round(recall, 4), "judged": len(judged_S)})


def _centroids(features_ND: np.ndarray) -> np.ndarray:
    """Centers of about sqrt(N) lists, float32 [L, D], by k-means on a sample."""
    count, dim = features_ND.shape
    lists = math.isqrt(count)
    chosen = np.sort(permutation(count, "list centers")[: lists * TRAINED_ON])
    kmeans = faiss.Kmeans(dim, lists, niter=10, seed=0, spherical=True, min_points_per_centroid=1)
    kmeans.train(np.ascontiguousarray(features_ND[chosen]))
    return np.asarray(kmeans.centroids)


def _nearest_lists(features_ND: np.ndarray, centroids_LD: np.ndarray) -> np.ndarray:
    """The lists nearest to each image, nearest first, int32 [N, P]."""
    probes = min(MOST_PROBES, len(centroids_LD))
    found_NP = np.empty((len(features_ND), probes), np.int32)
    for start in range(0, len(features_ND), CHUNK):
        part = np.ascontiguousarray(features_ND[start : start + CHUNK])
        _, found = faiss.knn(part, centroids_LD, probes, faiss.METRIC_INNER_PRODUCT)
        found_NP[start : start + CHUNK] = found
    return found_NP


def _grouped(list_N: np.ndarray, lists: int) -> list[np.ndarray]:
    """For each list the rows that name it, ascending."""
    order_N = np.argsort(list_N, kind="stable")
    ends_L = np.cumsum(np.bincount(list_N, minlength=lists))
    return np.split(order_N, ends_L[:-1])


def _look_in_list(
    features_ND: np.ndarray,
    askers_Q: np.ndarray,
    members_M: np.ndarray,
    rows_NK: np.ndarray,
    scores_NK: np.ndarray,
) -> None:
    """Let images keep the best of what they have and what one list holds, in any order."""
    k = rows_NK.shape[1]
    if len(askers_Q) == 0 or len(members_M) == 0:
        return
    scores_QF, places_QF = faiss.knn(
        features_ND[askers_Q], features_ND[members_M], min(k + 1, len(members_M)),
        faiss.METRIC_INNER_PRODUCT,
    )  # fmt: skip
    found_QF = members_M[places_QF]
    scores_QF[found_QF == askers_Q[:, None]] = -np.inf  # nobody is a neighbor of itself
    scores = np.concatenate([scores_NK[askers_Q], scores_QF], axis=1)
    rows = np.concatenate([rows_NK[askers_Q], found_QF], axis=1)
    best_QK = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    best_scores_QK = np.take_along_axis(scores, best_QK, axis=1)
    best_rows_QK = np.take_along_axis(rows, best_QK, axis=1)
    rows_NK[askers_Q] = np.where(np.isfinite(best_scores_QK), best_rows_QK, -1)
    scores_NK[askers_Q] = best_scores_QK


def _fill_gaps(features_ND: np.ndarray, rows_NK: np.ndarray, scores_NK: np.ndarray) -> None:
    """Search exactly for the few whose lists held too few others."""
    gaps = np.flatnonzero((rows_NK < 0).any(axis=1))
    for start in range(0, len(gaps), CHUNK):
        part = gaps[start : start + CHUNK]
        rows_NK[part], scores_NK[part] = nearest_others(features_ND, part, rows_NK.shape[1])


def _put_in_order(rows_NK: np.ndarray, scores_NK: np.ndarray) -> None:
    """Best first, equal scores in the order of rows, as an exact search gives them."""
    for start in range(0, len(rows_NK), CHUNK):
        rows, scores = rows_NK[start : start + CHUNK], scores_NK[start : start + CHUNK]
        order = np.lexsort((rows, -scores), axis=1)
        rows[:] = np.take_along_axis(rows, order, axis=1)
        scores[:] = np.take_along_axis(scores, order, axis=1)


def _recall(found_SK: np.ndarray, truth_SK: np.ndarray) -> float:
    """The share of true neighbors that were found, 0 to 1."""
    pairs = zip(found_SK, truth_SK, strict=True)
    return sum(len(np.intersect1d(*pair)) for pair in pairs) / max(1, truth_SK.size)
