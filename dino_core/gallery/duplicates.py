"""Images that are there more than once: equal files, images that are nearly alike, split leaks.

    alike = Alike.of(gallery)                # once: sorts the pairs of the stored neighbor graph
    alike.count(0.95)                        # (groups, images), at once, for any threshold
    groups = alike.groups(0.95)
    groups.rows_of(0), groups.weakest[0]
    leaks = groups.where(spans(groups, codes_of(gallery.images["split"])) > 1)

Two images belong to one group when a chain of pairs leads from one to the other, each pair at least
as alike as the threshold. Equal files have equal content hashes; the same picture stored in another
format is no equal file, but its cosine is close to 1. An image has only so many stored neighbors
(30): further ones of a large group are reached over chains.

Shapes: N images, P pairs, L links, G groups, M members of all groups, K neighbors.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from dino_core.gallery.opened import Gallery
from dino_core.gallery.progress import Progress, silent
from dino_core.measures.fences import fences

MOST_PAIRS = 3_000_000  # the most alike; a threshold that takes more finds no duplicates
BLOCK = 100_000  # images looked at together
SAME = np.float32(1.0)  # the cosine of equal files
NO_CODE = -1

TRAIN = frozenset(["train", "training"])
VALIDATION = frozenset(["val", "valid", "validation", "dev"])


# -- groups -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Groups:
    """Groups of images, each of two or more, the surest first."""

    rows: np.ndarray  # int64 [M], group after group, ascending in each
    starts: np.ndarray  # int64 [G + 1], where each begins in `rows`
    weakest: np.ndarray  # float32 [G], the link without which it would fall apart
    equal: np.ndarray  # bool [G], all its files are equal

    @classmethod
    def none(cls) -> "Groups":
        """No groups."""
        rows, starts = np.empty(0, np.int64), np.zeros(1, np.int64)
        return cls(rows, starts, np.empty(0, np.float32), np.empty(0, bool))

    def __len__(self) -> int:
        return len(self.weakest)

    def rows_of(self, group: int) -> np.ndarray:
        """The images of a group, int64, ascending."""
        return self.rows[self.starts[group] : self.starts[group + 1]]

    @property
    def sizes(self) -> np.ndarray:
        """Images of each group, int64 [G]."""
        return np.diff(self.starts)

    @property
    def of_rows(self) -> np.ndarray:
        """The group of each of `rows`, int64 [M]."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def where(self, chosen: np.ndarray) -> "Groups":
        """Some of the groups: bool [G], or their numbers in a new order."""
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        sizes = self.sizes[chosen]
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        places = np.repeat(self.starts[:-1][chosen] - starts[:-1], sizes) + np.arange(starts[-1])
        return Groups(self.rows[places], starts, self.weakest[chosen], self.equal[chosen])


