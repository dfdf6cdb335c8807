"""Maps of the same images by several features, laid out together so that they can be compared.

An image whose neighbors stay lies at the same place in every map; what moves has got others. The
method is that of umap-learn's `AlignedUMAP` (Dadu et al., "Application of Aligned-UMAP to
longitudinal biomedical studies", 2023): UMAP's layout for each set of features, and a pull between
the places of one image in different maps, the stronger the more neighbors they share, weaker by
a factor e for each step that they are apart. It runs on our own layout (`layout.py`): two
maps of 2,000 images take 3.6 s, where `AlignedUMAP` takes 14 to 21 s after 27 s of compilation,
progress is told every epoch, and neighbors are kept no worse (`docs/log.md`).

Shapes: M sets of features, N images, D dimensions, K neighbors.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dino_core.errors import UserError
from dino_core.gallery.fuzzy import fuzzy_graph
from dino_core.gallery.maps import UmapSettings, pca_map
from dino_core.gallery.neighbors import neighbor_graph
from dino_core.gallery.progress import Progress, silent
from dino_core.rng import generator, permutation

MOST_IMAGES = 5_000
FEWEST_IMAGES = 15  # below, principal components are turned onto each other instead
WINDOW = 3  # maps to either side that pull on a map, as in AlignedUMAP
PULL = 0.3  # share of the way to the same image in the next map, each epoch, at the start; of many
# maps alike, all pulls on one sum to 0.9: above 1 they would overshoot
START_EXTENT = 5.0  # from the center to the outermost point
START_NOISE = 1e-3  # parts exact copies

GRAPHS = "Finding neighbors for the aligned maps"
LAYING = "Drawing the aligned maps"
FEW = f"Fewer than {FEWEST_IMAGES} images: aligning principal components instead of UMAPs"


def common_sample(count: int, most: int = MOST_IMAGES) -> np.ndarray:
    """Which of `count` images an aligned map shows: rows int64, ascending, at most `most`.

    A random sample that is always the same, so that maps drawn at different times agree.
    """
    if count <= most:
        return np.arange(count)
    return np.sort(permutation(count, "aligned maps")[:most])


def aligned_maps(
    features: Sequence[np.ndarray], progress: Progress | None = None
) -> list[np.ndarray]:
    """A map for each set of features of the same images, float32 [N, 2] each.

    `features`: each float [N, D_i], row n of all being the same image; they are L2-normalized
    here. Consecutive sets are pulled together most, so time goes from first to last. The result
    depends on the features alone. Fewer than 15 images get principal components, and `progress`
    is told so.

    Raises `UserError` for more than 5,000 images (`common_sample` chooses some) and for features
    that are not numbers, `ValueError` for sets of different lengths.
    """
    say = progress or silent
    if not features:
        return []
    counts = {len(one) for one in features}
    if len(counts) > 1:
        raise ValueError(f"sets of {sorted(counts)} features are not of the same images")
    (count,) = counts
    if count > MOST_IMAGES:
        raise UserError(
            f"{count:,} images: aligned maps are drawn of at most {MOST_IMAGES:,}; take a sample"
        )
    if count == 0:
        return [np.zeros((0, 2), np.float32) for _ in features]
    unit = [_unit(one) for one in features]
    starts = procrustes_chain([pca_map(one_ND) for one_ND in unit])
    if count < FEWEST_IMAGES:
        say(1, 1, FEW)
        return starts
    return _laid_out(unit, starts, say)


def procrustes(moving_N2: np.ndarray, fixed_N2: np.ndarray) -> np.ndarray:
    """`moving_N2` shifted, turned, mirrored and scaled to lie nearest to `fixed_N2`: float32.

    Least squares; Gower and Dijksterhuis, "Procrustes problems" (2004), chapter 4: with centered
    matrices and M'F = U S V', the rotation is U V' and the scale trace(S) / |M|^2.
    """
    moving, fixed = moving_N2.astype(np.float64), fixed_N2.astype(np.float64)
    moving_mean, fixed_mean = moving.mean(axis=0), fixed.mean(axis=0)
    moving, fixed = moving - moving_mean, fixed - fixed_mean
    u, singular, vt = np.linalg.svd(moving.T @ fixed)
    norm = (moving**2).sum()
    scale = singular.sum() / norm if norm > 0 else 1.0
    return (scale * moving @ (u @ vt) + fixed_mean).astype(np.float32)


def procrustes_chain(maps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each map fitted onto the one before it, the first as it is; all of the first's size."""
    chained = [np.asarray(maps[0], np.float32)]
    for one_N2 in maps[1:]:
        chained.append(_of_size(procrustes(one_N2, chained[-1]), chained[0]))
    return chained


def shared_share(first_NK: np.ndarray, second_NK: np.ndarray) -> np.ndarray:
    """How alike each image's neighbors are by two graphs: Jaccard index, float32 [N], 0 to 1."""
    common_N = (first_NK[:, :, None] == second_NK[:, None, :]).sum(axis=(1, 2))
    either_N = first_NK.shape[1] + second_NK.shape[1] - common_N
    return (common_N / np.maximum(either_N, 1)).astype(np.float32)


