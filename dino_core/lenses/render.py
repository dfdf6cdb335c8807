"""Maps and masks as pictures: heat maps, overlays, outlines, cutouts.

Everything is enlarged to nearest neighbors, so that a patch stays the square it is: what a model
did not resolve is not smoothed into looking resolved.

Legend: images uint8 [H, W, 3], maps float [h, w], masks bool [h, w] on the patch grid.
"""

import numpy as np
from PIL import Image

from dino_core.lenses import colormap as colors
from dino_core.lenses.attention import resized

LONG_SIDE = (512, 1024)  # pictures are made at the source's size, within these bounds
OUTSIDE = 0.22  # how much of the light remains outside a cutout's mask


def nearest(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """`grid` [..., h, w] enlarged (or reduced) to [..., height, width], nearest neighbors."""
    rows = (np.arange(height) * 2 + 1) * grid.shape[-2] // (2 * height)
    columns = (np.arange(width) * 2 + 1) * grid.shape[-1] // (2 * width)
    return grid[..., rows[:, None], columns]


def relative(attention: np.ndarray) -> np.ndarray:
    """A map [h, w] stretched to 0..1 between its least and largest value, as published pictures."""
    low, high = float(attention.min()), float(attention.max())
    return (attention - low) / (high - low) if high > low else np.zeros_like(attention)


def display_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) in pixels at which pictures of an image of this size are made."""
    long = max(height, width)
    scale = min(max(long, LONG_SIDE[0]), LONG_SIDE[1]) / long
    return max(1, round(height * scale)), max(1, round(width * scale))


def displayed(image: np.ndarray) -> np.ndarray:
    """`image` at its `display_size`."""
    return resized(image, *display_size(image.shape[0], image.shape[1]))


def heat(attention: np.ndarray, height: int, width: int, colormap: str = "inferno") -> Image.Image:
    """A map as a palette picture of `height` x `width` pixels."""
    picture = Image.fromarray(nearest(colors.codes(relative(attention)), height, width))
    picture.putpalette(colors.table(colormap).tobytes())
    return picture


def overlay(
    image: np.ndarray, attention: np.ndarray, opacity: float = 0.6, colormap: str = "inferno"
) -> np.ndarray:
    """`image` under the colors of a map, `opacity` 0..1: uint8 [H, W, 3]."""
    height, width = image.shape[:2]
    tint = nearest(colors.codes(relative(attention)), height, width)
    mixed = (1 - opacity) * image + opacity * colors.table(colormap)[tint]
    return np.rint(mixed).astype(np.uint8)


def mask_picture(mask: np.ndarray, height: int, width: int) -> Image.Image:
    """A mask as a grayscale picture, 255 inside."""
    return Image.fromarray(nearest(mask, height, width).astype(np.uint8) * 255)


def cutout(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`image` with everything outside the mask dimmed and gray: uint8 [H, W, 3]."""
    inside = nearest(mask, image.shape[0], image.shape[1])[..., None]
    gray = image.mean(axis=-1, keepdims=True) * OUTSIDE
    return np.where(inside, image, np.rint(gray)).astype(np.uint8)


def outline(
    image: np.ndarray, mask: np.ndarray, color: tuple[int, int, int] = (255, 255, 255)
) -> np.ndarray:
    """`image` with the mask's border drawn in `color` on a dark edge that shows on any ground."""
    height, width = image.shape[:2]
    stroke = max(1, round(max(height, width) / 400))
    inside = nearest(mask, height, width)
    inner = inside & ~_eroded(inside, stroke)
    outer = inside & ~_eroded(inside, 2 * stroke) & ~inner
    drawn = image.copy()
    drawn[outer] = drawn[outer] // 3
    drawn[inner] = color
    return drawn


def _eroded(mask: np.ndarray, reach: int) -> np.ndarray:
    """Pixels of `mask` whose square neighborhood of `reach` lies inside; the frame counts as in."""
    for axis in (0, 1):
        padded = np.pad(
            mask, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], mode="edge"
        )
        length = mask.shape[axis]
        shifted = [padded.take(range(s, s + length), axis=axis) for s in range(2 * reach + 1)]
        mask = np.logical_and.reduce(shifted)
    return mask
