"""Arrays in, numbers out: the k-NN vote, RankMe, overlaps. Knows numpy and torch, nothing else.

Imported when first used: what compares clusters or neighbors needs no torch, which takes seconds.
RankMe is imported from its module, `measures.rankme`, which its function is called like.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dino_core.measures.knn import Accuracy, knn_accuracy, knn_vote, ranking_accuracy
    from dino_core.measures.neighbors import neighbor_consistency

_HOME = {
    "Accuracy": "knn",
    "knn_accuracy": "knn",
    "knn_vote": "knn",
    "neighbor_consistency": "neighbors",
    "ranking_accuracy": "knn",
}

__all__ = [
    "Accuracy",
    "knn_accuracy",
    "knn_vote",
    "neighbor_consistency",
    "ranking_accuracy",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
