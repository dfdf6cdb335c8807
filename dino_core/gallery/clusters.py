"""Clusterings of a gallery: made by k-means or HDBSCAN, kept beside it, edited by hand.

    made = kmeans(gallery, 12)                      # of the features; kept as "kmeans-12"
    made = hdbscan(gallery, "umap", 30)             # of a map's points; "hdbscan-umap-30"
    clusterings(gallery)                            # ["hdbscan-umap-30", "kmeans-12"]
    made = Clustering.read(gallery, "kmeans-12")
    merge(gallery, "kmeans-12", [3, 7])             # 7 becomes part of 3
    split(gallery, "kmeans-12", 3, 2)               # the larger part stays 3
    undo(gallery, "kmeans-12")                      # one step back
    describe(gallery, made)                         # sizes, medoids, labels, purity

On the disk a clustering is `clusters/NAME.npz` (which cluster each image is in, before the last
edit too) and `clusters/NAME.json` (how it was made, sizes, what was edited). Images are known by
their ids there, so a clustering outlives a gallery that gained or lost images: new ones are in no
cluster.

NUMBERS STAND FOR CLUSTERS, for names that a user gave (`Notes`), tags and addresses refer to them.
Merging and splitting leave all other numbers as they are. When a clustering is made again under the
same name, a new cluster that IS an old one (more than half of what is in either is in both) takes
its number, and so keeps its name; two new ones cannot both. The others get numbers that no named
cluster had.

Shapes: N images, D dimensions, C clusters, K neighbors, S images in a sample, B rows at a time.
"""

import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from dino_core.errors import UserError
from dino_core.files import held, read_json, whole_file, write_json
from dino_core.gallery.manifest import require_there
from dino_core.gallery.progress import Progress, silent
from dino_core.measures import partitions
from dino_core.rng import generator, permutation

if TYPE_CHECKING:
    from dino_core.gallery.opened import Gallery

NONE = partitions.NOT_GROUPED  # of an image in no cluster
FOLDER = "clusters"
VERSION = 1

MOST_CLUSTERS = 1000
A_CLUSTER = 256  # images that k-means learns a center of, as FAISS has it
MOST_SAMPLED = 200_000  # images that k-means learns all centers of: 300 MB at width 384
SEEDED_A_CLUSTER = 32  # images that first centers are chosen among
ROUNDS = 12
CLUSTERED_WHOLE = 100_000  # points; of more than that HDBSCAN gets a sample
MOST_CORE_NEIGHBORS = 30  # that a point's density is judged by: memory is this times the points
CHUNK = 16_384  # rows in memory at a time
MEDOIDS = 12

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,99}")


