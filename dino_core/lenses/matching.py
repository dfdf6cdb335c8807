"""Which head of one model is which head of another: matched by what they look at, not by number.

    matching = match_heads(look(first, image).maps[-1], look(second, image).maps[-1])
    matching.pairs                              # (Pair(first=0, second=4, similarity=0.93), ...)

Heads have no order: training the same recipe twice, or longer, gives the same kinds of heads in
other places. Both sets of maps are brought to one grid by area averaging, compared by Pearson's
correlation, and paired so that the sum of correlations is the greatest possible (Kuhn 1955, the
"Hungarian" assignment; scipy's is Crouse 2016, doi:10.1109/TAES.2016.140952).

Every head of the smaller set gets a partner, a poor one if there is no better: read `similarity`
before saying that two heads are one. One image is weak evidence, several agreeing are good.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from dino_core.errors import UserError

# Correlation from which `sentence` calls two heads alike. Maps are smooth, so unrelated ones agree
# by chance: heads of an untrained ViT-T/8 reached 0.75 with a trained one's on five photos, while a
# trained head and itself on the mirrored photo agree to 0.94 or more on average.
ALIKE = 0.8


@dataclass(frozen=True)
class Pair:
    """Head `first` of the first set is head `second` of the second one."""

    first: int
    second: int
    similarity: float  # -1..1, Pearson correlation of the maps; 0 where one is flat


@dataclass(frozen=True)
class Matching:
    """How two sets of heads belong together."""

    pairs: tuple[Pair, ...]  # by head of the first set
    alone_first: tuple[int, ...]  # heads of the first set that the second has too few heads for
    alone_second: tuple[int, ...]
    similarity: np.ndarray  # float64 [heads, heads'], every head with every other
    grid: tuple[int, int]  # (h, w) on which maps were compared

    @property
    def mean(self) -> float:
        """Mean similarity of the pairs."""
        return float(np.mean([pair.similarity for pair in self.pairs]))

    def partner(self, first: int) -> int | None:
        """The head of the second set that belongs to head `first`; None when it is left alone."""
        return next((pair.second for pair in self.pairs if pair.first == first), None)

    def sentence(self) -> str:
        """The matching in plain words."""
        alike = [pair for pair in self.pairs if pair.similarity >= ALIKE]
        moved = sum(pair.first != pair.second for pair in alike)
        alone = len(self.alone_first) + len(self.alone_second)
        rest = f"; {alone} without a partner" if alone else ""
        return (
            f"{len(alike)} of {len(self.pairs)} pairs of heads look alike (correlation {ALIKE} or "
            f"more), {moved} of them under another number; mean correlation {self.mean:.2f}{rest}."
        )


def match_heads(first: np.ndarray, second: np.ndarray) -> Matching:
    """Pair the heads of two sets of maps of the SAME image.

    `first` float [heads, h, w], `second` float [heads', h', w']; grids and numbers of heads may
    differ. Scaling or shifting a map by a constant changes nothing. Raises `UserError` for other
    shapes, no heads, or values that are not numbers.
    """
    grid = _common_grid(first, second)
    similarity = _directions(on_grid(first, grid)) @ _directions(on_grid(second, grid)).T
    similarity = np.clip(similarity, -1, 1)  # rounding
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    return Matching(
        pairs=tuple(
            Pair(int(row), int(column), float(similarity[row, column]))
            for row, column in zip(rows, columns, strict=True)
        ),
        alone_first=tuple(sorted(set(range(len(first))) - set(rows.tolist()))),
        alone_second=tuple(sorted(set(range(len(second))) - set(columns.tolist()))),
        similarity=similarity,
        grid=grid,
    )


def on_grid(maps: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """`maps` [..., h, w] averaged over the cells of `grid`, float64 [..., *grid].

    Exact areas: a patch that two cells share counts in each by its share. The mean stays.
    """
    down = _overlaps(grid[0], maps.shape[-2])
    across = _overlaps(grid[1], maps.shape[-1])
    return down @ maps.astype(np.float64) @ across.T


def _common_grid(first: np.ndarray, second: np.ndarray) -> tuple[int, int]:
    """The coarser of both in each direction: enlarging would compare detail that is not there."""
    for maps in (first, second):
        if maps.ndim != 3 or 0 in maps.shape:
            raise UserError(f"maps of shape {maps.shape}: give [heads, h, w] of one layer")
        if not np.isfinite(maps).all():
            raise UserError(
                "maps hold values that are not numbers: the model's weights are damaged"
            )
    return min(first.shape[1], second.shape[1]), min(first.shape[2], second.shape[2])


def _overlaps(cells: int, patches: int) -> np.ndarray:
    """How much of each cell's width lies on each patch, float64 [cells, patches], rows sum to 1."""
    starts = np.arange(cells)[:, None] * patches  # in units of 1 / (cells x patches)
    edges = np.arange(patches)[None] * cells
    shared = np.minimum(starts + patches, edges + cells) - np.maximum(starts, edges)
    return np.maximum(shared, 0) / patches


def _directions(maps: np.ndarray) -> np.ndarray:
    """Maps [heads, h, w] as vectors without mean and of length 1, flat ones as zeros."""
    flat = maps.reshape(len(maps), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    # What rounding leaves of a constant map is no direction.
    flat_map = length <= 1e-12 * np.sqrt(flat.shape[1]) * np.abs(maps).max(axis=(1, 2))[:, None]
    return np.where(flat_map, 0, flat / np.where(flat_map, 1, length))
