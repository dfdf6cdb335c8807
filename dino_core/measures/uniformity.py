"""Alignment and uniformity: whether positives lie close, and whether all else spreads out.

Wang & Isola, "Understanding contrastive representation learning through alignment and uniformity on
the hypersphere" (2020), section 4.1: over positive pairs (two views of one image) the mean of
|x - y|^alpha; over pairs of different images the logarithm of the mean of exp(-t |x - y|^2). Both
are the better the lower, and only together: features that are all equal are perfectly aligned.

Features are meant to be L2-normalized, which is not checked. Uniformity is then between -4 t and 0:
0 where all are equal; features spread evenly on a sphere of many dimensions come to -2 t, as
different ones are at right angles.

All is computed in float64 on the CPU, CHUNK rows (or CHUNK x CHUNK pairs) at a time, so what it
takes beside the features does not grow with N, and these may be a memory map.

Shapes: N images, D dimensions, B and C images at a time, P pairs.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray | Tensor

ALPHA = 2.0  # the paper's
T = 2.0
CHUNK = 1024  # rows at a time


@dataclass(frozen=True)
class Estimate:
    """A figure from a sample, and how far off it may be: one standard error."""

    value: float
    error: float


def alignment(first_ND: Array, second_ND: Array, alpha: float = ALPHA) -> float:
    """The mean of |x - y|^alpha, row n of both being views of one image; 0 to 2^alpha.

    Raises `ValueError` for sets of different shapes, or without any row.
    """
    first_ND, second_ND = torch.as_tensor(first_ND), torch.as_tensor(second_ND)
    if first_ND.shape != second_ND.shape:
        raise ValueError(
            f"features of shapes {tuple(first_ND.shape)} and {tuple(second_ND.shape)} are no pairs"
        )
    if len(first_ND) == 0:
        raise ValueError("the alignment of no pairs is not defined")
    total = 0.0
    for one_BD, other_BD in zip(first_ND.split(CHUNK), second_ND.split(CHUNK), strict=True):
        apart_B = torch.linalg.vector_norm(_exact(one_BD) - _exact(other_BD), dim=1)
        total += float(apart_B.pow(alpha).sum())
    return total / len(first_ND)


def uniformity(features_ND: Array, t: float = T) -> float:
    """log mean exp(-t |x - y|^2) over all N (N - 1) / 2 pairs.

    Time grows with N^2. Raises `ValueError` for fewer than two rows.
    """
    parts = _pairable(features_ND).split(CHUNK)
    total = torch.tensor(-torch.inf, dtype=torch.float64)  # a logarithm, so no t is too large
    for place, rows in enumerate(parts):
        rows_BD = _exact(rows)
        for other, columns in enumerate(parts[place:]):
            weights_BC = _squared_distances(rows_BD, _exact(columns)).mul_(-t)
            if other == 0:  # the rows themselves: each pair once, above the diagonal
                seen_BC = torch.ones(weights_BC.shape, dtype=torch.bool).tril()
                weights_BC.masked_fill_(seen_BC, -torch.inf)
            total = torch.logaddexp(total, weights_BC.flatten().logsumexp(0))
    return float(total) - math.log(math.comb(len(features_ND), 2))


def sampled_uniformity(
    features_ND: Array, pairs: int, random: np.random.Generator, t: float = T
) -> Estimate:
    """`uniformity` from `pairs` pairs of different rows, drawn with replacement.

    The error is that of the logarithm of a mean: the deviation of exp(-t |x - y|^2) over its mean,
    over the square root of `pairs`. Raises `ValueError` for fewer than two rows or two pairs.
    """
    features_ND = torch.as_tensor(features_ND)
    if len(features_ND) < 2 or pairs < 2:
        raise ValueError(f"{pairs} pairs among {len(features_ND)} rows")
    first_P = random.integers(len(features_ND), size=pairs)
    second_P = random.integers(len(features_ND) - 1, size=pairs)
    second_P += second_P >= first_P  # any row but the first
    weights_P = torch.empty(pairs, dtype=torch.float64)
    for start in range(0, pairs, CHUNK):
        part = slice(start, start + CHUNK)
        difference_BD = _exact(features_ND[first_P[part]]) - _exact(features_ND[second_P[part]])
        weights_P[part] = -t * difference_BD.square().sum(1)
    largest = weights_P.max()
    values_P = (weights_P - largest).exp()
    mean = values_P.mean()
    error = values_P.std() / mean / math.sqrt(pairs)
    return Estimate(float(largest + mean.log()), float(error))


def mean_squared_distance(features_ND: Array) -> float:
    """The mean of |x - y|^2 over all pairs of different rows, in time that grows with N alone.

    By 2 N / (N - 1) times the variance about the mean. It is what an alignment (alpha 2) is to be
    read against. Raises `ValueError` for fewer than two rows.
    """
    parts, count = _pairable(features_ND).split(CHUNK), len(features_ND)
    # Added as they come: small sums kept between freed parts would hold on to the parts' memory.
    mean_D = sum(_exact(part_BD).sum(0) for part_BD in parts) / count
    total = sum(float((_exact(part_BD) - mean_D).square().sum()) for part_BD in parts)
    return 2 * total / (count - 1)


def _squared_distances(rows_BD: Tensor, columns_CD: Tensor) -> Tensor:
    """|x - y|^2 of every row with every column: [B, C], not below 0."""
    squares_B, squares_C = rows_BD.square().sum(1), columns_CD.square().sum(1)
    apart_BC = torch.addmm(squares_B[:, None] + squares_C, rows_BD, columns_CD.T, alpha=-2)
    return apart_BC.clamp_(min=0)


def _pairable(features_ND: Array) -> Tensor:
    features_ND = torch.as_tensor(features_ND)
    if len(features_ND) < 2:
        raise ValueError(f"{len(features_ND)} rows make no pair")
    return features_ND


def _exact(features: Tensor) -> Tensor:
    return features.detach().to("cpu", torch.float64)
