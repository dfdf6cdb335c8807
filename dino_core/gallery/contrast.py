"""What tells one slice of a gallery from another: dimensions of the features, attention heads.

    a = rows_of(gallery, "cluster: kmeans-12/3")
    a, b, both = apart(a, rows_of(gallery, "label: dog"))   # images in both count in neither
    found = contrast_dimensions(gallery.features, a, b)
    found.each.d, found.each.auc                    # [D], by dimension
    found.direction.auc                             # how well a straight line tells them apart
    heads = contrast_heads(model, gallery, a, b)
    heads.each["entropy"].d                         # [L, heads]

A slice is spelled "all", "rest" (everything that is not in the other slice), "selection" (what is
selected on the map), "tag: NAME", "label: NAME" or "cluster: CLUSTERING/NUMBER".

HOW MUCH IS CHANCE. Of 384 dimensions some always differ. So each contrast says how large the
largest |d| became when the same images were dealt out at random twenty times: what does not exceed
it is not worth a story. The direction of the difference of means is judged on images that it was
not made of (two-fold cross-fitting), without which it would tell any two slices apart.

Shapes: N images in A, M in B, D dimensions, V values compared, L layers, h x w patches.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

from dino_core.errors import UserError
from dino_core.files import read_json
from dino_core.gallery.averages import look_size, readable
from dino_core.gallery.clusters import FOLDER, Clustering, clusterings
from dino_core.gallery.notes import Notes
from dino_core.gallery.opened import Gallery
from dino_core.gallery.progress import Progress, silent
from dino_core.rng import generator, permutation

if TYPE_CHECKING:
    from dino_core.lenses.attention import Attention
    from dino_core.models import Model

ALL, REST, SELECTION = "all", "rest", "selection"
TAG, LABEL, CLUSTER = "tag: ", "label: ", "cluster: "
MOST_LABELS = 1000  # listed, the most frequent
MOST_COMPARED = 10_000  # images of a slice whose features are compared: a fixed sample
HEAD_IMAGES = 64  # of a slice
DEALS = 20
TOP_SHARE = 0.1  # of the patches
COLUMNS_AT_ONCE = 64

STATISTICS = {
    "entropy": "how evenly it looks at all patches, 0 (one patch) to 1",
    "distance": "how far its places lie apart, 1 as far as without any preference",
    "top patches": "share of its attention on the strongest tenth of the patches",
}


# -- slices -------------------------------------------------------------------------------------


def slices(gallery: Gallery) -> list[str]:
    """Every slice that can be asked for by its name alone: all, tags, labels, clusters."""
    labels = sorted(map(str, gallery.images["label"].value_counts().index[:MOST_LABELS]))
    clusters = [
        f"{CLUSTER}{name}/{number}"
        for name in clusterings(gallery)
        for number in _numbers(gallery, name)
    ]
    tags = Notes(gallery.path).tags()
    return [ALL, *(TAG + tag for tag in tags), *(LABEL + label for label in labels), *clusters]


def rows_of(
    gallery: Gallery,
    name: str,
    *,
    selection: np.ndarray | None = None,
    other: np.ndarray | None = None,
) -> np.ndarray:
    """The rows of a slice, int64 ascending, without images that are gone.

    `selection`: the rows of "selection"; `other`: those that "rest" leaves out. Raises `UserError`
    for a slice that is not there (any more).
    """
    chosen_N = ~gallery.images["gone"].to_numpy(bool)
    if name == REST:
        chosen_N[np.asarray([] if other is None else other, np.int64)] = False
    elif name != ALL:
        inside_N = np.zeros(len(gallery), bool)
        inside_N[_members(gallery, name, selection)] = True
        chosen_N &= inside_N
    return np.flatnonzero(chosen_N)


def apart(rows_a: np.ndarray, rows_b: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Both without the images that are in both, and how many those are."""
    both = np.intersect1d(rows_a, rows_b)
    return np.setdiff1d(rows_a, both), np.setdiff1d(rows_b, both), len(both)


def _members(gallery: Gallery, name: str, selection: np.ndarray | None) -> np.ndarray:
    if name == SELECTION:
        return np.asarray([] if selection is None else selection, np.int64)
    if name.startswith(TAG):
        tags = Notes(gallery.path).tags()
        if name.removeprefix(TAG) in tags:
            ids = tags[name.removeprefix(TAG)]
            return np.flatnonzero(gallery.images["id"].isin(ids).to_numpy(bool))
    elif name.startswith(LABEL):
        rows = np.flatnonzero(gallery.images["label"] == name.removeprefix(LABEL))
        if len(rows):
            return rows
    elif name.startswith(CLUSTER):
        clustering, _, number = name.removeprefix(CLUSTER).rpartition("/")
        if number.isdecimal():
            return Clustering.read(gallery, clustering).rows(int(number))
    raise UserError(f"{gallery.name}: has no slice {name!r} any more; choose another")