@dataclass(frozen=True)
class Clustering:
    """Which cluster each image of a gallery is in, and how that came about."""

    name: str
    labels: np.ndarray  # int32 [N], the number of the image's cluster, or -1 for none
    made: dict[str, Any]  # "method" and its settings
    created: str = ""  # ISO 8601, UTC
    history: tuple[dict[str, Any], ...] = ()  # edits, oldest first: "what", "when" and of what
    before: np.ndarray | None = field(default=None, repr=False)  # `labels` before the last edit
    added: int = 0  # images that the gallery gained since: in no cluster

    @property
    def sizes(self) -> dict[int, int]:
        """Images of each cluster, by its number; clusters without any are not there."""
        counts = np.bincount(self.labels[self.labels != NONE])
        return {int(number): int(counts[number]) for number in np.flatnonzero(counts)}

    @property
    def unclustered(self) -> int:
        """Images in no cluster."""
        return int(np.count_nonzero(self.labels == NONE))

    def rows(self, cluster: int) -> np.ndarray:
        """The images of a cluster, int64 ascending. Raises `UserError` when there is none."""
        rows = np.flatnonzero(self.labels == cluster)
        if cluster == NONE or len(rows) == 0:
            raise UserError(f"{self.name}: has no cluster {cluster}")
        return rows

    def how(self) -> str:
        """How it was made, in a few words."""
        made = self.made
        if made.get("method") == "kmeans":
            words = f"k-means, {made['k']} clusters of the features"
        else:
            words = f"HDBSCAN on the map {made['map']}, at least {made['min_size']} images each"
        if "sampled" in made:
            words += f", learned from {made['sampled']:,} of them"
        edits = sum(step.get("what") in ("merge", "split") for step in self.history)
        return words + (f", edited {edits} time{'' if edits == 1 else 's'}" if edits else "")

    @classmethod
    def read(cls, gallery: "Gallery", name: str) -> "Clustering":
        """Read a clustering that was kept. Raises `UserError` for one that is missing or damaged.

        Where the gallery has other images than then, they are matched by their ids.
        """
        facts_path, arrays_path = _paths(gallery, name)
        if not facts_path.is_file():
            raise UserError(f"{gallery.path}: has no clustering {name!r}; {_there(gallery)}")
        facts = read_json(facts_path)
        arrays = _read_arrays(arrays_path)
        try:
            if facts["version"] != VERSION:
                raise UserError(
                    f"{facts_path}: has format version {facts['version']}, and this program reads "
                    f"{VERSION}; make the clustering again, or update this program"
                )
            labels, before, added = _matched(gallery, facts["images"], arrays)
            return cls(
                name=name,
                labels=labels,
                made=dict(facts["made"]),
                created=str(facts["created"]),
                history=tuple(facts["history"]),
                before=before,
                added=added,
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"{facts_path}: is damaged ({error}); make it again") from None

    def write(self, gallery: "Gallery") -> None:
        """Keep it beside the gallery. Raises `UserError` when the disk says no."""
        facts_path, arrays_path = _paths(gallery, self.name)
        require_there(gallery.path)
        arrays = {"labels": self.labels.astype(np.int32), "ids": _hashed_ids(gallery)}
        if self.before is not None:
            arrays["before"] = self.before.astype(np.int32)
        with whole_file(arrays_path) as aside, aside.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        write_json(
            facts_path,
            {
                "version": VERSION,
                "made": self.made,
                "created": self.created,
                "changed": _now(),
                "images": _stamp(gallery),
                "sizes": [list(pair) for pair in self.sizes.items()],
                "unclustered": self.unclustered,
                "history": list(self.history),
            },
        )


def clusterings(gallery: "Gallery") -> list[str]:
    """The names of the clusterings that are kept with a gallery, in order."""
    found = (gallery.path / FOLDER).glob("*.json")
    return sorted(one.stem for one in found if _NAME.fullmatch(one.stem))


def stamp(gallery: "Gallery", name: str) -> int:
    """What changes whenever a clustering does: nanoseconds. 0 where there is none."""
    try:
        return _paths(gallery, name)[1].stat().st_mtime_ns
    except (OSError, UserError):
        return 0


def remove(gallery: "Gallery", name: str) -> None:
    """Delete a clustering; names that users gave its clusters stay, for when it is made again."""
    for path in _paths(gallery, name):
        path.unlink(missing_ok=True)


# -- making -------------------------------------------------------------------------------------


def kmeans(gallery: "Gallery", k: int, *, seed: int = 0, progress: Progress = silent) -> Clustering:
    """`k` clusters of the features by their directions, kept as "kmeans-K"; 0 is the largest.

    Centers are learned from at most 256 images a cluster (a fixed sample), then each image goes to
    the nearest. The same seed gives the same clusters. Raises `UserError` for a `k` that makes no
    sense here.
    """
    rows_M = _there_rows(gallery)
    if not 2 <= k <= min(MOST_CLUSTERS, len(rows_M)):
        most = min(MOST_CLUSTERS, len(rows_M))
        raise UserError(
            f"{k} clusters of {len(rows_M):,} images: choose a number from 2 to {most:,}"
            if most >= 2
            else f"{gallery.path}: has too few images ({len(rows_M)}) for clusters"
        )
    labels_M, sampled = spherical_kmeans(gallery.features, rows_M, k, seed, progress)
    made = {"method": "kmeans", "k": k, "seed": seed, "of": gallery.info.feature_hash}
    if sampled < len(rows_M):
        made["sampled"] = sampled
    return _keep(gallery, f"kmeans-{k}", rows_M, labels_M, made)


