"""Which patches look alike to a model: within one image, and between two.

    alike = similarity(tokens, 3, 5)                # float32 [h, w], cosines with patch (3, 5)
    alike = similarity(tokens, 3, 5, other)         # the same patch, among those of another image
    pairs = matches(tokens, other)                  # patches that choose each other, best first

Cosines are computed in float64 and rounded to float32: so patches that are equal have equal
cosines wherever they lie, and the choice among them follows a rule instead of rounding.

Shape legend: N, M patches of the first and the second image, D width, K pairs.
"""

from dataclasses import dataclass

import numpy as np

from dino_core.errors import UserError
from dino_core.lenses.tokens import Tokens

_BLOCK = 2**19  # cosines held at a time: 4 MB in float64, 128 patches against 4,096


@dataclass(frozen=True)
class Matches:
    """Pairs of patches, each the other's nearest neighbor: best first, then in reading order."""

    first: np.ndarray  # int64 [K, 2], (row, column) in the first image
    second: np.ndarray  # int64 [K, 2], (row, column) in the second image
    cosines: np.ndarray  # float32 [K], in -1..1

    def __len__(self) -> int:
        return len(self.cosines)


def similarity(tokens: Tokens, row: int, column: int, other: Tokens | None = None) -> np.ndarray:
    """Cosine of one patch with every patch of the same image, or of `other`.

    Returns float32 [h, w] in -1..1, on the grid of `other` where it is given. Raises `UserError`
    for a place outside the grid, or tokens of another model.
    """
    require_place(tokens, row, column)
    other = tokens if other is None else other
    require_one_model(tokens, other)
    width = tokens.grid[1]
    query_1D = _unit(tokens, slice(row * width + column, row * width + column + 1))
    return _cosines(query_1D, _unit(other)).reshape(other.grid)


def best_match(tokens: Tokens, row: int, column: int, other: Tokens) -> tuple[int, int, float]:
    """Row and column of the patch of `other` nearest to one of `tokens`, and their cosine.

    Of equally near ones the first in reading order. Raises `UserError` as `similarity` does.
    """
    alike = similarity(tokens, row, column, other)
    best_row, best_column = divmod(int(alike.argmax()), other.grid[1])
    return best_row, best_column, float(alike[best_row, best_column])


def matches(first: Tokens, second: Tokens) -> Matches:
    """The patches of two images that are each other's nearest neighbors.

    Of equally near neighbors a patch chooses the one of its own number, else the first in reading
    order; so swapping the images swaps the pairs, and an image matches itself patch by patch. All
    N x M cosines are computed, but only 4 MB of them held at a time. Raises `UserError` for tokens
    of another model.
    """
    require_one_model(first, second)
    forward_N, cosines_N, backward_M = _nearest(first, second)
    mutual_K = np.flatnonzero(backward_M[forward_N] == np.arange(len(forward_N)))
    mutual_K = mutual_K[np.argsort(-cosines_N[mutual_K], kind="stable")]
    return Matches(
        first=_places(mutual_K, first.grid),
        second=_places(forward_N[mutual_K], second.grid),
        cosines=cosines_N[mutual_K],
    )


def require_one_model(*several: Tokens) -> None:
    """Raise a `UserError` unless all these tokens are of one model: others cannot be compared."""
    for tokens in several[1:]:
        if tokens.model_hash != several[0].model_hash:
            raise UserError(
                f"patches of {tokens.model} and of {several[0].model} cannot be compared: "
                "the models differ; read both images with one model"
            )


def require_place(tokens: Tokens, row: int, column: int) -> None:
    """Raise a `UserError` unless there is a patch at this row and column."""
    rows, columns = tokens.grid
    if not (0 <= row < rows and 0 <= column < columns):
        raise UserError(
            f"patch at row {row}, column {column}: the image has {rows} rows and {columns} columns "
            "of patches, counted from 0; choose one of them"
        )


def _nearest(first: Tokens, second: Tokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nearest second of each first patch [N], its cosine [N], nearest first of each second [M]."""
    unit_MD = _unit(second)
    count_N, count_M = first.grid[0] * first.grid[1], len(unit_MD)
    forward_N, cosines_N = np.empty(count_N, np.int64), np.empty(count_N, np.float32)
    backward_M, best_M = np.zeros(count_M, np.int64), np.full(count_M, -np.inf, np.float32)
    together = max(1, _BLOCK // count_M)
    for start in range(0, count_N, together):
        rows_B = np.arange(start, min(start + together, count_N))
        cosines_BM = _cosines(_unit(first, slice(start, start + together)), unit_MD)
        nearest_B = cosines_BM.argmax(axis=1)
        forward_N[rows_B] = nearest_B
        cosines_N[rows_B] = cosines_BM[rows_B - start, nearest_B]
        nearest_M = cosines_BM.argmax(axis=0)
        highest_M = cosines_BM[nearest_M, np.arange(count_M)]
        better_M = highest_M > best_M
        backward_M[better_M] = nearest_M[better_M] + start
        best_M[better_M] = highest_M[better_M]
        own_S = rows_B[rows_B < count_M]
        same_S = cosines_BM[own_S - start, own_S]
        chosen_S = own_S[same_S == cosines_N[own_S]]
        forward_N[chosen_S] = chosen_S
        # A later block may hold a nearer one, which then takes the place.
        chosen_S = own_S[same_S == best_M[own_S]]
        backward_M[chosen_S] = chosen_S
    return forward_N, cosines_N, backward_M


def _unit(tokens: Tokens, part: slice = slice(None)) -> np.ndarray:
    """Patches in reading order with length 1 to the last bit of float64; one of length 0 stays."""
    patches_ND = tokens.patches.reshape(-1, tokens.patches.shape[-1])[part].astype(np.float64)
    lengths_N1 = np.linalg.norm(patches_ND, axis=1, keepdims=True)
    patches_ND /= np.where(lengths_N1 > 0, lengths_N1, 1)
    return patches_ND


def _cosines(unit_ND: np.ndarray, unit_MD: np.ndarray) -> np.ndarray:
    """All products of unit vectors: float32 [N, M] in -1..1."""
    cosines_NM = (unit_ND @ unit_MD.T).astype(np.float32)
    return np.clip(cosines_NM, -1, 1, out=cosines_NM)


def _places(numbers_K: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Patch numbers as (row, column), int64 [K, 2]."""
    return np.stack(np.divmod(numbers_K, grid[1]), axis=1)
