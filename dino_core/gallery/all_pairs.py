"""The exact neighbor graph with each product computed once, for both of its images.

Blocks of images meet each other once. Of their products every row keeps the best so far, and so
does every column: two compiled functions look at 64 products at a time, and only where one of them
is good enough at each of them. Half of the products, and no heap for each, make it about twice as
fast as `neighbors.plain_graph` of FAISS, to which it is equal but for how sums are rounded.

The graph does not depend on the number of threads: rows are kept in the order of (score, row), so
the order in which they are seen does not matter; and each product is summed in one order, see
`_block`.

Shapes: N images, D dimensions, K neighbors, A and B images in two blocks.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numba
import numpy as np

from dino_core.distributed import cores
from dino_core.gallery.compiled import compiled
from dino_core.gallery.progress import Progress, silent

BLOCK = 2048  # images: its products, 16 MB, stay in a processor's cache
CHUNK = 64  # products looked at together: a few vector instructions
PADDED_TO = 64  # dimensions
MOST_THREADS = 16
NONE = np.iinfo(np.int32).max  # comes after every row

Seen = Callable[..., None]


def graph_by_blocks(
    features_ND: np.ndarray,
    k: int,
    progress: Progress | None = None,
    threads: int | None = None,
    block: int = BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """Each image's `k` nearest OTHER images, best first, equal scores in the order of rows.

    `features_ND`: float32, L2-normalized, may be a memory map; 0 < k < N. Returns rows int32
    [N, K] and cosines float32 [N, K]. `threads`: None for as many as there are cores.
    """
    say, count = progress or silent, len(features_ND)
    rows_NK = np.full((count, k), NONE, np.int32)
    scores_NK = np.full((count, k), -np.inf, np.float32)
    blocks = -(-count // block)
    cuts = [count * at // blocks for at in range(blocks + 1)]  # alike: a small rest rounds its own
    products = np.empty(max(stop - start for start, stop in pairwise(cuts)) ** 2, np.float32)
    threads = threads or min(cores(), MOST_THREADS)
    met, meetings = 0, blocks * (blocks + 1) // 2
    with ThreadPoolExecutor(threads) as pool:
        for apart in range(blocks):  # images of a folder are alike: the near ones set the mark
            for at in range(blocks - apart):
                first, other = cuts[at], cuts[at + apart]
                a_AD = _block(features_ND, first, cuts[at + 1])
                b_BD = _block(features_ND, other, cuts[at + apart + 1]) if apart else a_AD
                shape = len(a_AD), len(b_BD)
                score_AB = products[: shape[0] * shape[1]].reshape(shape)
                np.matmul(a_AD, b_BD.T, out=score_AB)
                seen = (score_AB, first, other, rows_NK, scores_NK)
                _by_parts(pool, threads, by_row(), shape[0], seen)
                if apart:
                    _by_parts(pool, threads, by_column(), shape[1], seen)
                met += 1
                say(count * met // meetings, count, "Finding neighbors")
    return rows_NK, scores_NK


def _block(features_ND: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Some images' features, with zeros up to a multiple of 64 dimensions.

    OpenBLAS sums a product in parts of some hundred dimensions. Where these do not come out even,
    as of 1,000, one thread cuts them otherwise than two.
    """
    block_AD = np.ascontiguousarray(features_ND[start:stop], np.float32)  # of a map: itself
    missing = -block_AD.shape[1] % PADDED_TO
    return np.pad(block_AD, ((0, 0), (0, missing))) if missing else block_AD


def _by_parts(pool: ThreadPoolExecutor, threads: int, see: Seen, count: int, seen: tuple) -> None:
    """Each thread looks for some of the `count` rows or columns, whose best no other touches."""
    ends = [count * part // threads for part in range(threads + 1)]
    for wait in [pool.submit(see, *part, *seen) for part in pairwise(ends)]:
        wait.result()


@numba.njit(inline="always")
def _keep(rows_NK, scores_NK, image, other, score):  # type: ignore[no-untyped-def]
    """Put `other` among the best of `image`, if it is one of them."""
    at = scores_NK.shape[1] - 1
    worst = scores_NK[image, at]
    if image == other or score < worst or (score == worst and other > rows_NK[image, at]):
        return
    while at > 0:
        better = scores_NK[image, at - 1]
        if better > score or (better == score and rows_NK[image, at - 1] < other):
            break
        scores_NK[image, at], rows_NK[image, at] = better, rows_NK[image, at - 1]
        at -= 1
    scores_NK[image, at], rows_NK[image, at] = score, other


def _by_row(start, stop, score_AB, first, other, rows_NK, scores_NK):  # type: ignore[no-untyped-def]
    """Let images `first + start` .. `first + stop - 1` keep the best of their rows."""
    last = scores_NK.shape[1] - 1
    for row in range(start, stop):
        image = first + row
        for begin in range(0, score_AB.shape[1], CHUNK):
            # Slices, and no way out of the loop: else it does not become vector instructions.
            scores = score_AB[row, begin : begin + CHUNK]
            worst, some = scores_NK[image, last], np.int32(0)
            for at in range(len(scores)):
                some |= np.int32(scores[at] >= worst)
            if some == 0:
                continue
            for at in range(len(scores)):
                if scores[at] >= scores_NK[image, last]:
                    _keep(rows_NK, scores_NK, image, np.int32(other + begin + at), scores[at])


def _by_column(start, stop, score_AB, first, other, rows_NK, scores_NK):  # type: ignore[no-untyped-def]
    """Let images `other + start` .. `other + stop - 1` keep the best of their columns."""
    last = scores_NK.shape[1] - 1
    worst_B = scores_NK[other : other + score_AB.shape[1], last].copy()
    for row in range(score_AB.shape[0]):
        image = np.int32(first + row)
        for begin in range(start, stop, CHUNK):
            scores = score_AB[row, begin : min(begin + CHUNK, stop)]
            worst = worst_B[begin : min(begin + CHUNK, stop)]
            some = np.int32(0)
            for at in range(len(scores)):
                some |= np.int32(scores[at] >= worst[at])
            if some == 0:
                continue
            for at in range(len(scores)):
                if scores[at] >= worst[at]:
                    _keep(rows_NK, scores_NK, other + begin + at, image, scores[at])
                    worst[at] = scores_NK[other + begin + at, last]


SIGNATURE = "void(int64, int64, float32[:, ::1], int64, int64, int32[:, ::1], float32[:, ::1])"


@cache
def by_row() -> Seen:
    """`_by_row` compiled."""
    return compiled(SIGNATURE, _by_row)


@cache
def by_column() -> Seen:
    """`_by_column` compiled."""
    return compiled(SIGNATURE, _by_column)