def hdbscan(
    gallery: "Gallery", map_name: str, min_size: int, *, progress: Progress = silent
) -> Clustering:
    """Dense regions of a map as clusters, kept as "hdbscan-MAP-SIZE"; images between are in none.

    Campello et al., "Density-based clustering based on hierarchical density estimates" (2013), as
    in scikit-learn. `min_size`: the fewest images that make a cluster. Of more than 100,000 points
    a fixed sample is clustered (with `min_size` scaled down alike), and every other image goes with
    the most of its stored neighbors that are in a cluster; where none is, it is in none.
    """
    if min_size < 2:
        raise UserError(f"a cluster of at least {min_size} images: choose 2 or more")
    xy_N2 = gallery.map(map_name)[["x", "y"]].to_numpy(np.float64)
    placed_N = np.isfinite(xy_N2).all(axis=1) & ~gallery.images["gone"].to_numpy(bool)
    rows_M = np.flatnonzero(placed_N)
    if len(rows_M) < min_size:
        raise UserError(
            f"a cluster of at least {min_size} images: the map {map_name} has {len(rows_M):,} "
            "points; choose a smaller size"
        )
    sample_S = rows_M
    if len(rows_M) > CLUSTERED_WHOLE:
        drawn = permutation(len(rows_M), "hdbscan")[:CLUSTERED_WHOLE]
        sample_S = rows_M[np.sort(drawn)]
    labels_N = np.full(len(gallery), NONE, np.int32)
    fewest = max(2, round(min_size * len(sample_S) / len(rows_M)))
    labels_N[sample_S] = dense_regions(xy_N2[sample_S], fewest, progress)
    made: dict[str, Any] = {"method": "hdbscan", "map": map_name, "min_size": min_size}
    if len(sample_S) < len(rows_M):
        made["sampled"] = len(sample_S)
        rest_R = np.setdiff1d(rows_M, sample_S, assume_unique=True)
        neighbors_NK, _ = gallery.neighbors()
        labels_N[rest_R] = voted(labels_N.copy(), neighbors_NK, rest_R, progress)
    return _keep(gallery, f"hdbscan-{map_name}-{min_size}", rows_M, labels_N[rows_M], made)


def spherical_kmeans(
    features_ND: np.ndarray, rows_M: np.ndarray, k: int, seed: int, progress: Progress = silent
) -> tuple[np.ndarray, int]:
    """Clusters of some rows of L2-normalized features: int32 [M], 0..k-1; and the sample's size.

    First centers as in Arthur, Vassilvitskii, "k-means++" (2007), then rounds of FAISS' k-means
    (which also fills clusters that run empty). One round at a time, so that it can be stopped.
    """
    import faiss

    most = min(max(A_CLUSTER * k, 1), MOST_SAMPLED)
    sample_S = rows_M
    if len(rows_M) > most:
        drawn = permutation(len(rows_M), seed, "k-means sample")[:most]
        sample_S = rows_M[np.sort(drawn)]  # ascending: the disk is read in one direction
    points_SD = np.ascontiguousarray(features_ND[sample_S], np.float32)
    centers_CD = _first_centers(points_SD, k, seed)
    for done in range(ROUNDS):
        progress(done, ROUNDS, "Learning centers")
        # A round of FAISS cannot be stopped; twelve of one each can, and end at the same centers.
        learner = faiss.Kmeans(
            points_SD.shape[1], k, niter=1, spherical=True, seed=seed + 1,
            min_points_per_centroid=1, max_points_per_centroid=len(points_SD),
        )  # fmt: skip
        learner.train(points_SD, init_centroids=centers_CD)
        before_CD, centers_CD = centers_CD, np.array(learner.centroids, np.float32)
        if np.allclose(before_CD, centers_CD, atol=1e-6):
            break
    del points_SD
    labels_M = np.empty(len(rows_M), np.int32)
    for start in range(0, len(rows_M), CHUNK):
        part = slice(start, start + CHUNK)
        progress(start, len(rows_M), "Assigning images")
        chunk_BD = np.ascontiguousarray(features_ND[rows_M[part]], np.float32)
        _, nearest_B1 = faiss.knn(chunk_BD, centers_CD, 1, faiss.METRIC_INNER_PRODUCT)
        labels_M[part] = nearest_B1[:, 0]
    progress(len(rows_M), len(rows_M), "Assigning images")
    return labels_M, len(sample_S)


