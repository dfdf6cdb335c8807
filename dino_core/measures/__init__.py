"""Arrays in, numbers out: the k-NN vote, RankMe, overlaps. Knows numpy and torch, nothing else."""

from dino_core.measures.knn import Accuracy, knn_accuracy, knn_vote, ranking_accuracy
from dino_core.measures.neighbors import neighbor_consistency
from dino_core.measures.rankme import rankme

__all__ = [
    "Accuracy",
    "knn_accuracy",
    "knn_vote",
    "neighbor_consistency",
    "ranking_accuracy",
    "rankme",
]
