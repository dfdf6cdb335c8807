"""The object of one image without labels: TokenCut, a normalized cut of the graph of its patches.

    cut = object_mask(tokens)           # of `read_tokens`, or of `padded_keys` as published
    cut.foreground                      # bool [h, w], the whole side of the cut
    cut.component                       # bool [h, w], its part around the strongest patch
    cut.box, cut.box_pixels             # (left, top, right, bottom) of that part
    cut.enlarged(cut.foreground, H, W)  # where it lies on the image, drawn at H x W pixels

After Wang et al., "Self-Supervised Transformers for Unsupervised Object Discovery using Normalized
Cut" (arXiv:2202.11539, section 3), on top of Shi and Malik's normalized cut (2000). Patches are
nodes, and two are joined where their keys are alike. The second smallest solution y of
(D - E) y = lambda D y cuts the graph in two at its mean. The object is the side that holds the
patch of largest |y|: objects are smaller than what is around them, and more of one kind.

Legend: N patches of the grid h x w, D width of the keys.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from scipy import linalg, ndimage
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from dino_core.errors import UserError
from dino_core.lenses.tokens import Tokens
from dino_core.models.attention import last_keys, unshared

if TYPE_CHECKING:
    from dino_core.models import Model

TAU = 0.2  # the paper's: a cosine from here on joins two patches
EPSILON = 1e-5  # the paper's weight of all other edges, which keeps the graph in one piece
ALL_JOINED = 0.99  # from this share of joined pairs on the keys tell too few patches apart
MAX_TOKENS = 4_096  # the matrix of all pairs takes 8 N^2 bytes: 134 MB here
DENSE = 128  # up to so many patches LAPACK is as fast, and needs no start vector
TIE = 1e-6  # patches whose |y| differ by less than this share are alike but for rounding


@dataclass(frozen=True)
class Keys:
    """What a cut needs of `Tokens`, of an image that was padded to whole patches."""

    keys: np.ndarray  # float32 [h, w, D]
    source_size: tuple[int, int]  # (height, width) of the image that was given
    padded: tuple[int, int]  # rows and columns of pixels added at the bottom and right
    model: str  # spec
    model_hash: str

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per (column, row): (h, w)."""
        return self.keys.shape[0], self.keys.shape[1]


@dataclass(frozen=True)
class ObjectMask:
    """What one cut found. Where there was nothing to cut (all patches alike, or none like another)
    the masks are empty, `y` is zero, and `seed` and boxes are None."""

    foreground: np.ndarray  # bool [h, w], the side of the cut that holds `seed`
    component: np.ndarray  # bool [h, w], what of it hangs together with `seed` (4 neighbors)
    y: np.ndarray  # float64 [h, w], the eigenvector; length 1 under D, positive at `seed`
    cost: float  # its eigenvalue, 0..1: no cut of the graph costs less; near 0 a clean cut
    seed: tuple[int, int] | None  # (row, column) of the largest |y|
    joined: float  # share of the pairs of different patches that are joined, 0..1
    centered: bool  # whether the keys' mean was taken off
    source_size: tuple[int, int]  # (height, width) of the image that was given
    model: str  # spec
    model_hash: str
    padded: tuple[int, int] = (0, 0)  # pixels that the grid reaches below and right of the image

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """(left, top, right, bottom) of `component` in patches, right and bottom exclusive."""
        rows, columns = (np.flatnonzero(self.component.any(axis=axis)) for axis in (1, 0))
        if not rows.size:
            return None
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    @property
    def box_pixels(self) -> tuple[int, int, int, int] | None:
        """`box` in pixels of the source: the bounds of `component` enlarged to nearest neighbors.

        At least one pixel wide and high, also where patches are finer than the source's pixels;
        what lies in the padding is cut off.
        """
        if (box := self.box) is None:
            return None
        (h, w), (height, width) = self.component.shape, self.source_size
        left, right = _pixels(box[0], box[2], w, width + self.padded[1])
        top, bottom = _pixels(box[1], box[3], h, height + self.padded[0])
        return left, top, min(right, width), min(bottom, height)

    def enlarged(self, patches: np.ndarray, height: int, width: int) -> np.ndarray:
        """`patches` [h, w] where they lie on the image, drawn at [height, width]; nearest."""
        sides = zip(patches.shape, self.source_size, self.padded, (height, width), strict=True)
        rows, columns = (
            (np.arange(drawn) * 2 + 1) * (n * source) // (2 * drawn * (source + more))
            for n, source, more, drawn in sides
        )
        return patches[rows[:, None], columns]


