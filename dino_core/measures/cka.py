"""Linear CKA: how alike two sets of features of the same images are, whatever their dimensions.

Kornblith, Norouzi, Lee, Hinton, "Similarity of neural network representations revisited" (2019),
section 3: with columns centered, |Y'X|^2 / (|X'X| |Y'Y|) in Frobenius norms, between 0 and 1; 1 for
features that are equal up to a rotation and a scale. With more dimensions than images it is large
for any two sets; the unbiased variant, which takes each HSIC by the estimator of Song et al.,
"Feature selection via dependence maximization" (2012), equation 5, is then about 0, or below.

Both come from sums over the images, so these are given in chunks and never compared with each
other: time and memory do not grow with N^2.

Shapes: N images, B of them at a time, D and E dimensions of the two sets.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

FEWEST = 4  # images; the unbiased estimator divides by N (N - 3)
NOTHING = 1e-12  # of the largest possible value: less is rounding


def linear_cka(first_ND: np.ndarray, second_NE: np.ndarray, *, unbiased: bool = False) -> float:
    """Linear CKA of two sets of features in memory. NaN as `CkaSums.value` says.

    Raises `ValueError` for sets of different lengths.
    """
    sums = CkaSums()
    sums.add(first_ND, second_NE)
    return sums.value(unbiased=unbiased)


@dataclass
class CkaSums:
    """The sums that CKA needs, to which images are added chunk by chunk.

    All are about the first chunk's mean, so that features which share a large mean lose no digits;
    neither variant depends on where the origin lies.
    """

    count: int = 0
    _origins: tuple[np.ndarray, np.ndarray] | None = None
    _first: dict[str, Any] = field(default_factory=dict)
    _second: dict[str, Any] = field(default_factory=dict)
    _cross_DE: Any = 0.0
    _by_norms: float = 0.0  # sum of |x|^2 |y|^2
    _x_by_y_D: Any = 0.0  # sum of |y|^2 x
    _y_by_x_E: Any = 0.0

    def add(self, first_BD: np.ndarray, second_BE: np.ndarray) -> None:
        """Add some images, row b of both being the same one. Raises `ValueError` if they differ."""
        if len(first_BD) != len(second_BE):
            raise ValueError(f"{len(first_BD)} and {len(second_BE)} features are not of one set")
        if len(first_BD) == 0:
            return
        x_BD, y_BE = first_BD.astype(np.float64), second_BE.astype(np.float64)
        if self._origins is None:
            self._origins = x_BD.mean(axis=0), y_BE.mean(axis=0)
        x_BD -= self._origins[0]
        y_BE -= self._origins[1]
        x_norm_B, y_norm_B = (x_BD**2).sum(axis=1), (y_BE**2).sum(axis=1)
        self.count += len(x_BD)
        _add(self._first, x_BD, x_norm_B)
        _add(self._second, y_BE, y_norm_B)
        self._cross_DE = self._cross_DE + x_BD.T @ y_BE
        self._by_norms += float(x_norm_B @ y_norm_B)
        self._x_by_y_D = self._x_by_y_D + y_norm_B @ x_BD
        self._y_by_x_E = self._y_by_x_E + x_norm_B @ y_BE

    def value(self, *, unbiased: bool = False) -> float:
        """CKA of what was added.

        NaN where it is not defined: the features of one set are all equal, there are fewer than two
        images, or, for the unbiased variant, fewer than four or an estimate that is not above 0.
        """
        if self.count < (FEWEST if unbiased else 2):
            return float("nan")
        hsic = self._unbiased if unbiased else self._plain
        x, y = self._first, self._second
        both = hsic(
            x["sum"], y["sum"], self._cross_DE, x["norm"], y["norm"],
            self._by_norms, self._x_by_y_D, self._y_by_x_E,
        )  # fmt: skip
        own_x, own_y = (
            hsic(
                s["sum"], s["sum"], s["cross"], s["norm"], s["norm"], s["square"], s["by"], s["by"]
            )
            for s in (x, y)
        )
        if own_x <= NOTHING * x["norm"] ** 2 or own_y <= NOTHING * y["norm"] ** 2:
            return float("nan")
        return float(both / np.sqrt(own_x * own_y))

    def _plain(self, x_D, y_E, cross_DE, *_: Any) -> float:  # type: ignore[no-untyped-def]
        """|X'Y|^2 of centered columns."""
        return float(((cross_DE - np.outer(x_D, y_E) / self.count) ** 2).sum())

    def _unbiased(  # type: ignore[no-untyped-def]
        self, x_D, y_E, cross_DE, x_norm, y_norm, by_norms, x_by_y_D, y_by_x_E
    ) -> float:
        """N (N - 3) times Song's estimator, from sums instead of the N x N matrices K and L.

        Those have zeros on the diagonal: row n of K sums to x_n (sum of x) - |x_n|^2.
        """
        n = self.count
        trace = (cross_DE**2).sum() - by_norms
        totals = (x_D @ x_D - x_norm) * (y_E @ y_E - y_norm)
        rows = x_D @ cross_DE @ y_E - x_by_y_D @ x_D - y_by_x_E @ y_E + by_norms
        return float(trace + totals / ((n - 1) * (n - 2)) - 2 * rows / (n - 2))


def _add(sums: dict[str, Any], x_BD: np.ndarray, norm_B: np.ndarray) -> None:
    """One set's own sums: of x, of x'x, of |x|^2, of |x|^4 and of |x|^2 x."""
    news = {
        "sum": x_BD.sum(axis=0),
        "cross": x_BD.T @ x_BD,
        "norm": float(norm_B.sum()),
        "square": float(norm_B @ norm_B),
        "by": norm_B @ x_BD,
    }
    for name, value in news.items():
        sums[name] = sums.get(name, 0.0) + value
