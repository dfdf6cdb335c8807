"""What the images of a group have in common, as the model looks at them: mean attention, PCA.

    seen = mean_attention(model, gallery, rows)     # where the model looks, on average
    seen.picture()                                  # uint8 [196, 196, 3], last layer, all heads
    seen.picture(head=2)
    for one in shared_colors(model, gallery, rows): # one part, one color in all images
        one.photo, one.colors                       # uint8 [H, W, 3], uint8 [h, w, 3]

Both need the images and a model. Of a large group a fixed sample is looked at; images that cannot
be read are left out, and a group of which none can is a `UserError`.

The lenses are imported when first used: they load torch, which takes seconds.

Shapes: L layers, h x w patches, G x G the common grid.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dino_core.errors import UserError
from dino_core.gallery.opened import Gallery
from dino_core.gallery.progress import Progress, silent
from dino_core.rng import permutation

if TYPE_CHECKING:
    from dino_core.lenses.tokens import Tokens
    from dino_core.models import Model

ATTENTION_IMAGES = 64
COLOR_IMAGES = 12
GRID = 14
SIDE = 196  # pixels of a picture
PHOTO_SIDE = 160  # pixels, as thumbnails have
FEWEST_PATCHES, MOST_PATCHES = 14, 28  # on the short side
TRIES = 4  # images that may be unreadable, for each that is wanted


@dataclass(frozen=True)
class MeanAttention:
    """The mean of the CLS token's maps over some images, on one square grid."""

    maps: np.ndarray  # float64 [L, heads, G, G], each sums to 1
    rows: tuple[int, ...]  # the images that were looked at

    def picture(self, head: int | None = None, layer: int = -1) -> np.ndarray:
        """A head's map, or the mean of a layer's, as colors: uint8 [S, S, 3]."""
        return picture(self.map(head, layer))

    def map(self, head: int | None = None, layer: int = -1) -> np.ndarray:
        """A head's map, or the mean of a layer's: float64 [G, G], sums to 1."""
        return self.maps[layer].mean(axis=0) if head is None else self.maps[layer, head]

    def extent(self, head: int | None = None, layer: int = -1) -> tuple[float, float]:
        """The least and the most of a map, times what each cell had if all had the same."""
        one = self.map(head, layer)
        return float(one.min() * one.size), float(one.max() * one.size)


@dataclass(frozen=True)
class Colored:
    """One image in the colors that it shares with others."""

    row: int
    photo: np.ndarray  # uint8 [H, W, 3], at most 160 pixels long
    colors: np.ndarray  # uint8 [h, w, 3]


def mean_attention(
    model: "Model",
    gallery: Gallery,
    rows: np.ndarray,
    *,
    most: int = ATTENTION_IMAGES,
    progress: Progress = silent,
) -> MeanAttention:
    """Where the model looks in these images, on average; each image counts the same.

    Every map is scaled to sum 1 and spread over the common grid by the areas that cells share, so
    that no attention is lost, whatever an image's shape. Raises `UserError` when no image can be
    read and for a model without attention.
    """
    from dino_core.lenses.attention import look

    total, used = None, []
    for row, image in readable(gallery, rows, most, progress, "Averaging attention"):
        maps = look(model, image, size=look_size(model)).maps.astype(np.float64)
        maps /= np.maximum(maps.sum(axis=(-2, -1), keepdims=True), np.finfo(np.float64).tiny)
        on_grid = on_square(maps, GRID)
        total = on_grid if total is None else total + on_grid
        used.append(row)
    assert total is not None, "`readable` gives an image or raises"
    return MeanAttention(total / len(used), tuple(used))


def shared_colors(
    model: "Model", gallery: Gallery, rows: np.ndarray, *, progress: Progress = silent
) -> list[Colored]:
    """The first 12 of the rows that can be read, in PCA colors fitted on all of them together.

    Raises `UserError` as `mean_attention` does.
    """
    from dino_core.lenses import pca
    from dino_core.lenses.tokens import read_tokens

    read: list[tuple[int, np.ndarray, Tokens]] = []
    for row, image in readable(
        gallery, rows, COLOR_IMAGES, progress, "Fitting colors", in_order=True
    ):
        read.append((row, small(image), read_tokens(model, image, size=look_size(model))))
    basis = pca.fit([tokens for _, _, tokens in read])
    return [Colored(row, photo, pca.colors(basis, tokens)) for row, photo, tokens in read]


def readable(
    gallery: Gallery,
    rows: np.ndarray,
    most: int,
    progress: Progress = silent,
    message: str = "Reading images",
    *,
    in_order: bool = False,
) -> Iterator[tuple[int, np.ndarray]]:
    """Up to `most` of the rows with their images, uint8 [H, W, 3]: a fixed sample, or the first.

    Images that cannot be read are passed over. Raises `UserError` when none can.
    """
    if len(rows) == 0:
        raise UserError(f"{gallery.name}: this group has no images")
    order = np.arange(len(rows)) if in_order else permutation(len(rows), "readable")
    found, wanted = 0, min(most, len(rows))
    for row in rows[order[: TRIES * most]].tolist():
        progress(found, wanted, message)
        try:
            image = gallery.image(row)
        except UserError:
            continue
        yield row, image
        found += 1
        if found == wanted:
            break
    if found == 0:
        raise UserError(
            gallery.images_missing()
            or f"{gallery.name}: none of the images could be read in "
            f"{gallery.info.root or gallery.info.data}; put them back there to look at them"
        )
    progress(wanted, wanted, message)


def look_size(model: "Model") -> int:
    """The short side in pixels at which groups are looked at: the model's own, 14 to 28 patches.

    Many images have to be looked at, and one forward of 28 x 28 patches takes six times one of 14.
    """
    patch = model.backbone.patch_size
    return min(max(model.info.image_size, FEWEST_PATCHES * patch), MOST_PATCHES * patch)


def on_square(maps: np.ndarray, side: int) -> np.ndarray:
    """Maps [..., h, w] stretched over a square grid, [..., side, side]; sums stay what they are."""
    down, along = (_shared(side, length) for length in maps.shape[-2:])
    return down @ maps @ along.T


def _shared(target: int, source: int) -> np.ndarray:
    """Which share of each of `source` equal cells lies in each of `target`: [target, source]."""
    edges_T, edges_S = np.linspace(0, 1, target + 1), np.linspace(0, 1, source + 1)
    low = np.maximum(edges_T[:-1, None], edges_S[:-1])
    high = np.minimum(edges_T[1:, None], edges_S[1:])
    shared_TS = np.maximum(high - low, 0)
    return shared_TS / shared_TS.sum(axis=0)


def picture(values: np.ndarray, side: int = SIDE) -> np.ndarray:
    """A map [h, w] as colors, from its least (darkest) to its most: uint8 [side, side, 3].

    Means of many maps are faint, so how faint has to be said beside it (`MeanAttention.extent`).
    """
    from dino_core.lenses import colormap
    from dino_core.lenses.paint import bilinear

    low, high = float(values.min()), float(values.max())
    span = high - low if high - low > 1e-6 * high else np.inf
    return colormap.colored(bilinear((values - low) / span, side, side), "inferno")


def small(image: np.ndarray, side: int = PHOTO_SIDE) -> np.ndarray:
    """The image, at most `side` pixels long: uint8 [H, W, 3]."""
    photo = Image.fromarray(image)
    photo.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(photo)
