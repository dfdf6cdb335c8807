"""The attention lens: where the CLS token of a ViT looks in one image, per layer and head.

    attention = look(model, image)              # the whole image, at its own aspect ratio
    attention = look(model, image, query=(3, 7))  # where the patch in row 3, column 7 looks
    attention.maps                              # float32 [L, heads, h, w]
    attention.head_mean()                       # [h, w], last layer
    mass_mask(attention.maps[-1], keep=0.6)     # bool [heads, h, w]

An image is resized to the nearest multiples of the patch size, nothing is cropped. `plan` says
beforehand what a size costs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dino_core.errors import UserError
from dino_core.models.attention import CLS, attention_modules, token_rows
from dino_core.models.preprocess import by_band

if TYPE_CHECKING:
    from dino_core.models import Model

DEFAULT_PATCHES = 28  # on the short side: ViT-S/8 at 224 px; below about 20 shapes turn to blocks
DEFAULT_TOKENS = 4_096  # a size nobody asked for stays below this: seconds on a laptop
MAX_TOKENS = 16_384  # above this one image takes minutes on a CPU


@dataclass(frozen=True)
class Plan:
    """What `look` would feed: the size in pixels, the patch grid, and what it costs."""

    height: int
    width: int
    grid: tuple[int, int]
    memory: int  # bytes, an estimate of the activations' peak

    @property
    def tokens(self) -> int:
        """Number of patches."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Attention:
    """Attention of CLS, or of one patch, in one image.

    `maps` float32 [L, heads, h, w]: the softmax over all tokens, patches only; a map's sum is the
    share of attention that patches get, the rest goes to CLS and registers.
    """

    maps: np.ndarray
    image_size: tuple[int, int]  # (height, width) in pixels as fed to the model
    source_size: tuple[int, int]  # (height, width) of the image that was given
    patch_size: int
    model: str  # spec
    model_hash: str
    query: tuple[int, int] | None = None  # (row, column) of the patch that looks; None: CLS

    @property
    def layers(self) -> int:
        return self.maps.shape[0]

    @property
    def heads(self) -> int:
        return self.maps.shape[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per (column, row): (h, w)."""
        return self.maps.shape[2], self.maps.shape[3]

    def head_mean(self, layer: int = -1) -> np.ndarray:
        """Mean over the heads of a layer, float32 [h, w]."""
        return self.maps[layer].mean(axis=0)

    def mass_mask(self, keep: float = 0.6) -> np.ndarray:
        """The fewest patches that hold `keep` of each head's mass: bool [L, heads, h, w]."""
        return mass_mask(self.maps, keep)

    def select(self, layers: Sequence[int]) -> "Attention":
        """The same look with these layers only."""
        return replace(self, maps=self.maps[list(layers)])

    def entropy(self) -> np.ndarray:
        """How spread each head is, float64 [L, heads] in 0..1: 0 one patch, 1 all patches alike."""
        mass = self.maps.reshape(self.layers, self.heads, -1).astype(np.float64)
        share = mass / np.maximum(mass.sum(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
        logs = np.log(share, out=np.zeros_like(share), where=share > 0)
        return -(share * logs).sum(axis=-1) / max(np.log(share.shape[-1]), 1e-12)


def look(
    model: "Model",
    image: np.ndarray,
    *,
    size: int | None = None,
    query: tuple[int, int] | None = None,
) -> Attention:
    """Run `model` once on `image` and keep every head's map of where CLS, or one patch, looks.

    `image`: uint8 [H, W, C]; `size`: short side in pixels (None: `plan`'s default); `query`: (row,
    column) of a patch on the grid that `plan` tells, from (0, 0) at the top left. Raises
    `UserError` if that makes more than 16,384 patches, `query` is outside of the grid, or the
    model has no such attention.
    """
    fed = plan(model, image.shape[0], image.shape[1], size=size)
    token = query_token(model, fed, query)
    pixels = model.normalize(resized(image, fed.height, fed.width))
    rows = token_rows(model.backbone, pixels[None].to(model.device), token)
    maps = rows[:, 0, :, model.backbone.num_prefix_tokens :].unflatten(-1, fed.grid)
    return Attention(
        maps=maps.cpu().numpy().astype(np.float32, copy=False),
        image_size=(fed.height, fed.width),
        source_size=(image.shape[0], image.shape[1]),
        patch_size=model.backbone.patch_size,
        model=model.spec,
        model_hash=model.hash,
        query=query,
    )


def query_token(model: "Model", fed: Plan, query: tuple[int, int] | None) -> int:
    """The index among all tokens of the patch at `query` (row, column), or of CLS for None.

    Raises `UserError` when the grid of `fed` has no such patch.
    """
    if query is None:
        return CLS
    (row, column), (rows, columns) = query, fed.grid
    if not (0 <= row < rows and 0 <= column < columns):
        raise UserError(
            f"row {row}, column {column}: no such patch, the image makes {rows} x {columns}; "
            f"use a row from 0 to {rows - 1} and a column from 0 to {columns - 1}"
        )
    return model.backbone.num_prefix_tokens + row * columns + column


def plan(model: "Model", height: int, width: int, *, size: int | None = None) -> Plan:
    """The size at which `look` feeds an image of `height` x `width` pixels.

    The short side is `size` pixels, rounded like the long side to the nearest multiple of the patch
    size. Default: 28 patches, or the model's own training size where that is larger; long images
    get less, so that the grid stays below 4,096 patches. Raises `UserError` above 16,384, and for
    a network without class token or attention.
    """
    attention_modules(model.backbone.vit)  # a network without attention is told so first
    patch = model.backbone.patch_size
    wanted = size if size is not None else max(DEFAULT_PATCHES * patch, model.info.image_size)
    if wanted < patch:
        raise UserError(f"size {wanted}: smaller than one patch of {patch} px; use {patch} or more")
    grid = _grid(height, width, wanted, patch)
    if size is None:
        while grid[0] * grid[1] > DEFAULT_TOKENS and wanted > patch:
            wanted -= patch
            grid = _grid(height, width, wanted, patch)
    fed = Plan(grid[0] * patch, grid[1] * patch, grid, _memory(model, grid[0] * grid[1]))
    if fed.tokens > MAX_TOKENS:
        fitting = int(wanted * (MAX_TOKENS / fed.tokens) ** 0.5) // patch * patch
        raise UserError(
            f"{fed.width} x {fed.height} px makes {fed.tokens:,} patches of {patch} px (about "
            f"{fed.memory / 2**30:.1f} GB of memory, the limit is {MAX_TOKENS:,} patches); "
            f"use size {max(fitting, patch)} or smaller"
        )
    return fed


def largest_size(model: "Model", height: int, width: int, size: int) -> int:
    """The largest short side in pixels, up to `size`, that `plan` takes of such an image."""
    patch = model.backbone.patch_size
    while size > patch and math.prod(_grid(height, width, size, patch)) > MAX_TOKENS:
        size -= 1
    return size


def mass_mask(attention: np.ndarray, keep: float = 0.6) -> np.ndarray:
    """The fewest patches that together hold `keep` (0..1) of each map's mass.

    `attention`: non-negative float [..., h, w]; returns bool of the same shape. As published: sort
    ascending, normalize, keep where the running sum exceeds 1 - keep. A map without mass keeps
    nothing.
    """
    flat = attention.reshape(*attention.shape[:-2], -1).astype(np.float64)
    order, running = _running_mass(flat)
    kept = np.zeros(flat.shape, dtype=bool)
    np.put_along_axis(kept, order, running > 1 - keep, axis=-1)
    return kept.reshape(attention.shape)


def kept_counts(attention: np.ndarray, keeps: np.ndarray) -> np.ndarray:
    """How many patches `mass_mask` keeps, int64 [..., len(keeps)], for each of `keeps`."""
    flat = attention.reshape(*attention.shape[:-2], -1).astype(np.float64)
    _, running = _running_mass(flat)
    return (running[..., None, :] > 1 - keeps[:, None]).sum(axis=-1)


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """`image` uint8 [H, W, C] resized with bicubic filtering, as published evaluation does."""
    if image.shape[:2] == (height, width):
        return image

    def bicubic(band: Image.Image) -> np.ndarray:
        return np.asarray(band.resize((width, height), Image.Resampling.BICUBIC))

    return by_band(bicubic, image)


def _running_mass(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending order and running share of the mass, both [..., N]; the last share is exactly 1."""
    order = np.argsort(flat, axis=-1, kind="stable")
    total = flat.sum(axis=-1, keepdims=True)
    running = np.cumsum(np.take_along_axis(flat, order, axis=-1), axis=-1)
    running /= np.where(total > 0, total, 1)
    np.minimum(running, 1, out=running)
    running[..., -1:] = total > 0  # rounding must not decide whether keep = 0 keeps the peak
    return order, running


def _grid(height: int, width: int, short: int, patch: int) -> tuple[int, int]:
    """Patches (h, w) when the short side of `height` x `width` becomes `short` pixels."""
    scale = short / min(height, width)
    rows, columns = (round(side * scale / patch) for side in (height, width))
    # No side longer than a whole default look: beyond 4,096 : 1 the shape gives way.
    return min(max(1, rows), DEFAULT_TOKENS), min(max(1, columns), DEFAULT_TOKENS)


def _memory(model: "Model", tokens: int) -> int:
    """Bytes of activations at the widest point of a block (the MLP), plus all rows kept.

    Counted in fp32: residual, norm, MLP hidden (4 D) before and after its activation, and output;
    all that is alive at once is about 12 D a token.
    """
    backbone = model.backbone
    return 4 * tokens * (12 * backbone.embed_dim + 2 * backbone.depth * backbone.num_heads)
