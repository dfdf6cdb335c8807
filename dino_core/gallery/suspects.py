"""Images that may be wrong: alone among the others, or called differently than their neighbors.

    alone = outliers(gallery)
    alone.beyond(alone.usual)                # rows, the most alone first
    votes = count_votes(*gallery.neighbors(), gallery.images["label"])
    doubtful = disagreements(votes)
    doubtful.beyond(0.5), votes.winner       # rows, and the label that their neighbors vote for

Both are read off the stored neighbor graph and sorted once, so a threshold can be moved freely.
An outlier need not be an error, and features of a weak model doubt many right labels: suspects are
for a person to look at.

Shapes: N images, S suspects, K neighbors, C classes.
"""

from dataclasses import dataclass

import numpy as np

from dino_core.gallery.agreement import UNLABELED, Votes
from dino_core.gallery.opened import Gallery
from dino_core.measures.fences import fences

NEAREST = 10  # neighbors of an image that say how alone it is
HALF = 0.5  # of the vote more for another label than for its own


@dataclass(frozen=True)
class Suspects:
    """Images by how suspect they are, the most first."""

    rows: np.ndarray  # int64 [S]
    values: np.ndarray  # float32 [S], what makes them suspect
    rising: bool  # low values are suspect, else high ones
    low: float  # where a threshold makes sense
    high: float
    usual: float  # the threshold to begin with

    def __len__(self) -> int:
        return len(self.rows)

    def count(self, threshold: float) -> int:
        """How many lie beyond a threshold: below where low values are suspect, else not below."""
        limit = np.float32(threshold)
        if self.rising:
            return int(np.searchsorted(self.values, limit))
        return int(np.searchsorted(-self.values, -limit, side="right"))

    def beyond(self, threshold: float) -> np.ndarray:
        """The rows beyond a threshold, int64, the most suspect first."""
        return self.rows[: self.count(threshold)]

    def around(self, threshold: float, each: int = 4) -> tuple[np.ndarray, np.ndarray]:
        """Places of those just beyond the threshold and just not, the nearest first."""
        place = self.count(threshold)
        beyond = np.arange(place - 1, max(place - 1 - each, -1), -1)
        return beyond, np.arange(place, min(place + each, len(self)))


def outliers(gallery: Gallery) -> Suspects:
    """All images by their mean cosine with their ten nearest (or as many as there are).

    Those that are gone, and an image without any neighbor, are left out.
    """
    means_N = mean_similarity(gallery.neighbors()[1])
    rows = np.flatnonzero(np.isfinite(means_N) & ~gallery.images["gone"].to_numpy(bool))
    rows = rows[np.argsort(means_N[rows], kind="stable")]
    values = means_N[rows]
    if len(values) == 0:
        return Suspects(rows, values, True, 0.0, 0.0, 0.0)
    low, high = float(values[0]), float(np.median(values))
    usual = 1 - fences(1 - values)[1]
    return Suspects(rows, values, True, low, high, min(max(usual, low), high))


def mean_similarity(scores_NK: np.ndarray) -> np.ndarray:
    """Mean cosine of each image with its ten nearest, float32 [N]; NaN without any."""
    if scores_NK.shape[1] == 0:
        return np.full(len(scores_NK), np.nan, np.float32)
    means: np.ndarray = scores_NK[:, :NEAREST].mean(axis=1, dtype=np.float32)
    return means


def disagreements(votes: Votes, gone_N: np.ndarray | None = None) -> Suspects:
    """Labeled images whose neighbors vote for another label, by how clearly they do.

    The measure is the other label's share of the vote minus the own one's, above 0 and at most 1.
    """
    doubted_N = (votes.codes != UNLABELED) & (votes.winner != UNLABELED) & ~votes.right
    if gone_N is not None:
        doubted_N &= ~gone_N
    rows = np.flatnonzero(doubted_N)
    values = votes.winner_share[rows] - votes.own[rows]
    rows, values = rows[values > 0], values[values > 0]
    order = np.argsort(-values, kind="stable")
    return Suspects(rows[order], values[order].astype(np.float32), False, 0.0, 1.0, HALF)
