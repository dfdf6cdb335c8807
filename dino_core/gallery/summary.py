"""What a selection of a gallery's images is: labels, purity, medoids, how alike they are.

Shapes: M selected images, S of them looked at, D dimensions.
"""

from dataclasses import dataclass

import numpy as np

from dino_core.gallery.opened import Gallery
from dino_core.gallery.progress import Progress, silent
from dino_core.gallery.selection import shares
from dino_core.rng import permutation

SAMPLE = 20_000  # images whose features are looked at, at most
MEDOIDS = 12
BLOCK = 4096  # features in memory at a time


@dataclass(frozen=True)
class Summary:
    """What some images have in common."""

    count: int
    labeled: int  # images with a label
    shares: list[tuple[str, int, float]]  # (label, images, share of all), most frequent first
    purity: float | None  # share of the most frequent label among the labeled; None: no label
    alike: float  # mean cosine with their middle, 0 (scattered) to 1 (all the same)
    medoids: np.ndarray  # int64 rows of the images nearest to that middle, nearest first
    cosines: np.ndarray  # float32, theirs with it
    looked_at: int  # images that the last three are of: all, or a fixed random sample


def summarize(
    gallery: Gallery,
    rows_M: np.ndarray,
    *,
    medoids: int = MEDOIDS,
    sample: int = SAMPLE,
    progress: Progress = silent,
) -> Summary:
    """Describe the images of some rows.

    Of more than `sample` images a random sample is looked at for the middle and the medoids, always
    the same one of the same rows. Features are read in blocks, never all at once.
    """
    rows_M = np.asarray(rows_M, np.int64)
    rows_S = rows_M
    if len(rows_M) > sample:
        rows_S = np.sort(rows_M[permutation(len(rows_M), "summary")[:sample]])
    progress(0, 1, "Counting labels")
    labels = gallery.images["label"].iloc[rows_M]
    labeled = int(labels.notna().sum())
    purity = shares(labels.dropna())[0][2] if labeled else None
    middle_D, alike = _middle(gallery.features, rows_S, progress)
    cosines_S = _cosines(gallery.features, rows_S, middle_D, progress)
    best = np.argsort(-cosines_S, kind="stable")[:medoids]
    return Summary(
        len(rows_M), labeled, shares(labels), purity, alike, rows_S[best], cosines_S[best],
        len(rows_S),
    )  # fmt: skip


def _middle(
    features_ND: np.ndarray, rows_S: np.ndarray, progress: Progress
) -> tuple[np.ndarray, float]:
    """The normalized mean feature, float32 [D], and its length before: the mean cosine with it."""
    total_D = np.zeros(features_ND.shape[1])
    for start in range(0, len(rows_S), BLOCK):
        progress(start, 2 * len(rows_S), "Finding the middle")
        total_D += features_ND[rows_S[start : start + BLOCK]].sum(axis=0, dtype=np.float64)
    length = float(np.linalg.norm(total_D))
    if not length:  # nothing, or opposites: there is no middle
        return total_D.astype(np.float32), 0.0
    return (total_D / length).astype(np.float32), length / len(rows_S)


def _cosines(
    features_ND: np.ndarray, rows_S: np.ndarray, middle_D: np.ndarray, progress: Progress
) -> np.ndarray:
    cosines_S = np.empty(len(rows_S), np.float32)
    for start in range(0, len(rows_S), BLOCK):
        progress(len(rows_S) + start, 2 * len(rows_S), "Finding the middle")
        part = slice(start, start + BLOCK)
        cosines_S[part] = features_ND[rows_S[part]] @ middle_D
    return cosines_S
