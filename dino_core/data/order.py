"""Which images make up which batch: keyed by seed and epoch, the same for every world size."""

import numpy as np

from dino_core.rng import permutation


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `n` images in an epoch, int64 [n], a permutation of range(n)."""
    return permutation(n, "order", seed, epoch).astype(np.int64)


def batch_indices(
    order: np.ndarray, step: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> np.ndarray:
    """The images of one rank in global batch `step` of an epoch, int64 [batch_size / world_size].

    `batch_size` is the global one. Ranks take consecutive parts, so that joined in order of rank
    they are the batch that one process alone would have. A collection smaller than a batch is
    gone through again from its start. Raises ValueError for a batch that ranks cannot share evenly.
    """
    if batch_size % world_size:
        raise ValueError(f"a batch of {batch_size} cannot be shared by {world_size} processes")
    share = batch_size // world_size
    start = step * batch_size + rank * share
    return np.take(order, np.arange(start, start + share), mode="wrap")
