"""UMAP's graph: how strongly each image belongs to its neighbors, from their distances.

McInnes, Healy, Melville, "UMAP: uniform manifold approximation and projection" (2018), algorithms
2 and 3. umap-learn computes the same by compiled loops, whose compilation takes 9 of the 12 s that
its first map costs; as array operations there is nothing to compile.
The constants below, and the floor of sigma, are umap-learn's (BSD 3-Clause License).

Shapes: N images, K neighbors, the image itself not among them.
"""

import numpy as np
from scipy.sparse import coo_array, csr_array

BISECTIONS = 64
TOLERANCE = 1e-5
SMALLEST_SIGMA = 1e-3  # of the mean distance


def fuzzy_graph(rows_NK: np.ndarray, distances_NK: np.ndarray) -> csr_array:
    """The symmetric graph of memberships, float32 [N, N], values in (0, 1].

    `rows_NK`: integer rows of each image's neighbors; `distances_NK`: >= 0, ascending.
    """
    count, neighbors = rows_NK.shape
    rho_N1, sigma_N1 = local_scale(distances_NK)
    beyond_NK = np.maximum(distances_NK - rho_N1, 0)
    membership_NK = np.exp(-beyond_NK / sigma_N1)
    own_rows = np.repeat(np.arange(count), neighbors)
    entries = (membership_NK.ravel().astype(np.float32), (own_rows, rows_NK.ravel()))
    directed = coo_array(entries, shape=(count, count)).tocsr()
    either = directed + directed.T - directed.multiply(directed.T)  # a or b, as probabilities
    either.eliminate_zeros()
    return csr_array(either)


def local_scale(distances_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where an image's neighborhood begins (rho) and how far it reaches (sigma), float64 [N, 1].

    rho is the distance of the nearest image that is no exact copy; sigma makes the memberships sum
    to log2(K + 1), as the paper counts the image itself among its neighbors.
    """
    distances_NK = distances_NK.astype(np.float64)
    apart_NK = np.where(distances_NK > 0, distances_NK, np.inf)
    rho_N1 = apart_NK.min(axis=1, keepdims=True)
    rho_N1[~np.isfinite(rho_N1)] = 0.0
    beyond_NK = np.maximum(distances_NK - rho_N1, 0)
    target = np.log2(distances_NK.shape[1] + 1)
    low, high = np.zeros_like(rho_N1), np.full_like(rho_N1, np.inf)
    sigma_N1 = np.ones_like(rho_N1)
    for _ in range(BISECTIONS):
        total_N1 = np.exp(-beyond_NK / sigma_N1).sum(axis=1, keepdims=True)
        if (np.abs(total_N1 - target) < TOLERANCE).all():
            break
        high = np.where(total_N1 > target, sigma_N1, high)
        low = np.where(total_N1 > target, low, sigma_N1)
        sigma_N1 = np.where(np.isfinite(high), (low + high) / 2, 2 * sigma_N1)
    # umap-learn's floor: a share of the image's own mean distance, or of everybody's.
    own_mean_N1 = distances_NK.sum(axis=1, keepdims=True) / (distances_NK.shape[1] + 1)
    all_mean = own_mean_N1.mean()
    floor_N1 = SMALLEST_SIGMA * np.where(rho_N1 > 0, own_mean_N1, all_mean)
    return rho_N1, np.maximum(np.maximum(sigma_N1, floor_N1), 1e-12)
