"""UMAP's layout: points pulled to their neighbors in a fuzzy graph, and pushed from the rest.

McInnes, Healy, Melville, "UMAP: uniform manifold approximation and projection" (2018), algorithm
5, with umap-learn's constants (BSD 3-Clause License). What is done otherwise, and why:

- Within an epoch every point moves past the OTHERS AS THEY STOOD when it began. So points may be
  moved in any order and by any number of threads, and the map is the same; umap-learn's is either
  the same each time or made by several threads, not both.
- The pull and the push are read from a table over the squared distance instead of computed by
  `pow`, which took most of the time; only additions and products are left, rounded as IEEE says.
- One function is compiled, for 1 s, once: numba keeps it beside this file, or in the user's cache
  folder where that cannot be written. umap-learn compiles for 10 s and keeps nothing of it.

Shapes: N points, E entries of the graph, T entries of a table.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numba
import numpy as np
from scipy.optimize import curve_fit
from scipy.sparse import csr_array

from dino_core.distributed import cores
from dino_core.gallery.compiled import compiled
from dino_core.rng import generator

EPOCHS, EPOCHS_IF_FEW, FEW = 200, 500, 10_000
NEGATIVES = 5  # points pushed away from, for each pull
LARGEST_STEP = 4.0  # along one axis, before the learning rate
START_EXTENT = 10.0
PULLS = np.float32(2)
MOST_THREADS = 16
FEWEST_A_THREAD = 2_000  # points worth a thread

# A table's places are the leading bits of a float32: 8 of exponent, 5 of mantissa.
BITS_DROPPED = 18
FIRST_PLACE = (127 - 32) << (23 - BITS_DROPPED)  # squared distances from 2^-32
LAST_PLACE = (127 + 24) << (23 - BITS_DROPPED)  # to 2^24


def layout(
    graph: csr_array,
    start_N2: np.ndarray,
    min_dist: float,
    on_epoch: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Coordinates that keep the graph's neighbors near, float32 [N, 2].

    `graph`: symmetric memberships in (0, 1]; `start_N2`: where points begin, in any extent;
    `min_dist`: how close points may lie, 0 to 1; `on_epoch(done, total)` is called as it goes on.
    The result does not depend on `threads` (None: as many as pay).
    """
    count = len(start_N2)
    epochs = EPOCHS_IF_FEW if count <= FEW else EPOCHS
    graph = _without_what_never_comes(graph, epochs)
    pull_T, push_T = force_tables(*curve(min_dist))
    period_E = (graph.data.max(initial=1.0) / graph.data).astype(np.float32)
    due_E = period_E.copy()
    random_N = generator(0, "layout").integers(1, 2**32, count, dtype=np.uint32)
    indptr, indices_E = graph.indptr.astype(np.int64), graph.indices.astype(np.int32)
    here_N2 = _in_extent(start_N2)
    there_N2 = here_N2.copy()
    move = compiled_move()
    parts = _parts(graph.indptr, threads or _threads_that_pay(count))
    with ThreadPoolExecutor(len(parts)) as pool:
        for epoch in range(epochs):
            rate = np.float32(1 - epoch / epochs)
            fixed = (indptr, indices_E, period_E, due_E, pull_T, push_T, random_N)
            moving = (here_N2, there_N2, rate, np.float32(epoch))
            waits = [pool.submit(move, *part, *fixed, *moving) for part in parts]
            for wait in waits:
                wait.result()
            here_N2, there_N2 = there_N2, here_N2
            if on_epoch is not None:
                on_epoch(epoch + 1, epochs)
    return here_N2


def curve(min_dist: float, spread: float = 1.0) -> tuple[float, float]:
    """a and b of 1 / (1 + a d^2b), fitted to 1 up to `min_dist` and an exponential decay beyond."""
    d = np.linspace(0, 3 * spread, 300)
    wanted = np.where(d < min_dist, 1.0, np.exp(-(d - min_dist) / spread))
    (a, b), _ = curve_fit(lambda d, a, b: 1 / (1 + a * d ** (2 * b)), d, wanted)
    return float(a), float(b)


def force_tables(a: float, b: float) -> tuple[np.ndarray, np.ndarray]:
    """Pull and push by squared distance, as factors of the difference: float32 [T] each.

    The derivatives of the cross-entropy (paper, section 3.2 and algorithm 5); 0.001 keeps the push
    finite. A pull stands for both directions of its edge.
    """
    places = np.arange(FIRST_PLACE, LAST_PLACE + 1, dtype=np.int32)
    squared = (places << BITS_DROPPED).view(np.float32).astype(np.float64)
    pull = -2 * a * b * squared ** (b - 1) / (1 + a * squared**b)
    push = 2 * b / ((0.001 + squared) * (1 + a * squared**b))
    return pull.astype(np.float32), push.astype(np.float32)