def _first_centers(points_SD: np.ndarray, k: int, seed: int) -> np.ndarray:
    """`k` of the points, each drawn in proportion to its squared distance to those before it."""
    random = generator(seed, "k-means++")
    few = points_SD
    if len(points_SD) > SEEDED_A_CLUSTER * k:
        few = points_SD[np.sort(random.permutation(len(points_SD))[: SEEDED_A_CLUSTER * k])]
    chosen = [int(random.integers(len(few)))]
    away_S = np.full(len(few), np.inf)
    for _ in range(k - 1):
        away_S = np.minimum(away_S, np.maximum(1 - few @ few[chosen[-1]], 0))  # half the square
        away_S[chosen] = 0
        sum_S = np.cumsum(away_S, dtype=np.float64)
        if sum_S[-1] <= 0:  # fewer different points than clusters
            rest = np.setdiff1d(np.arange(len(few)), chosen)
            chosen.append(int(rest[random.integers(len(rest))]))
            continue
        chosen.append(int(np.searchsorted(sum_S, random.random() * sum_S[-1], side="right")))
    return np.ascontiguousarray(few[chosen])


def dense_regions(xy_S2: np.ndarray, min_size: int, progress: Progress = silent) -> np.ndarray:
    """HDBSCAN of points in the plane: int32 [S], -1 between the regions."""
    from sklearn.cluster import HDBSCAN

    progress(0, 1, f"Finding dense regions among {len(xy_S2):,} points")
    core = max(1, min(min_size, MOST_CORE_NEIGHBORS, len(xy_S2) - 1))
    found = HDBSCAN(min_cluster_size=min_size, min_samples=core, copy=True).fit_predict(xy_S2)
    progress(1, 1, f"Finding dense regions among {len(xy_S2):,} points")
    return np.maximum(found, NONE).astype(np.int32)  # below -1: of points without a place


def voted(
    labels_N: np.ndarray,
    neighbors_NK: np.ndarray,
    rows_R: np.ndarray,
    progress: Progress = silent,
) -> np.ndarray:
    """The most frequent cluster among each row's neighbors that have one, or -1: int32 [R].

    Among equally frequent ones the nearest neighbor's. `neighbors_NK`: rows, best first.
    """
    found_R = np.full(len(rows_R), NONE, np.int32)
    for start in range(0, len(rows_R) if neighbors_NK.shape[1] else 0, CHUNK):
        progress(start, len(rows_R), "Placing the other images")
        theirs_BK = labels_N[neighbors_NK[rows_R[start : start + CHUNK]]]
        votes_BK = np.zeros(theirs_BK.shape, np.int16)
        for column in range(theirs_BK.shape[1]):  # a table of all pairs would be K times as large
            votes_BK += theirs_BK == theirs_BK[:, column, None]
        votes_BK[theirs_BK == NONE] = 0
        best_B = votes_BK.argmax(axis=1)  # the first, so the nearest
        found_R[start : start + CHUNK] = theirs_BK[np.arange(len(theirs_BK)), best_B]
    return found_R


def _keep(
    gallery: "Gallery", name: str, rows_M: np.ndarray, labels_M: np.ndarray, made: dict[str, Any]
) -> Clustering:
    """Number clusters by size, or as they were when made before, and write them."""
    labels_N = np.full(len(gallery), NONE, np.int32)
    labels_N[rows_M] = _by_size(labels_M)
    with _edited(gallery, name):
        history: tuple[dict[str, Any], ...] = ()
        before = None
        if name in clusterings(gallery):
            before, history = _as_it_was(gallery, name)
        if before is not None:
            labels_N = matched_numbers(before, labels_N, reserved=_named(gallery, name))
            history = (*history, {"what": "made again", "when": _now()})
        clustering = Clustering(name, labels_N, made, _now(), history, before)
        clustering.write(gallery)
    return clustering


