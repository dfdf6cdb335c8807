"""Which of an image's nearest neighbors two sets of features agree on, image by image.

`neighbors.neighbor_consistency` is the mean of the same over all images, from the features.

Shapes: N images, K neighbors.
"""

import numpy as np

CHUNK = 8192  # images compared at a time: K x K comparisons each


def neighbor_overlap(first_NK: np.ndarray, second_NK: np.ndarray, k: int) -> np.ndarray:
    """|A ∩ B| / k of each image's first `k` neighbors in two lists: float32 [N], 0 to 1.

    Both hold integers, best first, none twice in a row; row n of both is the same image's. Raises
    `ValueError` for a `k` that is not in 1 .. K, or lists of different lengths.
    """
    if len(first_NK) != len(second_NK):
        raise ValueError(f"lists of {len(first_NK)} and {len(second_NK)} images")
    if not 1 <= k <= min(first_NK.shape[1], second_NK.shape[1]):
        raise ValueError(f"{k} neighbors of {first_NK.shape[1]} and {second_NK.shape[1]}")
    overlap_N = np.empty(len(first_NK), np.float32)
    for start in range(0, len(first_NK), CHUNK):
        part = slice(start, start + CHUNK)
        # Sorted together, what is in both stands beside itself.
        both = np.sort(np.concatenate([first_NK[part, :k], second_NK[part, :k]], axis=1), axis=1)
        overlap_N[part] = (both[:, 1:] == both[:, :-1]).sum(axis=1) / k
    return overlap_N


def overlap_by_chance(count: int, k: int) -> float:
    """The mean overlap of features that have nothing to do with each other: k of N - 1 others."""
    return min(1.0, k / (count - 1)) if count > 1 else 0.0
