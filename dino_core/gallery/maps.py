"""Maps: every image of a gallery as a point in the plane, near to those that are like it.

A map reads the gallery's stored neighbor graph and finds no neighbors of its own, but for one
case: beyond 200,000 images a sample is laid out, and has an approximate graph of its own.

Shapes: N images, D dimensions, K neighbors, S images in a sample.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dino_core.errors import UserError
from dino_core.gallery.approximate import approximate_graph
from dino_core.gallery.fuzzy import fuzzy_graph
from dino_core.gallery.neighbors import nearest
from dino_core.gallery.progress import Progress, silent
from dino_core.rng import generator, permutation

FEWEST_FOR_UMAP = 10
LAID_OUT_WHOLE = 200_000  # images; of more than that a sample is laid out, the rest placed
SAMPLE = 100_000
PLACING_NEIGHBORS = 10
PLACING_TEMPERATURE = 0.07
CHUNK = 4096  # rows in memory at a time

MESSAGE = "Drawing the map"


@dataclass(frozen=True)
class UmapSettings:
    """What a UMAP can be asked for. Raises `UserError` for values that make no map."""

    n_neighbors: int = 15
    """The image itself included, as the paper counts: few show small groups, many the whole."""
    min_dist: float = 0.1
    """How close points may lie, 0 to 1: small packs groups, large spreads them."""

    def __post_init__(self) -> None:
        if self.n_neighbors < 2:
            raise UserError(f"n_neighbors {self.n_neighbors}: at least 2, the image itself counts")
        if not 0 <= self.min_dist <= 1:
            raise UserError(f"min_dist {self.min_dist}: is to be from 0 to 1")

    @property
    def name(self) -> str:
        """The map's name in a gallery: "umap", or e.g. "umap-30-0.5" of other settings."""
        if self == UmapSettings():
            return "umap"
        return f"umap-{self.n_neighbors}-{self.min_dist:g}"


def pca_map(features_ND: np.ndarray) -> np.ndarray:
    """The first two principal components, float32 [N, 2]; zeros where there are none.

    Signs are fixed (each axis' largest loading is positive), so equal features give equal maps.
    """
    count, dim = features_ND.shape
    if count == 0:
        return np.zeros((0, 2), np.float32)
    mean_D = features_ND.mean(axis=0, dtype=np.float64)
    covariance_DD = np.zeros((dim, dim))
    for start in range(0, count, CHUNK):  # the memory map is never copied whole
        part = features_ND[start : start + CHUNK] - mean_D
        covariance_DD += part.T @ part
    _, axes_DD = np.linalg.eigh(covariance_DD)
    axes_D2 = axes_DD[:, ::-1][:, :2]
    axes_D2 = axes_D2 * np.sign(axes_D2[np.abs(axes_D2).argmax(axis=0), range(axes_D2.shape[1])])
    xy_N2 = np.zeros((count, 2), np.float32)
    for start in range(0, count, CHUNK):
        part = features_ND[start : start + CHUNK] - mean_D
        xy_N2[start : start + CHUNK, : axes_D2.shape[1]] = part @ axes_D2
    return xy_N2