def _as_it_was(
    gallery: "Gallery", name: str
) -> tuple[np.ndarray | None, tuple[dict[str, Any], ...]]:
    """Labels and history of a clustering that is about to be made again; none if it is damaged."""
    try:
        old = Clustering.read(gallery, name)
    except UserError:
        return None, ()
    return old.labels, old.history


def _by_size(labels_M: np.ndarray) -> np.ndarray:
    """The same clusters numbered by size, the largest 0; equal ones in the order they had."""
    counts_C = np.bincount(labels_M[labels_M != NONE], minlength=1)
    place_C = np.empty(len(counts_C) + 1, np.int32)
    place_C[np.argsort(-counts_C, kind="stable")] = np.arange(len(counts_C))
    place_C[NONE] = NONE  # the last entry, which -1 reads
    return place_C[labels_M]


def matched_numbers(
    old_N: np.ndarray, new_N: np.ndarray, reserved: Sequence[int] = ()
) -> np.ndarray:
    """`new_N` with the number of the old cluster for each new one that is the same: int32 [N].

    The same are two clusters of which more than half of what is in either is in both (intersection
    over union above 0.5): of one partition at most one can be, for each of the other. The rest get
    the lowest numbers that are neither taken nor `reserved`, the largest cluster first.
    """
    old_sizes, new_sizes = (np.bincount(one[one != NONE], minlength=1) for one in (old_N, new_N))
    both = partitions.overlap(new_N, old_N)
    union_P = new_sizes[both.first] + old_sizes[both.second] - both.count
    same_P = both.count > union_P / 2
    number_C = np.full(len(new_sizes) + 1, NONE, np.int32)
    number_C[both.first[same_P]] = both.second[same_P]
    rest = [int(c) for c in np.argsort(-new_sizes, kind="stable") if number_C[c] == NONE]
    taken = {*number_C.tolist(), *reserved}
    free = (number for number in range(len(new_sizes) + len(taken)) if number not in taken)
    number_C[rest] = [next(free) for _ in rest]
    number_C[NONE] = NONE
    return number_C[new_N]


# -- editing ------------------------------------------------------------------------------------


def merge(gallery: "Gallery", name: str, clusters: Sequence[int]) -> Clustering:
    """Make one cluster of several: it has the number, and so the name, of the first.

    Raises `UserError` for clusters that are not there, or fewer than two.
    """
    wanted = list(dict.fromkeys(int(one) for one in clusters))
    if len(wanted) < 2:
        raise UserError(f"{name}: merging takes two clusters or more")
    with _edited(gallery, name):
        old = Clustering.read(gallery, name)
        _require(old, wanted)
        labels_N = np.where(np.isin(old.labels, wanted), np.int32(wanted[0]), old.labels)
        return _change(gallery, old, labels_N, {"what": "merge", "clusters": wanted})


def split(
    gallery: "Gallery", name: str, cluster: int, k: int = 2, progress: Progress = silent
) -> Clustering:
    """Make `k` clusters of one, by k-means on its members' features.

    The largest part keeps the number; the others get the lowest ones that neither a cluster nor a
    name has. Raises `UserError` for a cluster that is not there or has fewer than `k` images.
    """
    with _edited(gallery, name):
        old = Clustering.read(gallery, name)
        _require(old, [cluster])
        rows_M = old.rows(cluster)
        if not 2 <= k <= min(len(rows_M), MOST_CLUSTERS):
            raise UserError(
                f"{name}: cluster {cluster} has {len(rows_M):,} images and cannot be split into {k}"
            )
        parts_M, _ = spherical_kmeans(gallery.features, rows_M, k, 0, progress)
        parts_M = _by_size(parts_M)
        taken = {*old.sizes, *_named(gallery, name)}
        free = [one for one in range(len(taken) + k) if one not in taken][: k - 1]
        labels_N = old.labels.copy()
        labels_N[rows_M] = np.array([cluster, *free], np.int32)[parts_M]
        step = {"what": "split", "clusters": [cluster], "into": [cluster, *free]}
        return _change(gallery, old, labels_N, step)


