"""RankMe: how many dimensions a set of features really uses, without labels.

Garrido et al., "RankMe: assessing the downstream performance of pretrained self-supervised
representations by their rank" (2023), eq. 1: the exponential of the entropy of the normalized
singular values. Features that collapsed to a line give 1; features spread evenly give D.
"""

import numpy as np
import torch
from torch import Tensor

EPSILON = 1e-7  # the paper's, which keeps log away from 0


def rankme(features_ND: np.ndarray | Tensor) -> float:
    """The effective rank of float features [N, D], between 1 and min(N, D).

    As in the paper the features are neither centered nor normalized first; a few thousand rows
    are enough. All-zero features count as rank 1. Raises `ValueError` without any row.
    """
    features_ND = torch.as_tensor(features_ND)
    if features_ND.numel() == 0:
        raise ValueError("the rank of no features is not defined")
    singular = torch.linalg.svdvals(features_ND.detach().to("cpu", torch.float64))
    total = singular.sum()
    if total == 0:
        return 1.0
    share = singular / total
    return float(torch.exp(-(share * (share + EPSILON).log()).sum()))
