"""The weighted k-nearest-neighbor vote, by which self-supervised features are judged.

A test image takes the labels of its k most similar training images (cosine), each voting with
weight exp(similarity / temperature); Wu et al., "Unsupervised feature learning via non-parametric
instance discrimination" (2018), section 3.4, with the temperature 0.07 of the DINO paper.

Shapes: N training images, M test images, D dimensions, C classes, K neighbors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray | Tensor

UNLABELED = -1
TEMPERATURE = 0.07
TOP = 5
MOST_ROWS = 1024  # test images at a time
SIMILARITY_BYTES = 256 * 2**20  # that similarities of test to training images may fill at a time
VOTES_BYTES = 256 * 2**20  # that votes for classes and what sorts them may


@dataclass(frozen=True)
class Accuracy:
    """Shares of test images, in percent: right class first, and among the first five."""

    top1: float
    top5: float


def knn_vote(
    train_ND: Array,
    train_labels_N: Array,
    test_MD: Array,
    ks: Sequence[int],
    *,
    temperature: float = TEMPERATURE,
    num_classes: int | None = None,
    chunk: int | None = None,
) -> dict[int, Tensor]:
    """Rank the classes of every test image, for several numbers of neighbors at once.

    `train_ND` and `test_MD` are L2-normalized float; labels are integers from 0, and training
    images labeled -1 do not vote. Work is done on the device of `train_ND`, `chunk` test images at
    a time, by default as many as `rows_at_once` says. A k above N counts as N.

    Returns, for each k in `ks`, int64 [M, min(5, C)]: the classes by falling vote, on the CPU.
    Classes with equal votes (so those without any) stand in the order of their numbers.
    Raises `ValueError` when no training image has a label.
    """
    train_ND = torch.as_tensor(train_ND)
    train_labels_N = torch.as_tensor(train_labels_N, device=train_ND.device, dtype=torch.int64)
    test_MD = torch.as_tensor(test_MD)
    labeled_N = train_labels_N != UNLABELED
    if not bool(labeled_N.all()):
        train_ND, train_labels_N = train_ND[labeled_N], train_labels_N[labeled_N]
    if len(train_ND) == 0:
        raise ValueError("no training image has a label, so none can vote")
    num_classes = max(num_classes or 0, int(train_labels_N.max()) + 1)
    most = min(max(ks), len(train_ND))
    chunk = chunk or rows_at_once(len(train_ND), num_classes, most)
    ranked: dict[int, list[Tensor]] = {k: [] for k in ks}
    for part_BD in test_MD.split(chunk):
        similarity_BN = part_BD.to(train_ND.device, train_ND.dtype) @ train_ND.T
        similarity_BK, nearest_BK = similarity_BN.topk(most, dim=1)
        del similarity_BN  # before there are votes
        labels_BK = train_labels_N[nearest_BK]
        # Relative to the nearest, which ranks alike: exp(1 / 0.01) is more than fp32 holds.
        weights_BK = ((similarity_BK - similarity_BK[:, :1]) / temperature).exp()
        for k in ks:
            votes_BC = weights_BK.new_zeros(len(part_BD), num_classes)
            votes_BC.scatter_add_(1, labels_BK[:, :k], weights_BK[:, :k])
            order_BC = votes_BC.argsort(dim=1, descending=True, stable=True)
            ranked[k].append(order_BC[:, :TOP].cpu())
    empty = torch.empty(0, min(TOP, num_classes), dtype=torch.int64)
    return {k: torch.cat(parts) if parts else empty for k, parts in ranked.items()}


def rows_at_once(voters: int, classes: int, k: int) -> int:
    """Test images whose similarities and votes fill no more than said above; at least one.

    An image needs a float32 for each voter; and for each class a vote, its place in the order and
    the sorted vote, for each neighbor a similarity, a weight, a place and a label.
    """
    by_similarity = SIMILARITY_BYTES // (4 * voters)
    by_votes = VOTES_BYTES // ((4 + 8 + 4) * classes + (4 + 4 + 8 + 8) * k)
    return max(1, min(by_similarity, by_votes, MOST_ROWS))


def voted(ranked: dict[int, Tensor]) -> dict[int, Tensor]:
    """What `knn_vote` gives, with no more classes than neighbors: int64 [M, min(5, C, k)].

    Fewer than five neighbors name fewer than five classes, and those that fill up a ranking are no
    guesses: the published script counts `min(5, k)` classes for top-5.
    """
    return {k: ranked_MC[:, :k] for k, ranked_MC in ranked.items()}


def ranking_accuracy(ranked_MC: Array, labels_M: Array) -> Accuracy:
    """How often the first class, or any of the first five, is the right one, in percent.

    `ranked_MC` is what `knn_vote` returns for one k. Test images labeled -1 do not count.
    Raises `ValueError` when no test image has a label.
    """
    ranked_MC = torch.as_tensor(ranked_MC)
    labels_M = torch.as_tensor(labels_M).to(ranked_MC.device)
    hits_MC = (ranked_MC == labels_M[:, None])[labels_M != UNLABELED].double()
    if len(hits_MC) == 0:
        raise ValueError("no test image has a label, so nothing can be counted")
    top1 = 100 * float(hits_MC[:, 0].mean())
    top5 = 100 * float(hits_MC[:, :TOP].sum(1).mean())
    return Accuracy(top1=top1, top5=top5)


def knn_accuracy(
    train_ND: Array,
    train_labels_N: Array,
    test_MD: Array,
    test_labels_M: Array,
    ks: Sequence[int],
    *,
    temperature: float = TEMPERATURE,
) -> dict[int, Accuracy]:
    """`knn_vote`, counted as published: k -> accuracy. Arguments and errors as there."""
    ranked = voted(knn_vote(train_ND, train_labels_N, test_MD, ks, temperature=temperature))
    return {k: ranking_accuracy(ranked_MC, test_labels_M) for k, ranked_MC in ranked.items()}