def undo(gallery: "Gallery", name: str) -> Clustering:
    """Take back the last edit, or the last time it was made again; one step can be taken back.

    Raises `UserError` when there is nothing to take back.
    """
    with _edited(gallery, name):
        old = Clustering.read(gallery, name)
        if old.before is None:
            raise UserError(f"{name}: has no edit that could be taken back")
        history = (*old.history, {"what": "undo", "when": _now()})
        back = replace(old, labels=old.before, before=None, history=history)
        back.write(gallery)
        return back


def _change(
    gallery: "Gallery", old: Clustering, labels_N: np.ndarray, step: dict[str, Any]
) -> Clustering:
    history = (*old.history, {**step, "when": _now()})
    new = replace(old, labels=labels_N, before=old.labels, history=history)
    new.write(gallery)
    return new


def _require(clustering: Clustering, clusters: Sequence[int]) -> None:
    sizes = clustering.sizes
    for one in clusters:
        if one not in sizes:
            raise UserError(f"{clustering.name}: has no cluster {one}; it may have been edited")


def _edited(gallery: "Gallery", name: str) -> Any:
    """One edit of a gallery's clusterings at a time, in this process or another."""
    sentence = f"{name}: is being edited or made by someone else; try again when that has ended"
    require_there(gallery.path)
    return held(gallery.path / FOLDER / f".{name}.lock", sentence)


def _named(gallery: "Gallery", name: str) -> list[int]:
    """Numbers that a user's name refers to, whether or not there is such a cluster now."""
    from dino_core.gallery.notes import Notes

    return list(Notes(gallery.path).cluster_names(name))


# -- looking ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """What is known of one cluster."""

    number: int
    rows: np.ndarray = field(repr=False)  # int64, nearest to the mean direction first
    tightness: float  # mean cosine of the images with their mean direction, -1 to 1
    label: str | None  # the most frequent label; None where no image has one
    purity: float | None  # share of its labeled images that have it

    @property
    def size(self) -> int:
        return len(self.rows)

    @property
    def medoids(self) -> np.ndarray:
        """The images that stand for it: the twelve nearest to its mean direction."""
        return self.rows[:MEDOIDS]


@dataclass(frozen=True)
class Description:
    """What is known of a whole clustering. Agreement is None where there are no labels."""

    clusters: tuple[Cluster, ...]  # the largest first
    purity: float | None = None
    nmi: float | None = None
    ari: float | None = None
    labeled: int = 0  # images with a label and a cluster, which the three are of


def describe(
    gallery: "Gallery", clustering: Clustering, progress: Progress = silent
) -> Description:
    """Sizes, medoids, labels and agreement. Reads the features twice, in chunks."""
    sizes = clustering.sizes
    numbers = sorted(sizes, key=lambda number: (-sizes[number], number))
    place_of = np.full(max(numbers, default=0) + 2, NONE, np.int64)
    place_of[numbers] = np.arange(len(numbers))
    places_N = place_of[clustering.labels]  # -1 reads the last entry, which is -1
    score_N = typicality(gallery.features, places_N, len(numbers), progress)
    order_N = np.lexsort((-score_N, places_N))
    starts = np.searchsorted(places_N[order_N], np.arange(len(numbers) + 1))
    names, purities, whole = _of_labels(gallery, places_N, len(numbers))
    found = tuple(
        Cluster(
            number=number,
            rows=order_N[first:last],
            tightness=float(score_N[order_N[first:last]].mean()),
            label=names[place],
            purity=purities[place],
        )
        for place, (number, first, last) in enumerate(
            zip(numbers, starts[:-1], starts[1:], strict=True)
        )
    )
    return Description(found, **whole)


