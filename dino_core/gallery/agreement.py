"""What an image's neighbors say of its label: agreement, precision per class, the hardest images.

Everything is read off the stored neighbor graph, so a million images take seconds. The vote is the
weighted k-NN vote by which self-supervised features are judged: each neighbor votes for its own
label with weight exp(cosine / temperature); Wu et al., "Unsupervised feature learning via
non-parametric instance discrimination" (2018), section 3.4, with the temperature 0.07 of the DINO
paper (`measures.knn` is the same with a search of its own). An image is not its own neighbor, so
this is leave-one-out; neighbors without a label do not vote.

Shapes: N images, K stored neighbors, k of them asked, B images of a block, C classes, P pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dino_core.gallery.opened import Gallery
from dino_core.gallery.progress import Progress, silent

ASKED = 20  # neighbors, or as many as there are
TEMPERATURE = 0.07  # as measures.knn has it, which would load torch
UNLABELED = -1
BLOCK = 16384  # images; their votes stay in the processor's cache


@dataclass(frozen=True)
class Votes:
    """What the neighbors of every image say of its label."""

    names: list[str]  # [C], in their order
    codes: np.ndarray  # int32 [N], which of the names an image has; -1: none
    own: np.ndarray  # float32 [N], share of the vote for its own label; NaN: no label or no vote
    winner: np.ndarray  # int32 [N], the label that gets most; -1: no vote
    winner_share: np.ndarray  # float32 [N], its share; 0 where there is no vote
    k: int  # neighbors that were asked

    @property
    def right(self) -> np.ndarray:
        """Whether the winner is the image's own label, bool [N]."""
        return (self.winner == self.codes) & (self.codes != UNLABELED)


