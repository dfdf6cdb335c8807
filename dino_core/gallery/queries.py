"""Questions to any gallery: a drawn region as a query, the values of a column as a filter.

hits = gallery.search(region_features(model, image, (40, 10, 120, 90)))
hits = gallery.search(id, where=filtered(gallery.images, "label", ["dog", "cat"]))
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dino_core.errors import UserError

if TYPE_CHECKING:
    from dino_core.gallery.features import Features
    from dino_core.models import Model

SMALLEST = 8  # pixels a side of a region: below, a model sees what the resize made up


def region_features(
    model: "Model",
    image: np.ndarray,
    box: Sequence[float],
    kind: str = "cls",
) -> "Features":
    """Features of a part of an image, cut out and seen as an image of its own.

    `image`: uint8 [H, W, C]; `box`: (left, top, right, bottom) in pixels, the last two outside;
    parts of pixels count whole; `kind` as of the gallery that is searched. Raises `UserError` for a
    box that is empty, reaches out of the image, or is smaller than 8 pixels.
    """
    from dino_core.gallery.features import embed

    left, top, right, bottom = _whole(box, image.shape[0], image.shape[1])
    return embed(model, [np.ascontiguousarray(image[top:bottom, left:right])], kind)


def filtered(images: pd.DataFrame, column: str, values: Any) -> np.ndarray:
    """Which images have one of the values in a column, bool [n], for `where`.

    `values`: one value or several, compared exactly, text as text and numbers as numbers; None is
    what is missing. Raises `UserError` for a column that is not there.
    """
    if column not in images.columns:
        there = ", ".join(map(str, images.columns))
        raise UserError(f"the images have no column {column!r}; there are {there}")
    several = isinstance(values, list | tuple | set | frozenset | np.ndarray | pd.Series)
    wanted = list(values) if several else [values]
    missing = images[column].isna().to_numpy(bool)
    known = [value for value in wanted if not _is_missing(value)]
    keys = {_key(value) for value in known}
    pairs = zip(images[column], missing, strict=True)
    try:
        found = np.array([not gone and _key(value) in keys for value, gone in pairs], bool)
    except TypeError:
        raise UserError(
            f"column {column!r} holds lists or the like, which cannot be filtered by; "
            "choose one of text or numbers"
        ) from None
    return found | missing if len(known) < len(wanted) else found


def _key(value: Any) -> tuple[bool, Any]:
    """Equal where Python says so, but that True is not 1."""
    return isinstance(value, bool | np.bool_), value


def _is_missing(value: Any) -> bool:
    return bool(np.ndim(value) == 0 and pd.isna(value))


def _whole(box: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """The box in whole pixels, refused where it cannot be cut out."""
    if len(box) != 4 or not all(math.isfinite(side) for side in box):
        raise UserError(f"region {tuple(box)}: is to be left, top, right and bottom in pixels")
    left, top = (math.floor(side) for side in box[:2])
    right, bottom = (math.ceil(side) for side in box[2:])
    drawn = f"region {left}, {top} to {right}, {bottom}"
    if right <= left or bottom <= top:
        raise UserError(f"{drawn}: is empty; draw it from its upper left to its lower right")
    if left < 0 or top < 0 or right > width or bottom > height:
        raise UserError(f"{drawn}: reaches out of the image of {width} x {height} pixels")
    if min(right - left, bottom - top) < SMALLEST:
        raise UserError(
            f"{drawn}: is {right - left} x {bottom - top} pixels, too small to be seen; "
            f"draw at least {SMALLEST} x {SMALLEST}"
        )
    return left, top, right, bottom
