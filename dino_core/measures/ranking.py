"""Rankings and how good they are: average precision as image retrieval has published it.

Radenovic et al., "Revisiting Oxford and Paris: large-scale image retrieval benchmarking" (2018),
section 3: every query has easy, hard and junk images. What does not count at a difficulty is taken
out of the ranking before it is judged:

    easy      right: easy            taken out: hard, junk
    medium    right: easy and hard   taken out: junk
    hard      right: hard            taken out: easy, junk

Shapes: N images of the database, Q queries, B queries at a time, D dimensions, K ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray | Tensor

KS = (1, 5, 10)
QUERIES_AT_ONCE = 64
IMAGES_AT_ONCE = 65_536


@dataclass(frozen=True)
class Judged:
    """How well one query was answered; shares 0..1."""

    ap: float
    precision: dict[int, float]  # k -> precision at k


@dataclass(frozen=True)
class Precision:
    """Means over all queries that have anything to be found; shares 0..1, None without any."""

    mean_ap: float | None
    precision: dict[int, float | None]
    queries: int  # that count


def average_precision(ranks: Sequence[int] | np.ndarray, positives: int) -> float:
    """The area under precision over recall, in trapezoids, 0..1.

    `ranks`: the places of what is right, from 0, rising; `positives`: how many there are to be
    found (more than `ranks` when not all were). Each adds 1 / positives of recall at the mean of
    the precision before it (1 at the very top) and with it. Raises `ValueError` when nothing is to
    be found, or more was found than that.
    """
    found = np.asarray(ranks, np.float64)
    if positives < 1 or len(found) > positives:
        raise ValueError(f"{len(found)} found of {positives}: there is no precision to average")
    before = np.arange(len(found))
    left = np.where(found == 0, 1.0, before / np.maximum(found, 1))
    right = (before + 1) / (found + 1)
    return float((left + right).sum() / (2 * positives))


def precision_at(ranks: Sequence[int] | np.ndarray, k: int) -> float:
    """The share of right ones among the first k, 0..1; 0 where nothing was found.

    As published, k is no more than the place of the last right one: who has found all three that
    there are in three places has precision 1 at 10.
    """
    found = np.asarray(ranks, np.int64)
    if not len(found):
        return 0.0
    k = min(k, int(found[-1]) + 1)
    return float((found < k).sum() / k)


def ranks_of(order_N: np.ndarray, right: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """The places, from 0 and rising, of the images `right` once those `left_out` are gone.

    `order_N`: image numbers, the best first. An image that is both stays out.
    """
    kept = order_N[~np.isin(order_N, left_out)]
    return np.flatnonzero(np.isin(kept, right))


def judged(
    order_N: np.ndarray, right: np.ndarray, left_out: np.ndarray, ks: Sequence[int] = KS
) -> Judged | None:
    """One query's ranking, judged; None when nothing is right. Arguments as for `ranks_of`."""
    right = np.setdiff1d(right, left_out)
    if not len(right):
        return None
    ranks = ranks_of(order_N, right, left_out)
    return Judged(
        ap=average_precision(ranks, len(right)),
        precision={k: precision_at(ranks, k) for k in ks},
    )


def by_difficulty(
    order_N: np.ndarray,
    easy: np.ndarray,
    hard: np.ndarray,
    junk: np.ndarray,
    ks: Sequence[int] = KS,
) -> dict[str, Judged | None]:
    """One query at `easy`, `medium` and `hard`; None where it has nothing to be found."""
    return {
        "easy": judged(order_N, easy, np.concatenate([hard, junk]), ks),
        "medium": judged(order_N, np.concatenate([easy, hard]), junk, ks),
        "hard": judged(order_N, hard, np.concatenate([easy, junk]), ks),
    }


def averaged(queries: Sequence[Judged | None], ks: Sequence[int] = KS) -> Precision:
    """Means over the queries that have something to be found."""
    counted = [one for one in queries if one is not None]
    if not counted:
        return Precision(None, dict.fromkeys(ks), 0)
    return Precision(
        mean_ap=float(np.mean([one.ap for one in counted])),
        precision={k: float(np.mean([one.precision[k] for one in counted])) for k in ks},
        queries=len(counted),
    )


def rankings(
    queries_QD: Array, database_ND: Array, chunk: int = QUERIES_AT_ONCE
) -> Iterator[np.ndarray]:
    """For each query all images of the database, int64 [N], the most similar (dot product) first.

    Equal ones stand in the order of the database. Work is done on the device of `database_ND`,
    `chunk` queries at a time.
    """
    database_ND = torch.as_tensor(database_ND)
    for queries_BD in torch.as_tensor(queries_QD).split(chunk):
        similarity_BN = queries_BD.to(database_ND) @ database_ND.T
        order_BN = similarity_BN.argsort(dim=1, descending=True, stable=True)
        yield from order_BN.cpu().numpy()


def top_ranks(
    queries_QD: Array,
    database_ND: Array,
    k: int,
    *,
    device: torch.device | str = "cpu",
    queries_at_once: int = 1024,
    images_at_once: int = IMAGES_AT_ONCE,
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar images (dot product) of each query, exactly.

    Returns float32 [Q, K] similarities, falling, and int64 [Q, K] image numbers; K is k, or N where
    that is less. Both sides are taken in parts, so memory stays at `queries_at_once` x
    `images_at_once`, and neither need be in memory (memory maps are read part by part).
    """
    best, numbers = [], []
    for first in range(0, len(queries_QD), queries_at_once):
        queries_BD = _on(device, queries_QD[first : first + queries_at_once])
        top_BK = queries_BD.new_empty(len(queries_BD), 0)
        place_BK = torch.empty(len(queries_BD), 0, dtype=torch.int64, device=queries_BD.device)
        for start in range(0, len(database_ND), images_at_once):
            part_ND = _on(device, database_ND[start : start + images_at_once])
            part_BN = queries_BD @ part_ND.T
            part_BK, at_BK = part_BN.topk(min(k, len(part_ND)), dim=1)
            merged_BM = torch.cat([top_BK, part_BK], dim=1)
            places_BM = torch.cat([place_BK, at_BK + start], dim=1)
            top_BK, chosen_BK = merged_BM.topk(min(k, merged_BM.shape[1]), dim=1)
            place_BK = places_BM.gather(1, chosen_BK)
        best.append(top_BK.cpu().numpy())
        numbers.append(place_BK.cpu().numpy())
    shape = 0, min(k, len(database_ND))
    return (
        np.concatenate([np.empty(shape, np.float32), *best]),
        np.concatenate([np.empty(shape, np.int64), *numbers]),
    )


def _on(device: torch.device | str, part: Array) -> Tensor:
    """A part as float32 on the device; a copy, for memory maps cannot be written to."""
    whole = torch.from_numpy(np.array(part, np.float32)) if isinstance(part, np.ndarray) else part
    return whole.to(device, torch.float32)