def _grouped(of_row_M: np.ndarray, rows_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows by their group's number: (rows, starts), the numbers ascending."""
    order = np.lexsort((rows_M, of_row_M))
    changes = np.flatnonzero(np.diff(of_row_M[order], prepend=np.int64(-1)))
    return rows_M[order], np.concatenate([changes, [len(rows_M)]]).astype(np.int64)


def equal_files(images: pd.DataFrame) -> Groups:
    """Groups of images that have one content hash, in the order of their first images."""
    codes_N, _ = pd.factorize(images["content_hash"])
    codes_N[_gone(images)] = NO_CODE  # as `factorize` marks those without a hash
    known = np.flatnonzero(codes_N >= 0)
    often = np.bincount(codes_N[known], minlength=1)[codes_N[known]] > 1
    rows, starts = _grouped(codes_N[known][often], known[often])
    count = len(starts) - 1
    return Groups(rows, starts, np.full(count, SAME), np.ones(count, bool))


def _gone(images: pd.DataFrame) -> np.ndarray:
    return images["gone"].to_numpy(bool)


# -- pairs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alike:
    """The pairs of a gallery's neighbor graph, most alike first, and the links of its groups."""

    pairs_P2: np.ndarray  # int32, first row < second row
    cosines_P: np.ndarray  # float32, falling, -1 to 1
    links_L2: np.ndarray  # int32: the pairs of the maximum spanning forest, most alike first
    strengths_L: np.ndarray  # float32, falling
    best_N: np.ndarray  # float32: an image's cosine in its first pair, -inf without any
    hashes_N: np.ndarray  # int64: codes of the content hashes, -1: none
    lowest: float  # thresholds below know nothing more
    usual: float  # the threshold to begin with: pairs above are unusually alike in this gallery

    @classmethod
    def of(cls, gallery: Gallery, progress: Progress | None = None) -> "Alike":
        """Read, sort and link the pairs: once for all thresholds (1M images: half a minute)."""
        say = progress or silent
        images = gallery.images
        count = len(images)
        neighbors_NK, scores_NK = gallery.neighbors()
        equal = equal_files(images)
        copies_N = np.zeros(count, bool)
        copies_N[equal.rows] = True
        lowest, usual = _bounds(scores_NK, copies_N)
        pairs_P2, cosines_P = _pairs(neighbors_NK, scores_NK, _gone(images), lowest, say)
        if len(equal):  # beyond their stored neighbors too, each is linked to the next one
            same = equal.of_rows
            chain = np.stack([equal.rows[:-1], equal.rows[1:]], axis=1)[same[:-1] == same[1:]]
            pairs_P2 = np.concatenate([pairs_P2, chain.astype(np.int32)])
            cosines_P = np.concatenate([cosines_P, np.full(len(chain), SAME)])
        say(2, 3, "Sorting pairs")
        order = np.argsort(-cosines_P, kind="stable")[:MOST_PAIRS]
        if len(cosines_P) > MOST_PAIRS:
            lowest = max(lowest, float(cosines_P[order[-1]]))
        pairs_P2, cosines_P = pairs_P2[order], cosines_P[order]
        links_L = _forest(pairs_P2, count)
        best_N = np.full(count, -np.inf, np.float32)
        for side in (0, 1):
            np.maximum.at(best_N, pairs_P2[:, side], cosines_P)
        say(3, 3, "Sorting pairs")
        hashes_N = pd.factorize(images["content_hash"])[0]
        return cls(
            pairs_P2, cosines_P, pairs_P2[links_L], cosines_P[links_L], best_N, hashes_N,
            lowest, min(max(usual, lowest), 1.0),
        )  # fmt: skip

    def count(self, threshold: float) -> tuple[int, int]:
        """How many groups there are at a threshold, and how many images lie in them."""
        groups, images = self.counts(np.array([threshold]))
        return int(groups[0]), int(images[0])

    def counts(self, thresholds_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Groups and images in them at each threshold, int64 [T].

        Every link of a forest joins two groups into one: with I images that have a pair, and L
        links among them, there are I - L groups.
        """
        thresholds = _as_cosines(thresholds_T)
        links = self.strengths_L[::-1]
        images_T = len(self._best) - np.searchsorted(self._best, thresholds)
        links_T = len(links) - np.searchsorted(links, thresholds)
        return images_T - links_T, images_T

    @cached_property
    def _best(self) -> np.ndarray:
        return np.sort(self.best_N)

    def groups(self, threshold: float) -> Groups:
        """The groups at a threshold, most alike first (by their weakest links)."""
        links = int(np.count_nonzero(self.strengths_L >= _as_cosines(threshold)))
        return _components(self.links_L2[:links], self.strengths_L[:links], self.hashes_N)

    def around(self, threshold: float, each: int = 4) -> tuple[np.ndarray, np.ndarray]:
        """The pairs just above the threshold and just below, each nearest to it first.

        Returns their places in `pairs_P2`, int64 [up to `each`] twice. A pair of equal files is no
        example of being alike.
        """
        place = int(np.count_nonzero(self.cosines_P >= _as_cosines(threshold)))
        tried = 64 * each  # so that a run of equal files cannot make this slow
        above = np.arange(place - 1, max(place - 1 - tried, -1), -1)
        below = np.arange(place, min(place + each, len(self.cosines_P)))
        above = above[~self._same_file(above)][:each]
        return above, below

    def _same_file(self, places: np.ndarray) -> np.ndarray:
        first, second = self.hashes_N[self.pairs_P2[places]].reshape(-1, 2).T
        return (first == second) & (first >= 0)


def _as_cosines(threshold: Any) -> np.ndarray:
    """A threshold as the cosines are kept, so that "at least" means on both sides the same.

    Rounding leaves the cosine of a feature with itself a little under or over 1.
    """
    return np.minimum(np.asarray(threshold, np.float32), np.float32(1 - 1e-6))


def _bounds(scores_NK: np.ndarray, copies_N: np.ndarray) -> tuple[float, float]:
    """The lowest threshold that can mean a duplicate, and the usual one.

    Half of all images have their LAST stored neighbor above the lowest one: below it most images
    are near everything. Above the usual one pairs are unusually alike, judged by images that have
    no equal file.
    """
    if scores_NK.shape[1] == 0:
        return -1.0, 1.0
    lowest = float(np.median(scores_NK[:, -1]))
    if scores_NK.size > 2 * MOST_PAIRS:  # each pair may be stored from both sides
        most = np.partition(scores_NK, -2 * MOST_PAIRS, axis=None)[-2 * MOST_PAIRS]
        lowest = max(lowest, float(most))
    judged = scores_NK[~copies_N, 0] if not copies_N.all() else scores_NK[:, 0]
    return lowest, 1 - fences(1 - judged)[0]


def _pairs(
    neighbors_NK: np.ndarray,
    scores_NK: np.ndarray,
    gone_N: np.ndarray,
    lowest: float,
    say: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Each pair of neighbors once, of which none is gone: rows int32 [P, 2] and cosines."""
    count = len(neighbors_NK)
    pairs, cosines = [np.empty((0, 2), np.int32)], [np.empty(0, np.float32)]
    for start in range(0, count, BLOCK):
        say(start, count, "Comparing neighbors")
        others, scores = neighbors_NK[start : start + BLOCK], scores_NK[start : start + BLOCK]
        at, place = np.nonzero((scores >= lowest) & (others >= 0))
        this, other = (at + start).astype(np.int32), others[at, place].astype(np.int32)
        wanted = (this < other) | ~_known_from_there(neighbors_NK, this, other)
        wanted &= ~(gone_N[this] | gone_N[other])
        this, other = this[wanted], other[wanted]
        pairs.append(np.stack([np.minimum(this, other), np.maximum(this, other)], axis=1))
        cosines.append(scores[at, place][wanted])
    return np.concatenate(pairs), np.concatenate(cosines).astype(np.float32)


def _known_from_there(
    neighbors_NK: np.ndarray, this_E: np.ndarray, other_E: np.ndarray
) -> np.ndarray:
    """Whether `this` is among the neighbors of `other`, whose pair is then counted from there."""
    found = np.zeros(len(this_E), bool)
    later = np.flatnonzero(this_E > other_E)
    for start in range(0, len(later), BLOCK):
        part = later[start : start + BLOCK]
        found[part] = (neighbors_NK[other_E[part]] == this_E[part, None]).any(axis=1)
    return found


def _forest(pairs_P2: np.ndarray, count: int) -> np.ndarray:
    """The places of the pairs that hold everything together, most alike first: int64 [L].

    A spanning forest of the best pairs (Kruskal): at any threshold it has the same components as
    all pairs have.
    """
    if len(pairs_P2) == 0:
        return np.empty(0, np.int64)
    ranks = np.arange(1, len(pairs_P2) + 1, dtype=np.float64)  # 0 would be no pair
    # One pair may come twice, as neighbors and as equal files; `coo_array` would add its ranks.
    keys = pairs_P2[:, 0].astype(np.int64) * count + pairs_P2[:, 1]
    _, first = np.unique(keys, return_index=True)
    graph = coo_array((ranks[first], tuple(pairs_P2[first].T)), (count, count)).tocsr()
    return np.sort(minimum_spanning_tree(graph).data.astype(np.int64)) - 1


def _components(links_L2: np.ndarray, strengths_L: np.ndarray, hashes_N: np.ndarray) -> Groups:
    """Groups that links hold together, by their weakest links, the strongest first."""
    rows = np.unique(links_L2).astype(np.int64)
    if len(rows) == 0:
        return Groups.none()
    local_L2 = np.searchsorted(rows, links_L2)
    graph = coo_array((np.ones(len(local_L2), bool), tuple(local_L2.T)), (len(rows), len(rows)))
    count, of_row = connected_components(graph, directed=False)
    weakest = np.full(count, SAME)
    np.minimum.at(weakest, of_row[local_L2[:, 0]], strengths_L)
    rows, starts = _grouped(of_row.astype(np.int64), rows)
    hashes = hashes_N[rows]
    low, high = np.minimum.reduceat(hashes, starts[:-1]), np.maximum.reduceat(hashes, starts[:-1])
    groups = Groups(rows, starts, weakest, (low == high) & (low >= 0))
    return groups.where(np.lexsort((rows[starts[:-1]], -weakest)))


# -- what the groups hold, and what to do -----------------------------------------------------


def codes_of(values: pd.Series) -> np.ndarray:
    """Each value's number, int64 [N]; -1 where there is none."""
    return np.asarray(pd.factorize(values)[0], np.int64)


def spans(groups: Groups, codes_N: np.ndarray) -> np.ndarray:
    """How many different values each group's images have, int64 [G]; none (-1) does not count.

    Of splits, more than one is a leak; of labels, images that are alike and called differently.
    """
    pairs = np.stack([groups.of_rows, codes_N[groups.rows]], axis=1)
    pairs = pairs[pairs[:, 1] >= 0]
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs = pairs[order]
    new = np.ones(len(pairs), bool)
    new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return np.bincount(pairs[new, 0], minlength=len(groups))


def best_copies(groups: Groups, images: pd.DataFrame) -> np.ndarray:
    """The image of each group to keep, rows int64 [G].

    Of the most guarded split (see `guard`), so that this never contradicts what is suggested for a
    leak; among those of the most pixels, then of the largest file, then with a label, then first.
    """
    members = images.iloc[groups.rows]
    guarded = guard(images["split"])[groups.rows]
    pixels = members["width"].to_numpy(np.int64) * members["height"].to_numpy(np.int64)
    size = members["size"].to_numpy(np.float64, na_value=0)
    labeled = members["label"].notna().to_numpy(bool)
    order = np.lexsort((groups.rows, ~labeled, -size, -pixels, -guarded, groups.of_rows))
    return groups.rows[order[groups.starts[:-1]]]


def to_remove(groups: Groups, images: pd.DataFrame) -> np.ndarray:
    """What is suggested for duplicates: all but the best copy of each group; bool [M]."""
    return ~np.isin(groups.rows, best_copies(groups, images))


def leaked(groups: Groups, images: pd.DataFrame) -> np.ndarray:
    """What is suggested for leaks: which images of each group to remove, bool [M].

    What is measured on stays as it is: of a group, the images of its most guarded split stay, those
    of other splits go. A split called train is the least guarded, then one called val or the like;
    among others the larger one. Images without a split are left alone.
    """
    guarded_N = guard(images["split"])
    guarded_M = guarded_N[groups.rows]
    most_G = np.maximum.reduceat(guarded_M, groups.starts[:-1]) if len(groups) else guarded_M[:0]
    return (guarded_M < most_G[groups.of_rows]) & (guarded_M >= 0)


def guard(splits: pd.Series) -> np.ndarray:
    """How much an image's split is guarded, int64 [N]: a place in their order; -1 without one."""
    codes_N, names = pd.factorize(splits)
    counts = np.bincount(codes_N[codes_N >= 0], minlength=len(names))

    def place(number: int) -> tuple[int, int, str]:
        plain = str(names[number]).strip().lower()
        kind = 0 if plain in TRAIN else 1 if plain in VALIDATION else 2
        return kind, -int(counts[number]), plain

    ranks = np.full(len(names) + 1, NO_CODE, np.int64)  # the last one: of images without a split
    ranks[sorted(range(len(names)), key=place)] = np.arange(len(names))
    return ranks[codes_N]