@numba.njit(inline="always")
def _looked_up(table_T, squared):  # type: ignore[no-untyped-def]
    """The table's value at a squared distance, between two places by a straight line."""
    bits = np.float32(squared).view(np.int32)
    place = (bits >> BITS_DROPPED) - FIRST_PLACE
    if place < 0:
        return table_T[0]
    if place >= LAST_PLACE - FIRST_PLACE:
        return table_T[LAST_PLACE - FIRST_PLACE]
    beyond = np.float32(bits & ((1 << BITS_DROPPED) - 1)) * np.float32(2.0**-BITS_DROPPED)
    return table_T[place] + beyond * (table_T[place + 1] - table_T[place])


@numba.njit(inline="always")
def _clipped(step):  # type: ignore[no-untyped-def]
    return min(max(step, np.float32(-LARGEST_STEP)), np.float32(LARGEST_STEP))


def _move(  # type: ignore[no-untyped-def]
    first, last, indptr, indices_E, period_E, due_E, pull_T, push_T, random_N,
    here_N2, there_N2, rate, epoch,
):  # fmt: skip
    """Move points `first` .. `last` - 1 through one epoch, from `here_N2` to `there_N2`."""
    count = np.uint64(len(here_N2))
    for point in range(first, last):
        x, y = here_N2[point, 0], here_N2[point, 1]
        random = random_N[point]
        for entry in range(indptr[point], indptr[point + 1]):
            if due_E[entry] > epoch:
                continue
            due_E[entry] += period_E[entry]
            other = indices_E[entry]
            dx, dy = x - here_N2[other, 0], y - here_N2[other, 1]
            squared = dx * dx + dy * dy
            if squared > 0:
                factor = _looked_up(pull_T, squared)
                x += PULLS * _clipped(factor * dx) * rate
                y += PULLS * _clipped(factor * dy) * rate
            for _ in range(NEGATIVES):
                random = np.uint32(random ^ (random << np.uint32(13)))  # xorshift32
                random = np.uint32(random ^ (random >> np.uint32(17)))  # (Marsaglia, 2003)
                random = np.uint32(random ^ (random << np.uint32(5)))
                other = np.int64((np.uint64(random) * count) >> np.uint64(32))
                if other == point:
                    continue
                dx, dy = x - here_N2[other, 0], y - here_N2[other, 1]
                factor = _looked_up(push_T, dx * dx + dy * dy)
                x += _clipped(factor * dx) * rate
                y += _clipped(factor * dy) * rate
        random_N[point] = random
        there_N2[point, 0], there_N2[point, 1] = x, y


SIGNATURE = (
    "void(int64, int64, int64[::1], int32[::1], float32[::1], float32[::1], float32[::1], "
    "float32[::1], uint32[::1], float32[:, ::1], float32[:, ::1], float32, float32)"
)


@cache
def compiled_move() -> Callable[..., None]:
    """`_move` compiled, or as an earlier process compiled it."""
    return compiled(SIGNATURE, _move)


def _without_what_never_comes(graph: csr_array, epochs: int) -> csr_array:
    """The graph without entries so weak that their turn would come after the last epoch."""
    graph = graph.tocsr().astype(np.float32)
    graph.data[graph.data < graph.data.max(initial=0.0) / epochs] = 0.0
    graph.eliminate_zeros()
    return graph


def _in_extent(xy_N2: np.ndarray) -> np.ndarray:
    low_2, high_2 = xy_N2.min(axis=0), xy_N2.max(axis=0)
    extent_2 = np.where(high_2 > low_2, high_2 - low_2, 1.0)
    return np.ascontiguousarray(START_EXTENT * (xy_N2 - low_2) / extent_2, np.float32)


def _threads_that_pay(count: int) -> int:
    return max(1, min(cores(), MOST_THREADS, math.ceil(count / FEWEST_A_THREAD)))


def _parts(indptr: np.ndarray, threads: int) -> list[tuple[int, int]]:
    """Points from and to for each thread, with about as many entries of the graph each."""
    shares = np.linspace(0, indptr[-1], threads + 1)[1:-1]
    cuts = [0, *np.searchsorted(indptr[1:], shares).tolist(), len(indptr) - 1]
    return list(pairwise(cuts))