def padded_keys(model: "Model", image: np.ndarray) -> Keys:
    """The keys of an image at its own size, zeros at the right and bottom to whole patches.

    So the published object discovery feeds images (TokenCut, as LOST before it): nothing is
    resized, and the zeros follow normalization, so they are of the mean color. `image`: uint8 [H,
    W, C]. Raises `UserError` for a network without attention.
    """
    height, width = image.shape[:2]
    backbone = unshared(model.backbone)
    more = (-height % backbone.patch_size, -width % backbone.patch_size)
    pixels = F.pad(model.normalize(image), (0, more[1], 0, more[0]))
    with torch.no_grad(), last_keys(backbone.vit) as keys:
        backbone.tokens(pixels[None].to(model.device))
    h, w = backbone.grid(*pixels.shape[1:])
    keys_ND = keys[0][0].transpose(0, 1).flatten(1).cpu().numpy()[backbone.num_prefix_tokens :]
    return Keys(keys_ND.reshape(h, w, -1), (height, width), more, model.spec, model.hash)


def object_mask(
    tokens: Tokens | Keys, *, tau: float = TAU, center: bool | None = None
) -> ObjectMask:
    """Cut the patches of one image in two by their keys, and say which side is the object.

    `center` takes the mean over the patches off all keys first. Between patches attention is blind
    to that mean (a query's logits all change alike), yet in small or briefly trained models it is
    nearly all of a key: every cosine is near 1, and the paper's graph has no cut. None: as
    published, but centered where at least 99 % of the pairs would be joined.

    Where several cuts cost the same (twin objects, many patches like no other) one of them is
    taken, the same at every call. Raises `UserError` above 4,096 patches.
    """
    h, w = tokens.grid
    if h * w > MAX_TOKENS:
        raise UserError(
            f"{w} x {h} patches are too many for an object mask, which compares all pairs of at "
            f"most {MAX_TOKENS:,}; read the tokens at a smaller size (without one it fits)"
        )
    keys_ND = tokens.keys.reshape(h * w, -1).astype(np.float64)
    joined, centered = 1.0, bool(center)
    if not centered:
        edges_NN, joined = _graph(keys_ND, tau)
    if centered or (center is None and joined >= ALL_JOINED and h * w > 1):
        edges_NN, joined = _graph(_centered(keys_ND), tau)
        centered = True
    solved = second_smallest(edges_NN) if 0 < joined < 1 else (np.zeros(h * w), 0.0)
    y, cost = solved[0].reshape(h, w), solved[1]
    foreground, component, seed = bipartition(y)
    return ObjectMask(
        foreground=foreground,
        component=component,
        y=-y if seed and y[seed] < 0 else y,
        cost=cost,
        seed=seed,
        joined=joined,
        centered=centered,
        source_size=tokens.source_size,
        model=tokens.model,
        model_hash=tokens.model_hash,
        padded=tokens.padded if isinstance(tokens, Keys) else (0, 0),
    )


