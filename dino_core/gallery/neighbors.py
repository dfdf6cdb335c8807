"""Exact nearest neighbors by cosine, straight on the memory-mapped features.

Exact is fast enough to a million images (1M x 384 on two cores: 60 ms a query, 13 ms when a filter
leaves a tenth), so nothing is trained, tuned or copied.

Shapes: N images, Q queries, D dimensions, K neighbors.
"""

import faiss
import numpy as np

from dino_core.gallery.progress import Progress

QUERIES_AT_ONCE = 4096  # as many as FAISS itself takes in one matrix product
FEWEST_BY_BLOCKS = 10_000  # images; below, loading what numba compiled (0.3 s) takes what it saves
MOST_BY_BLOCKS = 128  # neighbors; they are kept in order by moving them


def nearest(
    features_ND: np.ndarray, query_QD: np.ndarray, k: int, allowed_N: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` rows most similar to each query, best first; equal scores in the order of rows.

    `features_ND` and `query_QD`: float32, L2-normalized; `allowed_N`: bool, rows that may be
    found. Returns rows int64 [Q, K] and cosines float32 [Q, K], where K is `k`, or fewer when fewer
    rows are allowed.
    """
    count = len(features_ND) if allowed_N is None else int(np.count_nonzero(allowed_N))
    k = min(k, count)
    if k <= 0 or len(query_QD) == 0:
        return np.empty((len(query_QD), 0), np.int64), np.empty((len(query_QD), 0), np.float32)
    query_QD = np.ascontiguousarray(query_QD, np.float32)
    if allowed_N is None or count == len(features_ND):
        scores_QK, rows_QK = faiss.knn(query_QD, features_ND, k, faiss.METRIC_INNER_PRODUCT)
    else:
        scores_QK, rows_QK = _nearest_allowed(features_ND, query_QD, k, allowed_N)
    order_QK = np.lexsort((rows_QK, -scores_QK), axis=1)
    rows_QK = np.take_along_axis(rows_QK, order_QK, axis=1)
    return rows_QK, np.take_along_axis(scores_QK, order_QK, axis=1)


def _nearest_allowed(
    features_ND: np.ndarray, query_QD: np.ndarray, k: int, allowed_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`faiss.knn` among some rows: its C++ twin takes a selector, the Python one does not."""
    features_ND = np.ascontiguousarray(features_ND)  # of a memory map this is the map, not a copy
    bits = np.packbits(np.asarray(allowed_N, bool), bitorder="little")
    scores_QK = np.empty((len(query_QD), k), np.float32)
    rows_QK = np.empty((len(query_QD), k), np.int64)
    faiss.knn_inner_product(
        faiss.swig_ptr(query_QD),
        faiss.swig_ptr(features_ND),
        features_ND.shape[1],
        len(query_QD),
        len(features_ND),
        k,
        faiss.swig_ptr(scores_QK),
        faiss.swig_ptr(rows_QK),
        faiss.IDSelectorBitmap(bits),  # type: ignore[call-arg, arg-type]  # its wrapper takes it
    )
    return scores_QK, rows_QK


def nearest_others(
    features_ND: np.ndarray, rows_Q: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Some images' `k` nearest OTHERS, best first, k < N: rows int64 and cosines float32 [Q, K]."""
    found_QF, scores_QF = nearest(features_ND, features_ND[rows_Q], k + 1)
    others = found_QF != rows_Q[:, None]
    # Among many exact copies an image may not find itself: then its last neighbor is dropped.
    others[others.all(axis=1), -1] = False
    return found_QF[others].reshape(-1, k), scores_QF[others].reshape(-1, k)


def neighbor_graph(
    features_ND: np.ndarray, k: int, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Each image's `k` nearest OTHER images, best first, equal scores in the order of rows.

    Returns rows int32 [N, K] and cosines float32 [N, K], where K is `k`, or N - 1 when there are
    no more others.
    """
    k = max(0, min(k, len(features_ND) - 1))
    if len(features_ND) < FEWEST_BY_BLOCKS or not 0 < k <= MOST_BY_BLOCKS:
        return plain_graph(features_ND, k, progress)
    from dino_core.gallery.all_pairs import graph_by_blocks  # imports numba

    return graph_by_blocks(features_ND, k, progress)


def plain_graph(
    features_ND: np.ndarray, k: int, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`neighbor_graph` by searching for every image among all: the plain twin, and for few."""
    count = len(features_ND)
    k = max(0, min(k, count - 1))
    rows_NK, scores_NK = np.empty((count, k), np.int32), np.empty((count, k), np.float32)
    for start in range(0, count if k else 0, QUERIES_AT_ONCE):
        stop = min(start + QUERIES_AT_ONCE, count)
        found = nearest_others(features_ND, np.arange(start, stop), k)
        rows_NK[start:stop], scores_NK[start:stop] = found
        if progress is not None:
            progress(stop, count, "Finding neighbors")
    return rows_NK, scores_NK