def _laid_out(
    unit: Sequence[np.ndarray], starts: Sequence[np.ndarray], say: Progress
) -> list[np.ndarray]:
    """All layouts, an epoch of each at a time, pulled together after every epoch."""
    from dino_core.gallery.layout import EPOCHS_IF_FEW  # imports numba

    noise_N2 = START_NOISE * generator(0, "aligned start").standard_normal(starts[0].shape)
    scale = START_EXTENT / (np.abs(starts[0]).max() or 1.0)
    slices: list[_Slice] = []
    for done, (one_ND, start_N2) in enumerate(zip(unit, starts, strict=True)):
        say(done, len(unit), GRAPHS)
        slices.append(_Slice(one_ND, (scale * start_N2 + noise_N2).astype(np.float32)))
    pulls = _pulls([one.rows_NK for one in slices])
    with ThreadPoolExecutor(slices[0].threads) as pool:
        for epoch in range(EPOCHS_IF_FEW):
            rate = np.float32(1 - epoch / EPOCHS_IF_FEW)
            for one in slices:
                one.move(pool, epoch, rate)
            _pull_together([one.xy_N2 for one in slices], pulls, rate)
            say(epoch + 1, EPOCHS_IF_FEW, LAYING)
    return [one.xy_N2 for one in slices]


class _Slice:
    """One set of features and its map as it is laid out.

    All slices draw the same random images to be pushed from, so equal features go equal ways.
    """

    def __init__(self, features_ND: np.ndarray, start_N2: np.ndarray) -> None:
        from dino_core.gallery import layout

        settings = UmapSettings()
        self.rows_NK, scores_NK = neighbor_graph(features_ND, settings.n_neighbors - 1)
        graph = fuzzy_graph(self.rows_NK, (1 - scores_NK).clip(min=0))
        graph = layout._without_what_never_comes(graph, layout.EPOCHS_IF_FEW)
        period_E = (graph.data.max(initial=1.0) / graph.data).astype(np.float32)
        self.threads = layout._threads_that_pay(len(start_N2))
        self.parts = layout._parts(graph.indptr, self.threads)
        self.fixed = (
            graph.indptr.astype(np.int64),
            graph.indices.astype(np.int32),
            period_E,
            period_E.copy(),  # when each entry is due next
            *layout.force_tables(*layout.curve(settings.min_dist)),
            generator(0, "layout").integers(1, 2**32, len(start_N2), dtype=np.uint32),
        )
        self.compiled_move = layout.compiled_move()
        self.xy_N2, self.spare_N2 = start_N2, start_N2.copy()

    def move(self, pool: ThreadPoolExecutor, epoch: int, rate: np.float32) -> None:
        """One epoch of UMAP."""
        moving = (self.xy_N2, self.spare_N2, rate, np.float32(epoch))
        waits = [
            pool.submit(self.compiled_move, *part, *self.fixed, *moving) for part in self.parts
        ]
        for wait in waits:
            wait.result()
        self.xy_N2, self.spare_N2 = self.spare_N2, self.xy_N2


def _pulls(graphs: Sequence[np.ndarray]) -> list[tuple[int, int, np.ndarray]]:
    """Pairs of maps, and how strongly each image's two places attract, float32 [N, 1]."""
    found = []
    for first in range(len(graphs)):
        for second in range(first + 1, min(first + WINDOW + 1, len(graphs))):
            share_N = shared_share(graphs[first], graphs[second])
            strength = PULL * np.exp(first + 1 - second)
            found.append((first, second, (strength * share_N[:, None]).astype(np.float32)))
    return found


def _pull_together(
    maps: Sequence[np.ndarray], pulls: Sequence[tuple[int, int, np.ndarray]], rate: np.float32
) -> None:
    """Move an image's places in different maps towards each other, in place."""
    before = [one_N2.copy() for one_N2 in maps]
    for first, second, strength_N1 in pulls:
        step_N2 = rate * strength_N1 * (before[second] - before[first])
        maps[first][:] += step_N2
        maps[second][:] -= step_N2


def _unit(features_ND: np.ndarray) -> np.ndarray:
    """L2-normalized float32, a copy; rows of zeros stay."""
    unit_ND = np.array(features_ND, np.float32, order="C")
    if not np.isfinite(unit_ND).all():
        raise UserError("the features hold values that are not numbers; build them again")
    norm_N1 = np.linalg.norm(unit_ND, axis=1, keepdims=True)
    return unit_ND / np.where(norm_N1 > 0, norm_N1, 1)


def _of_size(xy_N2: np.ndarray, like_N2: np.ndarray) -> np.ndarray:
    """The map about its own center, scaled to the mean square radius of `like_N2`.

    Least squares shrinks what does not fit; a chain of many maps would shrink to a point.
    """
    center_2 = xy_N2.mean(axis=0)
    own, wanted = (np.sqrt(one.var(axis=0).sum()) for one in (xy_N2, like_N2))
    scale = wanted / own if own > 0 else 1.0
    return ((xy_N2 - center_2) * scale + center_2).astype(np.float32)