def label_codes(labels: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Labels as numbers, int32 [N], -1 for what is missing, and the names they stand for."""
    codes_N, names = pd.factorize(labels, sort=True)
    return codes_N.astype(np.int32), [str(name) for name in names]


def agreement(gallery: Gallery, k: int = ASKED) -> np.ndarray:
    """Each image's share of its neighbors' vote for its own label, float32 [N], 0 to 1.

    NaN for images that have no label, or whose neighbors have none.
    """
    codes_N, _ = label_codes(gallery.images["label"])
    rows_NK, scores_NK = gallery.neighbors()
    own_N = np.full(len(codes_N), np.nan, np.float32)
    for part in _blocks(len(own_N)):
        asked_Bk, weights_Bk = _ballots(rows_NK[part], scores_NK[part], codes_N, k)
        own_N[part] = _share(asked_Bk, weights_Bk, codes_N[part])
    return own_N


def count_votes(
    rows_NK: np.ndarray,
    scores_NK: np.ndarray,
    labels: pd.Series,
    k: int = ASKED,
    progress: Progress = silent,
) -> Votes:
    """Let the `k` nearest of every image vote on its label.

    `rows_NK` int32 and `scores_NK` float32: `Gallery.neighbors()`; `labels` [N], missing ones NA.
    Of labels with equal votes the first by name wins, as in `measures.knn_vote`.
    """
    codes_N, names = label_codes(labels)
    own_N = np.full(len(codes_N), np.nan, np.float32)
    winner_N = np.full(len(codes_N), UNLABELED, np.int32)
    share_N = np.zeros(len(codes_N), np.float32)
    for part in _blocks(len(codes_N)):
        progress(part.start, len(codes_N), "Counting votes")
        asked_Bk, weights_Bk = _ballots(rows_NK[part], scores_NK[part], codes_N, k)
        own_N[part] = _share(asked_Bk, weights_Bk, codes_N[part])
        winner_N[part], share_N[part] = _winners(asked_Bk, weights_Bk, len(names))
    return Votes(names, codes_N, own_N, winner_N, share_N, min(k, rows_NK.shape[1]))


def precision_per_class(
    rows_NK: np.ndarray,
    votes: Votes,
    ks: Sequence[int] = (1, 5, ASKED),
    progress: Progress = silent,
) -> pd.DataFrame:
    """How well each class keeps to itself: one row a class, the least precise first.

    Columns `class`; `images`; `precision@k` for each k that is stored: the share of an image's k
    nearest that have its label (of those that have any), averaged over the class; `agreement`: the
    same by weighted vote; `k-NN accuracy`: the share of images whose vote their own label wins;
    `taken for`: the label that wins most of the votes it loses, missing where it loses none.
    All shares 0 to 1, NaN for a class none of whose images has a labeled neighbor.
    """
    classes, ks = len(votes.names), sorted({min(k, rows_NK.shape[1]) for k in ks} - {0})
    sums, counts = np.zeros((len(ks), classes)), np.zeros((len(ks), classes))
    for part in _blocks(len(rows_NK)):
        progress(part.start, len(rows_NK), "Counting neighbors of each class")
        codes_B = votes.codes[part]
        asked_BK = votes.codes[rows_NK[part, : max(ks, default=0)]]
        same_BK = np.cumsum(asked_BK == codes_B[:, None], axis=1)
        known_BK = np.cumsum(asked_BK != UNLABELED, axis=1)
        for place, k in enumerate(ks):
            of_B = np.flatnonzero((codes_B != UNLABELED) & (known_BK[:, k - 1] > 0))
            share = same_BK[of_B, k - 1] / known_BK[of_B, k - 1]
            sums[place] += np.bincount(codes_B[of_B], share, classes)
            counts[place] += np.bincount(codes_B[of_B], minlength=classes)
    judged_N = ~np.isnan(votes.own)
    table = {"class": votes.names, "images": _per_class(votes.codes, None, classes)}
    table |= {f"precision@{k}": _mean(sums[i], counts[i]) for i, k in enumerate(ks)}
    judged_C = _per_class(votes.codes[judged_N], None, classes)
    for name, values_N in (("agreement", votes.own), ("k-NN accuracy", votes.right)):
        table[name] = _mean(
            _per_class(votes.codes[judged_N], values_N[judged_N], classes), judged_C
        )
    frame = pd.DataFrame(table | {"taken for": _taken_for(votes)})
    order = [f"precision@{k}" for k in reversed(ks)] + ["class"]
    return frame.sort_values(order, ignore_index=True)


def vote(labels: Sequence[str | None], scores: np.ndarray) -> list[tuple[str, float]]:
    """What the neighbors of one image elect: (label, share), most first, then by name.

    `labels` and `scores` [k]: those of a search; None does not vote.
    """
    weights = np.exp((scores - scores.max(initial=-np.inf)) / TEMPERATURE)
    totals: dict[str, float] = {}
    for label, weight in zip(labels, weights.tolist(), strict=True):
        if label is not None:
            totals[label] = totals.get(label, 0.0) + weight
    everything = sum(totals.values())
    ranked = sorted(totals.items(), key=lambda pair: (-pair[1], pair[0]))
    return [(label, total / everything) for label, total in ranked]


def hardest(votes: Votes, count: int, label: str | None = None) -> np.ndarray:
    """The labeled images whose own label gets least of the vote, int64 [<= count], hardest first.

    Among equals, first those whose neighbors agree most on another label, then by row. `label`:
    only of this class.
    """
    of_M = np.flatnonzero(~np.isnan(votes.own))
    if label is not None:
        wanted = votes.names.index(label) if label in votes.names else UNLABELED - 1
        of_M = of_M[votes.codes[of_M] == wanted]
    if len(of_M) > count:
        most = np.partition(votes.own[of_M], count - 1)[count - 1]
        of_M = of_M[votes.own[of_M] <= most]
    order = np.lexsort((of_M, -votes.winner_share[of_M], votes.own[of_M]))
    return of_M[order[:count]]


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))


def _ballots(
    rows_BK: np.ndarray, scores_BK: np.ndarray, codes_N: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The labels of the neighbors asked, int32 [B, k], and their weights, 0 for those without."""
    asked_Bk = codes_N[rows_BK[:, :k]]
    if not asked_Bk.shape[1]:
        return asked_Bk, np.zeros(asked_Bk.shape, np.float32)
    # Relative to the nearest, which makes the same shares: exp(1 / 0.07) squanders fp32's digits.
    weights_Bk = np.exp((scores_BK[:, :k] - scores_BK[:, :1]) / np.float32(TEMPERATURE))
    return asked_Bk, np.where(asked_Bk == UNLABELED, np.float32(0), weights_Bk)


def _share(asked_Bk: np.ndarray, weights_Bk: np.ndarray, codes_B: np.ndarray) -> np.ndarray:
    """The share of the vote for each image's own label; NaN for no label or no vote."""
    all_B = weights_Bk.sum(axis=1)
    own_B = np.where(asked_Bk == codes_B[:, None], weights_Bk, 0).sum(axis=1)
    return _mean(own_B, np.where(codes_B == UNLABELED, 0, all_B)).astype(np.float32)


def _winners(
    asked_Bk: np.ndarray, weights_Bk: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The label with most of the vote and its share; -1 and 0 where nobody votes."""
    if not asked_Bk.shape[1]:
        return np.full(len(asked_Bk), UNLABELED), np.zeros(len(asked_Bk))
    votes_Bk = np.empty_like(weights_Bk)  # for the label of each neighbor
    for place in range(asked_Bk.shape[1]):
        same_Bk = asked_Bk == asked_Bk[:, place, None]
        votes_Bk[:, place] = np.where(same_Bk, weights_Bk, 0).sum(axis=1)
    most_B = votes_Bk.max(axis=1)
    best_B = np.where(votes_Bk == most_B[:, None], asked_Bk, classes).min(axis=1)
    voted_B = most_B > 0
    share_B = np.divide(most_B, weights_Bk.sum(axis=1), out=np.zeros_like(most_B), where=voted_B)
    return np.where(voted_B, best_B, UNLABELED), share_B


def _taken_for(votes: Votes) -> list[str | None]:
    """For each class the other label that its images' neighbors elect most often."""
    wrong_M = np.flatnonzero(
        (votes.codes != UNLABELED) & (votes.winner != UNLABELED) & ~votes.right
    )
    pairs = votes.codes[wrong_M].astype(np.int64) * len(votes.names) + votes.winner[wrong_M]
    pair_P, count_P = np.unique(pairs, return_counts=True)
    taken: list[str | None] = [None] * len(votes.names)
    for at in np.argsort(count_P, kind="stable"):  # the most frequent last, so it stays
        own, other = divmod(int(pair_P[at]), len(votes.names))
        taken[own] = votes.names[other]
    return taken


def _per_class(codes_M: np.ndarray, values_M: np.ndarray | None, classes: int) -> np.ndarray:
    """How many images, or the sum of their values, by class; those without a class left out."""
    of = codes_M != UNLABELED
    weights = None if values_M is None else values_M[of]
    return np.bincount(codes_M[of], weights, classes)


def _mean(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