def _numbers(gallery: Gallery, clustering: str) -> list[int]:
    """The clusters of a clustering as its small file lists them; none where it is damaged."""
    try:
        facts = read_json(gallery.path / FOLDER / f"{clustering}.json")
        return [int(number) for number, _ in facts["sizes"]]
    except (UserError, KeyError, TypeError, ValueError):
        return []


# -- values -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contrast:
    """How each of several values differs between A and B."""

    d: np.ndarray  # float64 [V...], Cohen's d: above 0, A has more
    auc: np.ndarray  # float64 [V...], chance that an image of A has more than one of B
    chance: float  # the largest |d| in twenty random deals of the same images

    def strongest(self, count: int) -> list[tuple[int, ...]]:
        """Where |d| is largest, largest first: an index each."""
        order = np.argsort(-np.abs(self.d), axis=None, kind="stable")[:count]
        return list(
            zip(*(one.tolist() for one in np.unravel_index(order, self.d.shape)), strict=True)
        )


def compare(a_NV: np.ndarray, b_MV: np.ndarray, progress: Progress = silent) -> Contrast:
    """Compare values of images, float [N, V...] and [M, V...], with at least two images each.

    Raises `ValueError` for fewer.
    """
    if min(len(a_NV), len(b_MV)) < 2:
        raise ValueError(f"{len(a_NV)} and {len(b_MV)} images: two each are the fewest")
    shape = a_NV.shape[1:]
    both_KV = np.concatenate([a_NV, b_MV]).reshape(len(a_NV) + len(b_MV), -1)
    aucs = []
    for start in range(0, both_KV.shape[1], COLUMNS_AT_ONCE):
        progress(start, both_KV.shape[1], "Comparing values")
        part_KV = both_KV[:, start : start + COLUMNS_AT_ONCE]
        aucs.append(auc(part_KV[: len(a_NV)], part_KV[len(a_NV) :]))
    d_V = cohens_d(a_NV, b_MV).reshape(shape)
    return Contrast(d_V, np.concatenate(aucs).reshape(shape), chance(both_KV, len(a_NV)))


def cohens_d(a_NV: np.ndarray, b_MV: np.ndarray) -> np.ndarray:
    """Difference of the means over the pooled standard deviation, float64 [V...].

    Cohen, "Statistical power analysis for the behavioral sciences" (1988), section 2.2. Where
    nothing varies: 0.
    """
    a_NV, b_MV = np.asarray(a_NV, np.float64), np.asarray(b_MV, np.float64)
    squares_V = sum(((one - one.mean(0)) ** 2).sum(0) for one in (a_NV, b_MV))
    return _over(a_NV.mean(0) - b_MV.mean(0), squares_V / (len(a_NV) + len(b_MV) - 2))


def auc(a_NV: np.ndarray, b_MV: np.ndarray) -> np.ndarray:
    """The chance that an image of A has more than one of B, ties counted half: float64 [V...].

    The Mann-Whitney U from ranks (Hanley, McNeil, "The meaning and use of the area under a receiver
    operating characteristic curve", 1982), over the number of pairs.
    """
    ranks = rankdata(np.concatenate([a_NV, b_MV]), axis=0)[: len(a_NV)].sum(axis=0)
    return (ranks - len(a_NV) * (len(a_NV) + 1) / 2) / (len(a_NV) * len(b_MV))


def chance(both_KV: np.ndarray, count_a: int) -> float:
    """The largest |d| of any value when `count_a` of the images are dealt to A at random."""
    centered_KV = np.asarray(both_KV, np.float32) - both_KV.mean(axis=0, dtype=np.float64)
    centered_KV = centered_KV.astype(np.float32)
    random, count = generator("contrast", "deals"), len(both_KV)
    dealt_RK = np.zeros((DEALS, count), np.float32)
    for deal in dealt_RK:
        deal[random.permutation(count)[:count_a]] = 1
    sums_RV = (dealt_RK @ centered_KV).astype(np.float64)  # of A; those of B are the opposite
    mean_a_RV, mean_b_RV = sums_RV / count_a, -sums_RV / (count - count_a)
    square_V = np.einsum("kv,kv->v", centered_KV, centered_KV, dtype=np.float64)
    within_RV = square_V - count_a * mean_a_RV**2 - (count - count_a) * mean_b_RV**2
    return float(np.abs(_over(mean_a_RV - mean_b_RV, within_RV / (count - 2))).max(initial=0))


