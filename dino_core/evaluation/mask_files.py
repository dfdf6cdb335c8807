"""Mask files of all kinds: their values, and whether these are indices of a palette.

    values, indexed = mask_values(path.read_bytes())

What the values mean is said by who reads them: `masks.read_mask` and `davis.read_labels` agree on
palettes (each index an object, 255 void) and differ on gray masks, each as its data sets need it.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from dino_core.data import BadImage
from dino_core.data.decode import as_bad_image, open_checked

VOID = 255
MAX_ASPECT_ERROR = 0.05  # a mask that differs more in shape belongs to another image
MASK_SUFFIXES = {".png", ".bmp", ".gif", ".tif", ".tiff"}


class Values(NamedTuple):
    """What a mask file holds."""

    values: np.ndarray  # [H, W]; uint8 indices, or gray of the type it was stored as
    indexed: bool  # whether they are indices of a palette of colors


def mask_values(data: bytes) -> Values:
    """The values of a mask file's bytes.

    A palette of grays, and color whose channels are all the same, are gray; opacity is ignored.
    Raises `BadImage` for what is no image or cut off, and for colors without a palette: which of
    them are one object only their maker knows.
    """
    if not data:
        raise BadImage("empty file")
    with as_bad_image(), open_checked(data) as image:
        image.load()
        if image.mode == "P" and not _is_gray(np.array(image.getpalette() or [], np.uint8)):
            return Values(np.array(image, np.uint8), indexed=True)
        return Values(_gray(image), indexed=False)


def _gray(image: Image.Image) -> np.ndarray:
    if image.mode in ("1", "L", "F") or image.mode.startswith("I"):
        return np.array(image)
    rgb = np.asarray(image.convert("RGB"))
    if not _is_gray(rgb):
        raise BadImage("a mask in color without a palette; save each object as an index")
    return rgb[..., 0].copy()


def _is_gray(colors: np.ndarray) -> bool:
    """Whether red, green and blue are the same everywhere; `colors` [..., 3] or flat."""
    colors = colors.reshape(-1, 3)
    return bool((colors == colors[:, :1]).all())