def second_smallest(edges_NN: np.ndarray) -> tuple[np.ndarray, float]:
    """The second smallest solution of (D - E) y = lambda D y: float64 [N] and lambda.

    `edges_NN`: symmetric float64, positive; D holds its row sums. y has length 1 under D, its sign
    is open. With z = D^1/2 y that is the second LARGEST of S = D^-1/2 E D^-1/2, whose largest, 1,
    has the known z = D^1/2 1: moved to -1, it leaves the one wanted on top, which Lanczos finds in
    some twenty products. (LAPACK would take half a minute for 4,096 patches.)
    """
    degree_N = edges_NN.sum(axis=1)
    scale_N = 1 / np.sqrt(degree_N)
    trivial_N = np.sqrt(degree_N / degree_N.sum())

    def product(z: np.ndarray) -> np.ndarray:
        z = z.ravel()
        return scale_N * (edges_NN @ (scale_N * z)) - 2 * trivial_N * (trivial_N @ z)

    n = len(degree_N)
    if n > DENSE:
        start_N = np.random.default_rng(0).standard_normal(n)
        matrix = LinearOperator((n, n), matvec=product, dtype=np.float64)
        try:
            top, vectors = eigsh(matrix, k=1, which="LA", v0=start_N, tol=1e-10)
            return scale_N * vectors[:, 0], float(1 - top[0])
        except ArpackNoConvergence:
            pass  # eigenvalues in a crowd: slow, but LAPACK tells them apart
    matrix_NN = scale_N[:, None] * edges_NN * scale_N - 2 * np.outer(trivial_N, trivial_N)
    top, vectors = linalg.eigh(matrix_NN, subset_by_index=[n - 1, n - 1])
    return scale_N * vectors[:, 0], float(1 - top[0])


def bipartition(y: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, int] | None]:
    """Foreground and component, bool [h, w], and the seed of an eigenvector `y` [h, w].

    The foreground is the side of y's mean where |y| is largest; of patches alike in that the first
    in reading order is the seed. The sign of `y` does not matter; all zero has no foreground.
    """
    strength = np.abs(y)
    if not strength.max() > 0:
        nothing = np.zeros(y.shape, dtype=bool)
        return nothing, nothing.copy(), None
    first = int((strength >= (1 - TIE) * strength.max()).argmax())
    seed = (first // y.shape[1], first % y.shape[1])
    foreground = y > y.mean() if y[seed] > y.mean() else y < y.mean()
    parts, _ = ndimage.label(foreground)
    return foreground, parts == parts[seed], seed


def _centered(keys_ND: np.ndarray) -> np.ndarray:
    """Keys less their mean; what equal keys leave is rounding, no direction: made zero."""
    rest_ND = keys_ND - keys_ND.mean(axis=0)
    rounding = 1e-9 * np.linalg.norm(keys_ND, axis=1).max()
    return np.where(np.linalg.norm(rest_ND, axis=1)[:, None] > rounding, rest_ND, 0)


def _graph(keys_ND: np.ndarray, tau: float) -> tuple[np.ndarray, float]:
    """Weights of all edges, float64 [N, N], and the share of pairs that are joined.

    A patch is joined to itself, also one whose key is zero: that one is like no other.
    """
    lengths_N = np.linalg.norm(keys_ND, axis=1)
    unit_ND = keys_ND / np.where(lengths_N > 0, lengths_N, 1)[:, None]
    edges_NN = unit_ND @ unit_ND.T
    near_NN = edges_NN >= tau
    np.fill_diagonal(near_NN, True)
    n = len(near_NN)
    edges_NN[...] = EPSILON  # in place: at 4,096 patches one more matrix is 134 MB
    edges_NN[near_NN] = 1
    return edges_NN, (int(near_NN.sum()) - n) / max(n * (n - 1), 1)


def _pixels(first: int, end: int, patches: int, pixels: int) -> tuple[int, int]:
    """The pixels, end exclusive, whose nearest patches are `first` to `end` along one side."""
    patch_of = (np.arange(pixels) * 2 + 1) * patches // (2 * pixels)
    start, stop = (int(np.searchsorted(patch_of, patch)) for patch in (first, end))
    start = min(start, pixels - 1)
    return start, max(stop, start + 1)