def umap_map(
    features_ND: np.ndarray,
    neighbor_rows_NK: np.ndarray,
    neighbor_scores_NK: np.ndarray,
    progress: Progress | None = None,
    settings: UmapSettings | None = None,
    pca_N2: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """UMAP on the gallery's own neighbor graph, begun from PCA: float32 [N, 2], and how made.

    `pca_N2` is `pca_map` of the features, where it is known already.

    The result depends on the features and settings alone: not on the process, nor on the number
    of threads. With fewer than ten images it is the PCA map, and the second value says so.
    `n_neighbors` is cut to what the graph holds, and beyond 200,000 images a sample is laid out
    and the rest placed: the second value tells both.
    """
    count, held = neighbor_rows_NK.shape
    settings, say = settings or UmapSettings(), progress or silent
    if count > LAID_OUT_WHOLE:
        return _by_sample(features_ND, neighbor_rows_NK, neighbor_scores_NK, say, settings)
    start_N2 = pca_map(features_ND) if pca_N2 is None else pca_N2
    if count < FEWEST_FOR_UMAP:
        return start_N2, {"method": "pca", "why": f"fewer than {FEWEST_FOR_UMAP} images"}
    neighbors = min(settings.n_neighbors, held + 1)
    say(0, 1, MESSAGE)
    graph = fuzzy_graph(
        neighbor_rows_NK[:, : neighbors - 1],
        (1 - neighbor_scores_NK[:, : neighbors - 1]).clip(min=0),
    )
    from dino_core.gallery.layout import layout  # imports numba

    xy_N2 = layout(
        graph, _parted(start_N2), settings.min_dist,
        on_epoch=lambda done, total: say(done, total, MESSAGE),
    )  # fmt: skip
    how = {"method": "umap", **asdict(settings), "n_neighbors": neighbors, "metric": "cosine"}
    return xy_N2, how


def _by_sample(
    features_ND: np.ndarray,
    neighbor_rows_NK: np.ndarray,
    neighbor_scores_NK: np.ndarray,
    say: Progress,
    settings: UmapSettings,
) -> tuple[np.ndarray, dict[str, Any]]:
    """The map of a big collection: a sample laid out, everything else placed by its neighbors.

    The sample has a graph of its own, for of thirty stored neighbors too few are in it.
    """
    count = len(features_ND)
    chosen_S = np.sort(permutation(count, "map sample")[: min(SAMPLE, LAID_OUT_WHOLE)])
    sample_SD = np.ascontiguousarray(features_ND[chosen_S])
    k = min(settings.n_neighbors - 1, neighbor_rows_NK.shape[1])
    graph = approximate_graph(sample_SD, k, say)
    xy_S2, how = umap_map(sample_SD, graph.rows_NK, graph.scores_NK, say, settings)
    xy_N2 = np.full((count, 2), np.nan, np.float32)
    xy_N2[chosen_S] = xy_S2
    place_rest(xy_N2, neighbor_rows_NK, neighbor_scores_NK, say)
    lost = np.flatnonzero(np.isnan(xy_N2[:, 0]))  # groups of which no image is in the sample
    for start in range(0, len(lost), CHUNK):
        part = lost[start : start + CHUNK]
        found = nearest(sample_SD, features_ND[part], PLACING_NEIGHBORS)
        xy_N2[part] = place(xy_S2, *found)
    how |= {"laid_out": len(chosen_S), "placed": count - len(chosen_S)}
    return xy_N2, how | {"recall": graph.how["recall"]}


def place_rest(
    xy_N2: np.ndarray,
    neighbor_rows_NK: np.ndarray,
    neighbor_scores_NK: np.ndarray,
    progress: Progress | None = None,
) -> None:
    """Fill the coordinates that are NaN from the neighbors that have some, in place.

    Goes round until no more can be placed: a point placed in one round places others in the next.
    """
    say, total = progress or silent, int(np.isnan(xy_N2[:, 0]).sum())
    left, placed = np.flatnonzero(np.isnan(xy_N2[:, 0])), 0
    while len(left):
        known = np.nan_to_num(xy_N2)
        is_known = ~np.isnan(xy_N2[:, 0])
        for start in range(0, len(left), CHUNK):
            rows = left[start : start + CHUNK]
            neighbors, scores = neighbor_rows_NK[rows], neighbor_scores_NK[rows]
            lies = is_known[neighbors]
            some = lies.any(axis=1)
            scores = np.where(lies, scores, -np.inf)
            xy_N2[rows[some]] = place(known, neighbors[some], scores[some])
        still = left[np.isnan(xy_N2[left, 0])]
        if len(still) == len(left):
            return
        left, placed = still, total - len(still)
        say(placed, total, "Placing the rest on the map")


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


def _parted(xy_N2: np.ndarray) -> np.ndarray:
    """PCA coordinates in a usual extent, with a little noise to part exact copies."""
    noise_N2 = generator(0, "umap start").standard_normal(xy_N2.shape)
    scale = np.abs(xy_N2).max() or 1.0
    return (10 * xy_N2 / scale + 1e-3 * noise_N2).astype(np.float32)
