"""How well two ways of grouping the same images agree: purity, NMI, ARI.

Each takes integer groups [N]; an image with -1 in either (no cluster, no label) does not count.
Which number a group has does not matter. Everything is read off the counts of pairs that occur, so
a million images in a thousand groups need no table of all pairs.
"""

from dataclasses import dataclass

import numpy as np

NOT_GROUPED = -1


@dataclass(frozen=True)
class Overlap:
    """How many images each group of one kind shares with each of the other; only pairs > 0."""

    first: np.ndarray  # int64 [P], the groups of each pair, as they were given
    second: np.ndarray  # int64 [P]
    count: np.ndarray  # int64 [P]

    @property
    def total(self) -> int:
        """Images that are in a group of both kinds."""
        return int(self.count.sum())


def overlap(first_N: np.ndarray, second_N: np.ndarray) -> Overlap:
    """Count the images of each pair of groups, by first and then second group.

    Raises `ValueError` for arrays of different lengths.
    """
    first_N, second_N = np.asarray(first_N, np.int64), np.asarray(second_N, np.int64)
    if first_N.shape != second_N.shape or first_N.ndim != 1:
        raise ValueError(f"groups of {first_N.shape} and {second_N.shape} images")
    both = (first_N != NOT_GROUPED) & (second_N != NOT_GROUPED)
    first_M, second_M = first_N[both], second_N[both]
    low = int(second_M.min(initial=0))
    width = int(second_M.max(initial=0)) - low + 1
    pair_P, count_P = np.unique(first_M * width + (second_M - low), return_counts=True)
    return Overlap(pair_P // width, pair_P % width + low, count_P)


def purity(clusters_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Share of images whose label is the most frequent one of their cluster, 0 to 1.

    Manning, Raghavan, Schütze, "Introduction to information retrieval" (2008), section 16.3. It
    grows with the number of clusters, so compare it at equal numbers. Raises `ValueError` when no
    image counts.
    """
    found = _counted(clusters_N, labels_N)
    starts = np.flatnonzero(np.diff(found.first, prepend=found.first[0] - 1))
    return float(np.maximum.reduceat(found.count, starts).sum() / found.total)


def nmi(first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Normalized mutual information, 0 (independent) to 1 (the same groups); symmetric.

    Divided by the mean of both entropies: Vinh, Epps, Bailey, "Information theoretic measures for
    clusterings comparison" (2010), NMI_sum. Two groupings of one group each agree: 1. Raises
    `ValueError` when no image counts.
    """
    found = _counted(first_N, second_N)
    joint = _entropy(found.count)
    first, second = (_entropy(_sizes(group, found.count)) for group in (found.first, found.second))
    if first + second == 0:
        return 1.0
    return min(max(2 * (first + second - joint) / (first + second), 0.0), 1.0)


def ari(first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Adjusted Rand index: 1 for the same groups, about 0 for chance, at least -0.5; symmetric.

    Hubert, Arabie, "Comparing partitions" (1985), eq. 5: pairs of images that are together in both,
    less what is expected of random groups of the same sizes. Raises `ValueError` when no image
    counts.
    """
    found = _counted(first_N, second_N)
    together = _pairs(found.count)
    first, second = (_pairs(_sizes(group, found.count)) for group in (found.first, found.second))
    all_pairs = found.total * (found.total - 1) / 2
    if first == second and first in (0, all_pairs):
        return 1.0  # one group, or every image its own, in both
    expected = first * second / all_pairs
    return (together - expected) / ((first + second) / 2 - expected)


def _counted(first_N: np.ndarray, second_N: np.ndarray) -> Overlap:
    found = overlap(first_N, second_N)
    if found.total == 0:
        raise ValueError("no image is in a group of both kinds, so nothing can be compared")
    return found


def _sizes(group_P: np.ndarray, count_P: np.ndarray) -> np.ndarray:
    """How many images each group of one kind has, among those that count: int64 [G]."""
    _, place_P = np.unique(group_P, return_inverse=True)
    sizes_G = np.zeros(int(place_P.max()) + 1, np.int64)
    np.add.at(sizes_G, place_P, count_P)
    return sizes_G


def _entropy(count_G: np.ndarray) -> float:
    """Of the groups' shares, in nats."""
    share_G = count_G / count_G.sum()
    return float(-(share_G * np.log(share_G)).sum())


def _pairs(count_G: np.ndarray) -> float:
    """Pairs of images within groups of these sizes; in float, for a million images have 5e11."""
    return float((count_G * (count_G - 1.0)).sum() / 2)