def _over(difference: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Difference by standard deviation; 0 where the variance is rounding only."""
    varies = variance > 1e-14
    return np.where(varies, difference / np.sqrt(np.where(varies, variance, 1)), 0.0)


# -- dimensions ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Direction:
    """How well one straight line, from mean to mean, tells A from B on images it was not made of.

    A score is an image's place on the line, 0 halfway between the means, above 0 on A's side.
    """

    auc: float  # mean of the two folds; 0.5 is chance
    right: float  # share of the images on their own side, both slices counted the same
    scores_a: np.ndarray  # float64 [N]
    scores_b: np.ndarray  # float64 [M]


@dataclass(frozen=True)
class DimensionContrast:
    """Which dimensions of the features tell A from B."""

    each: Contrast  # [D]
    direction: Direction | None  # None where a slice has fewer than four images
    rows_a: np.ndarray  # int64 [N], the images that were compared
    rows_b: np.ndarray  # int64 [M]

    def showing(
        self, features_ND: np.ndarray, dimension: int | None, count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The images that show a dimension's difference best, or the direction's for None.

        Returns rows of A and of B, and their values, the most telling first.
        """
        if dimension is None:
            assert self.direction is not None
            values_a, values_b, sign = self.direction.scores_a, self.direction.scores_b, 1
        else:
            values_a, values_b = (
                features_ND[rows, dimension] for rows in (self.rows_a, self.rows_b)
            )
            sign = 1 if self.each.d[dimension] >= 0 else -1
        at_a, at_b = telling(values_a, values_b, sign, count)
        return self.rows_a[at_a], self.rows_b[at_b], values_a[at_a], values_b[at_b]


def contrast_dimensions(
    features_ND: np.ndarray, rows_a: np.ndarray, rows_b: np.ndarray, progress: Progress = silent
) -> DimensionContrast:
    """Compare two slices, dimension by dimension and along the difference of their means.

    Of slices of more than 10,000 images a fixed sample. Raises `UserError` for a slice of fewer
    than two.
    """
    require_two(rows_a, rows_b)
    rows_a, rows_b = sampled(rows_a), sampled(rows_b)
    a_ND, b_MD = features_ND[rows_a], features_ND[rows_b]
    each = compare(a_ND, b_MD, progress)
    few = min(len(rows_a), len(rows_b)) < 4
    return DimensionContrast(each, None if few else direction(a_ND, b_MD), rows_a, rows_b)


def direction(a_ND: np.ndarray, b_MD: np.ndarray) -> Direction:
    """The line through both means, made of one half of the images and judged on the other.

    Every image is scored once, by the line that it had no part in (two-fold cross-fitting).
    """
    scores = [np.empty(len(one)) for one in (a_ND, b_MD)]
    halves = [permutation(len(one), "contrast", "halves") % 2 == 0 for one in (a_ND, b_MD)]
    areas = []
    for fold in (False, True):
        made = [
            one[half == fold].mean(0, dtype=np.float64)
            for one, half in zip((a_ND, b_MD), halves, strict=True)
        ]
        line_D = made[0] - made[1]
        line_D /= max(float(np.linalg.norm(line_D)), np.finfo(np.float64).tiny)
        judged = []
        for place, (one, half) in enumerate(zip((a_ND, b_MD), halves, strict=True)):
            scores[place][half != fold] = (one[half != fold] - (made[0] + made[1]) / 2) @ line_D
            judged.append(scores[place][half != fold])
        areas.append(float(auc(*judged)))
    right = ((scores[0] > 0).mean() + (scores[1] < 0).mean()) / 2
    return Direction(float(np.mean(areas)), float(right), scores[0], scores[1])


def telling(
    values_a: np.ndarray, values_b: np.ndarray, sign: float, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places in A with the most, and in B with the least, of `sign` times the value."""
    at_a = np.argsort(-sign * values_a, kind="stable")[:count]
    return at_a, np.argsort(sign * values_b, kind="stable")[:count]


def sampled(rows: np.ndarray, most: int = MOST_COMPARED) -> np.ndarray:
    """Up to `most` of the rows, ascending: always the same ones."""
    if len(rows) <= most:
        return rows
    return rows[np.sort(permutation(len(rows), "contrast", "sample")[:most])]


def require_two(rows_a: np.ndarray, rows_b: np.ndarray) -> None:
    """Raise `UserError` unless both slices have two images."""
    for name, rows in (("A", rows_a), ("B", rows_b)):
        if len(rows) < 2:
            raise UserError(
                f"slice {name} has {len(rows)} images that are not in the other one, and comparing "
                "takes 2; choose another slice"
            )


# -- heads --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadContrast:
    """Which attention heads look differently at A and B."""

    each: dict[str, Contrast]  # by statistic, [L, heads]
    rows_a: tuple[int, ...]  # the images that were looked at
    rows_b: tuple[int, ...]
    values_a: np.ndarray  # float64 [N, statistics, L, heads]
    values_b: np.ndarray
    maps: dict[int, np.ndarray]  # row -> float16 [L, heads, h, w], each head's map by its maximum

    def strongest(self, count: int) -> list[tuple[str, int, int]]:
        """(statistic, layer, head) with the largest |d|, the largest first; each head once."""
        names = list(self.each)
        stacked = np.abs(np.stack([self.each[name].d for name in names]))
        best = stacked.argmax(axis=0)
        order = np.argsort(-stacked.max(axis=0), axis=None, kind="stable")[:count]
        layers, heads = np.unravel_index(order, best.shape)
        return [(names[best[at]], *map(int, at)) for at in zip(layers, heads, strict=True)]

    def showing(
        self, statistic: str, layer: int, head: int, count: int
    ) -> tuple[list[int], list[int]]:
        """The images of A and of B that show the difference best."""
        place = list(self.each).index(statistic)
        sign = 1 if self.each[statistic].d[layer, head] >= 0 else -1
        at_a, at_b = telling(
            self.values_a[:, place, layer, head], self.values_b[:, place, layer, head], sign, count
        )
        return [self.rows_a[at] for at in at_a], [self.rows_b[at] for at in at_b]


def contrast_heads(
    model: "Model",
    gallery: Gallery,
    rows_a: np.ndarray,
    rows_b: np.ndarray,
    *,
    most: int = HEAD_IMAGES,
    progress: Progress = silent,
) -> HeadContrast:
    """Look at up to 64 images of each slice and compare what each head does with them.

    Raises `UserError` when fewer than two images of a slice can be read, and for a model without
    attention.
    """
    from dino_core.lenses.attention import look

    require_two(rows_a, rows_b)
    total = min(most, len(rows_a)) + min(most, len(rows_b))
    values: list[list[np.ndarray]] = [[], []]
    used: list[list[int]] = [[], []]
    maps: dict[int, np.ndarray] = {}
    for place, rows in enumerate((rows_a, rows_b)):
        for row, image in readable(gallery, rows, most):
            progress(len(maps), total, "Looking at both slices")
            seen = look(model, image, size=look_size(model))
            values[place].append(head_statistics(seen))
            highest = np.maximum(seen.maps.max(axis=(-2, -1), keepdims=True), 1e-30)
            maps[row] = (seen.maps / highest).astype(np.float16)
            used[place].append(row)
        if len(used[place]) < 2:
            raise UserError(f"slice {'AB'[place]}: only one of its images could be read")
    a, b = np.stack(values[0]), np.stack(values[1])
    each = {name: compare(a[:, i], b[:, i]) for i, name in enumerate(STATISTICS)}
    return HeadContrast(each, tuple(used[0]), tuple(used[1]), a, b, maps)


def head_statistics(attention: "Attention") -> np.ndarray:
    """Entropy, distance and share of the top patches of each map: float64 [3, L, heads].

    Distance is the standard deviation of the position under a map (`lenses.health.spread`) over
    that of a map of ones on the same grid, so that images of any shape compare.
    """
    from dino_core.lenses.health import spread  # loads torch, which takes seconds

    flat = attention.maps.reshape(attention.layers, attention.heads, -1).astype(np.float64)
    top = max(1, round(TOP_SHARE * flat.shape[-1]))
    strongest = np.partition(flat, flat.shape[-1] - top, axis=-1)[..., -top:].sum(axis=-1)
    share = strongest / np.maximum(flat.sum(axis=-1), np.finfo(np.float64).tiny)
    even = max(float(spread(np.ones(attention.grid))), np.finfo(np.float64).tiny)
    distance = np.nan_to_num(spread(attention.maps) / even)  # a map without mass has no place
    return np.stack([attention.entropy(), distance, share])