def typicality(
    features_ND: np.ndarray, places_N: np.ndarray, count: int, progress: Progress = silent
) -> np.ndarray:
    """Each image's cosine with the mean direction of its group, float32 [N]; NaN in no group.

    `places_N`: groups 0..count-1, or -1.
    """
    total = 2 * len(features_ND)
    sums_CD = np.zeros((count, features_ND.shape[1]))
    for start in range(0, len(features_ND), CHUNK):
        progress(start, total, "Looking at each cluster")
        places_B = places_N[start : start + CHUNK]
        inside = np.flatnonzero(places_B != NONE)
        shape = (count, len(places_B))
        member_CB = csr_array((np.ones(len(inside)), (places_B[inside], inside)), shape=shape)
        sums_CD += member_CB @ features_ND[start : start + CHUNK]
    norms_C1 = np.linalg.norm(sums_CD, axis=1, keepdims=True)
    means_CD = (sums_CD / np.where(norms_C1 > 0, norms_C1, 1)).astype(np.float32)
    score_N = np.full(len(features_ND), np.nan, np.float32)
    for start in range(0, len(features_ND), CHUNK):
        progress(len(features_ND) + start, total, "Looking at each cluster")
        inside = start + np.flatnonzero(places_N[start : start + CHUNK] != NONE)
        ours_BD = means_CD[places_N[inside]]
        score_N[inside] = np.einsum("bd,bd->b", features_ND[inside], ours_BD)
    progress(total, total, "Looking at each cluster")
    return score_N


def _of_labels(
    gallery: "Gallery", places_N: np.ndarray, count: int
) -> tuple[list[str | None], list[float | None], dict[str, Any]]:
    """Per cluster the most frequent label and its share; and how all agree with the labels."""
    codes_N, names = pd.factorize(gallery.images["label"], sort=True)  # missing: -1
    found = partitions.overlap(places_N, codes_N)
    labels: list[str | None] = [None] * count
    purities: list[float | None] = [None] * count
    if found.total == 0:
        return labels, purities, {}
    order = np.lexsort((found.second, -found.count, found.first))
    places, firsts = np.unique(found.first[order], return_index=True)
    best = order[firsts]
    labeled_C = np.bincount(found.first, found.count, minlength=count)
    for place, label, number in zip(places, found.second[best], found.count[best], strict=True):
        labels[place] = str(names[label])
        purities[place] = float(number / labeled_C[place])
    return labels, purities, {
        "purity": partitions.purity(places_N, codes_N),
        "nmi": partitions.nmi(places_N, codes_N),
        "ari": partitions.ari(places_N, codes_N),
        "labeled": found.total,
    }  # fmt: skip


# -- the files ----------------------------------------------------------------------------------


def _paths(gallery: "Gallery", name: str) -> tuple[Path, Path]:
    """The two files of a clustering. Raises `UserError` for what cannot be a name."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} cannot be the name of a clustering")
    folder = gallery.path / FOLDER
    return folder / f"{name}.json", folder / f"{name}.npz"


def _there(gallery: "Gallery") -> str:
    there = clusterings(gallery)
    return f"there are {', '.join(there)}" if there else "there is none yet; make one"


def _there_rows(gallery: "Gallery") -> np.ndarray:
    """Rows of the images that are not gone."""
    return np.flatnonzero(~gallery.images["gone"].to_numpy(bool))


def _stamp(gallery: "Gallery") -> str:
    """While this is the same, the rows of the gallery are."""
    return f"{gallery.info.source_hash} {len(gallery)}"


def _hashed_ids(gallery: "Gallery") -> np.ndarray:
    """A number for each image's id, uint64 [N]: 8 MB for a million instead of their text."""
    return pd.util.hash_array(gallery.images["id"].to_numpy(object), categorize=False)


def _matched(
    gallery: "Gallery", stamp: str, arrays: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Labels, labels before, and images added since, for the rows that the gallery has now."""
    labels, before = arrays["labels"], arrays.get("before")
    if labels.shape != arrays["ids"].shape or (before is not None and before.shape != labels.shape):
        raise ValueError("its arrays differ in length")
    if labels.dtype.kind != "i" or labels.min(initial=0) < NONE:
        raise ValueError("its numbers are no clusters")
    if stamp == _stamp(gallery) and len(labels) == len(gallery):
        return labels, before, 0
    at_N = pd.Index(arrays["ids"]).get_indexer(_hashed_ids(gallery))
    known_N = at_N >= 0
    moved = [
        None if one is None else np.where(known_N, one[at_N], NONE).astype(np.int32)
        for one in (labels, before)
    ]
    assert moved[0] is not None
    return moved[0], moved[1], int(np.count_nonzero(~known_N))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        raise UserError(f"{path}: is missing or damaged; make the clustering again") from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
