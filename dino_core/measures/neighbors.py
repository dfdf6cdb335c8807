"""Whether images keep their neighbors: a judgment of features that needs no labels."""

import numpy as np
import torch
from torch import Tensor

CHUNK = 1024  # rows compared at a time, so memory stays at CHUNK x N


def neighbor_consistency(
    first_ND: np.ndarray | Tensor, second_ND: np.ndarray | Tensor, k: int = 10
) -> float:
    """Mean share of an image's k nearest neighbors that two sets of features agree on, 0 to 1.

    Both are L2-normalized float [N, D], row i of both being the same image, e.g. under two
    augmentations; an image is not its own neighbor. Chance gives k / (N - 1).
    Raises `ValueError` for sets of different sizes, or a k that is not in 1 .. N - 1.
    """
    first_ND, second_ND = torch.as_tensor(first_ND), torch.as_tensor(second_ND)
    if len(first_ND) != len(second_ND):
        raise ValueError(f"{len(first_ND)} and {len(second_ND)} features cannot be compared")
    if not 1 <= k < len(first_ND):
        raise ValueError(f"{k} neighbors among {len(first_ND)} images")
    agreed = 0
    for start in range(0, len(first_ND), CHUNK):
        theirs_BK, ours_BK = (_nearest(side, start, k) for side in (first_ND, second_ND))
        agreed += int((theirs_BK[:, :, None] == ours_BK[:, None, :]).sum())
    return agreed / (k * len(first_ND))


def _nearest(features_ND: Tensor, start: int, k: int) -> Tensor:
    """int64 [B, k]: the neighbors of rows `start` .. `start + CHUNK - 1`, themselves left out."""
    rows_BD = features_ND[start : start + CHUNK]
    similarity_BN = rows_BD @ features_ND.T
    places = torch.arange(len(rows_BD))
    similarity_BN[places, start + places] = -torch.inf
    return similarity_BN.topk(k, dim=1).indices
