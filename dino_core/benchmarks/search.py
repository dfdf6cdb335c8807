"""Searching a gallery: milliseconds a query, beside a matrix product and a sort in numpy.

measure(images=50_000)  ->  exact search among all images, and among a tenth of them
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from dino_core.benchmarks.features import write_features
from dino_core.benchmarks.hardware import hardware
from dino_core.benchmarks.measuring import Measured, in_alternation, ratio
from dino_core.errors import at_least
from dino_core.gallery.neighbors import nearest
from dino_core.rng import generator

FOUND = 20  # images a query
ALLOWED = 0.1  # share of images that the filter leaves


def measure(
    images: int = 50_000, dim: int = 384, queries: int = 10, rounds: int = 5
) -> list[Measured]:
    """Search with and without a filter. A million images of 384 take 1.5 GB of disk meanwhile."""
    at_least(1, images=images, queries=queries, rounds=rounds)
    with tempfile.TemporaryDirectory() as folder:
        path = write_features(Path(folder) / "features.npy", images, dim)
        features_ND = np.load(path, mmap_mode="r")
        random = generator(0, "search benchmark")
        query_QD = random.standard_normal((queries, dim)).astype(np.float32)
        query_QD /= np.linalg.norm(query_QD, axis=1, keepdims=True)
        allowed_N = random.random(images) < ALLOWED
        return [
            _search(features_ND, query_QD, None, rounds),
            _search(features_ND, query_QD, allowed_N, rounds),
        ]


def _search(
    features_ND: np.ndarray, query_QD: np.ndarray, allowed_N: np.ndarray | None, rounds: int
) -> Measured:
    """One query after the other, as people ask them."""

    def each(answer: Callable[[np.ndarray], object]) -> Callable[[], None]:
        def run() -> None:
            for query_D in query_QD:
                answer(query_D)

        return run

    seconds = in_alternation(
        {
            "ours": each(lambda query_D: nearest(features_ND, query_D[None], FOUND, allowed_N)),
            "plain": each(lambda query_D: plain_search(features_ND, query_D, FOUND, allowed_N)),
            "product": each(lambda query_D: features_ND @ query_D),
        },
        rounds,
    )
    count, dim = features_ND.shape
    limit = "one product of all features with the query"
    return Measured(
        name=f"search {'all' if allowed_N is None else 'a tenth'} of {count:,} x {dim}",
        hardware=hardware(torch.device("cpu")),
        milliseconds=1000 * median(seconds["ours"]) / len(query_QD),
        ratio_to_plain=ratio(seconds["plain"], seconds["ours"]),
        share_of_limit=None
        if allowed_N is not None
        else ratio(seconds["product"], seconds["ours"]),
        limit=limit if allowed_N is None else "",
        notes=(f"plain: {1000 * median(seconds['plain']) / len(query_QD):.1f} ms a query",),
    )


def plain_search(
    features_ND: np.ndarray, query_D: np.ndarray, k: int, allowed_N: np.ndarray | None = None
) -> np.ndarray:
    """The plain twin: the rows of the `k` best, int64 [K], by a product and a full sort."""
    scores_N = features_ND @ query_D
    if allowed_N is not None:
        scores_N = np.where(allowed_N, scores_N, -np.inf)
    return np.argsort(-scores_N, kind="stable")[:k]
