"""PCA whitening: features turned to their principal axes, each axis divided by its spread.

What all images have in common weighs less afterwards, what tells them apart weighs more; near
copies are found with it (Jegou and Chum, "Negative evidences and co-occurrences in image
retrieval: the benefit of PCA and whitening", 2012).

The published steps (DINO, eval_copy_detection with `whit=0.5`), from features of other images:

1. Their mean is taken off what is whitened (not normalized before).
2. Their covariance, the mean of outer products, is NOT centered: off by the mean's own axis, on
   which centered features hardly lie. Here it is, unless `as_published`.
3. Eigenvalues below 1e-5 of the largest count as that: the only regularization.
4. Features are turned to all D axes, each divided by its eigenvalue to the power 0.5, which
   is the deviation on that axis. Here axes that M images cannot span are left out, unless
   `as_published`: there they hold noise, stretched the most.
5. What comes out is L2-normalized, which is left to the caller.

Shapes: M images, D dimensions, K kept dimensions.
"""

from dataclasses import dataclass

import numpy as np

POWER = 0.5  # the published `whit`: eigenvalues are variances, so this divides by the deviation
SMALLEST = 1e-5  # of the largest eigenvalue; axes with less are divided as if they had that much
ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Whitening:
    """What was learned of some features, to be applied to others."""

    mean_D: np.ndarray  # float64
    axes_KD: np.ndarray  # float64; principal axes over eigenvalue^power, the largest first
    energy: float  # share 0..1 of the variance on the kept axes

    def apply(self, features_MD: np.ndarray) -> np.ndarray:
        """float32 [M, K]: centered, turned and scaled; not normalized."""
        out_MK = np.empty((len(features_MD), len(self.axes_KD)), np.float32)
        for start in range(0, len(features_MD), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            out_MK[part] = (features_MD[part] - self.mean_D) @ self.axes_KD.T
        return out_MK


def learn_whitening(
    features_MD: np.ndarray,
    *,
    dim: int | None = None,
    power: float = POWER,
    as_published: bool = False,
) -> Whitening:
    """Learn whitening from float features [M, D], in float64, a part of the rows at a time.

    `dim`: axes to keep (None: D, or as many as M images can span, M - 1); `power`: 0 only turns,
    0.5 gives every axis the variance 1. Eigenvalues below 1e-5 of the largest count as that.

    `as_published`: the covariance is not centered, and all D axes are kept (see above).

    Raises `ValueError` for fewer than 2 rows, a `dim` outside 1..D, or features that are all equal.
    """
    count, width = features_MD.shape
    if count < 2:
        raise ValueError(f"{count} images cannot tell what images have in common")
    most = width if as_published else min(width, count - 1)
    if dim is not None and not 1 <= dim <= width:
        raise ValueError(f"{dim} axes of features of {width} dimensions")
    mean_D = _sum(features_MD) / count
    around_D = np.zeros_like(mean_D) if as_published else mean_D
    covariance_DD = np.zeros((width, width))
    for start in range(0, count, ROWS_AT_ONCE):
        part_BD = features_MD[start : start + ROWS_AT_ONCE].astype(np.float64) - around_D
        covariance_DD += part_BD.T @ part_BD
    values_D, vectors_DD = np.linalg.eigh(covariance_DD / count)
    if values_D[-1] <= 0:
        raise ValueError("the features are all equal")
    values_D = np.maximum(values_D, SMALLEST * values_D[-1])[::-1]
    kept = min(most, dim or most)
    axes_KD = vectors_DD[:, ::-1][:, :kept].T / values_D[:kept, None] ** power
    return Whitening(mean_D, axes_KD, float(values_D[:kept].sum() / values_D.sum()))


def _sum(features_MD: np.ndarray) -> np.ndarray:
    """float64 [D], without a float64 copy of all."""
    return features_MD.sum(axis=0, dtype=np.float64)
