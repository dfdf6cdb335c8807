"""What the browser draws of a map, drawn in Python: the twin of `paintStage` in overlay.js.

    photo = staged(image)                       # uint8 [H, W, 3], as large as the page shows it
    painted(photo, attention, Style())          # uint8 [H, W, 3]
    painted_heads(photo, maps, Style())         # each head's mask in a color of its own

Step by step the same: the photo loses its own colors as the map comes forward, the map is laid on
it bilinearly between patch centers or in blocks, clear where little attention lies, and the mass
mask is outlined. Only the antialiasing of the outline differs, by a few of 255 at its edges.

Legend: h x w patches, H x W pixels; lines float [n, 4] as x0, y0, x1, y1.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dino_core.errors import UserError
from dino_core.lenses import colormap as colors
from dino_core.lenses.attention import mass_mask
from dino_core.lenses.render import nearest, relative

MODES = ("heat", "masked", "spotlight")
SHORTEST, LONGEST = 1200, 1400  # pixels, of a drawing's long side: an outline must be crisp
FIELD = 640  # pixels, at least, on the long side of a smoothly enlarged map
LUMINANCE = np.array([0.3, 0.59, 0.11], np.float32)  # W3C Compositing and Blending 1, Lum(C)
DARK, LIGHT = ((6, 9, 20), 0.7, 4.0), ((255, 255, 255), 1.0, 1.7)  # color, alpha, width in units
PATCH_EDGE, PATCH = ((6, 9, 20), 0.85, 7.0), ((255, 255, 255), 1.0, 3.0)
UNITS = 600  # of an outline's width, on the long side


@dataclass(frozen=True)
class Style:
    """How a map is drawn. Checked when made (`UserError`)."""

    mode: str = "heat"  # "masked": the map only where it is kept; "spotlight": the rest darkened
    opacity: float = 0.6  # 0..1
    keep: float = 0.6  # share of the mass inside the mask, 0..1
    colormap: str = "inferno"
    smooth: bool = True  # False: each patch a block
    outline: bool = True  # of the mask

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"mode {self.mode!r}: unknown; use one of {', '.join(MODES)}")
        for name in ("opacity", "keep"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name)}: must lie between 0 and 1")
        colors.table(self.colormap)


def staged(image: np.ndarray) -> np.ndarray:
    """`image` uint8 [H, W, 3] as large as the page shows it: its long side 1200 to 1400 pixels."""
    height, width = image.shape[:2]
    long = max(height, width)
    if long > LONGEST:
        picture = Image.fromarray(image)
        picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        return np.asarray(picture)
    if long >= SHORTEST:
        return image
    sides = [max(1, int(side * SHORTEST / long + 0.5)) for side in (height, width)]
    return np.rint(bilinear(image.astype(np.float32), *sides)).astype(np.uint8)


def painted(
    photo: np.ndarray, attention: np.ndarray, style: Style, count: int | None = None
) -> np.ndarray:
    """`photo` uint8 [H, W, 3] with a map [h, w] drawn on it as `style` says: uint8 [H, W, 3].

    `count`: how many patches the mask keeps, the first in reading order among equals; None: as many
    as `mass_mask` does.
    """
    height, width = photo.shape[:2]
    kept = _Kept.of(attention, style, count)
    picture = _laid_on(photo, _layer(kept, style), style)
    if style.outline and kept.count > 0:
        lines = level_lines(kept.shades, kept.level) if style.smooth else block_lines(kept.inside)
        rows, columns = attention.shape
        _stroke(picture, lines * np.tile([width / columns, height / rows], 2))
    return np.rint(np.clip(picture, 0, 255)).astype(np.uint8)


def painted_heads(
    photo: np.ndarray, maps: np.ndarray, style: Style, counts: Sequence[int] | None = None
) -> np.ndarray:
    """`photo` with the masks of all `maps` [heads, h, w], each in its head's color.

    Returns uint8 [H, W, 3]. Where masks overlap, the map with the higher shade is in front. Of
    `style` opacity, keep and smooth are heeded. Source of the picture: DINO, fig. 3.
    """
    given: Sequence[int | None] = [None] * len(maps) if counts is None else counts
    kept = [_Kept.of(one, style, count) for one, count in zip(maps, given, strict=True)]
    shades = np.stack([np.where(one.is_kept, one.field, -1) for one in kept])
    alpha = np.where(shades.max(axis=0) >= 0, np.rint(255 * style.opacity), 0)[..., None]
    palette = np.array([head_color(head) for head in range(len(maps))])
    color = np.rint(palette[shades.argmax(axis=0)] * (alpha / 255))
    layer = np.concatenate([color, alpha], axis=-1).astype(np.float32)
    return np.rint(_laid_on(photo, layer, style)).astype(np.uint8)


def with_patch(photo: np.ndarray, patch: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """`photo` with a square around the patch at (row, column) of a grid (h, w): uint8 [H, W, 3].

    What `paintPatch` in overlay.js draws around the patch that attention comes from.
    """
    height, width = photo.shape[:2]
    unit = max(height, width) / UNITS
    down, along = height / grid[0], width / grid[1]
    top, left = patch[0] * down, patch[1] * along
    picture = photo.astype(np.float32)
    for color, alpha, thickness in (PATCH_EDGE, PATCH):
        grown = [
            _covered(height, top - by, top + down + by)[:, None]
            * _covered(width, left - by, left + along + by)
            for by in (thickness * unit / 2, -thickness * unit / 2)
        ]
        cover = alpha * (grown[0] - grown[1])[..., None]
        picture += cover * (np.array(color, np.float32) - picture)
    return np.rint(picture).astype(np.uint8)


def head_color(head: int) -> tuple[int, int, int]:
    """The color of a head among others: hues a golden angle apart, so that neighbors differ."""
    hue = (head * 137.508 + 205) % 360 / 360
    red, green, blue = colorsys.hls_to_rgb(hue, 0.58, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def brightest(attention: np.ndarray, count: int) -> np.ndarray:
    """The `count` greatest of a map, the first in reading order among equals: bool [h, w]."""
    inside = np.zeros(attention.shape, bool)
    inside.flat[np.argsort(-attention, axis=None, kind="stable")[:count]] = True
    return inside


def liking(cosines: np.ndarray, keep: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """A map of cosines [h, w] as a page gets and masks it: float64 [h, w], bool [h, w].

    The cosines of one image lie close together, so they travel as 256 steps of the range they span,
    and the mask keeps those in the upper `keep` (0..1) of it. Twin of `readCosines` in overlay.js.
    """
    shades = np.rint(255 * relative(cosines)).astype(np.float32) / np.float32(255)
    low, high = float(cosines.min()), float(cosines.max())
    return low + (high - low) * shades.astype(np.float64), shades.astype(np.float64) >= 1 - keep


def alphas(opacity: float) -> np.ndarray:
    """How opaque each of 256 shades is, uint8: the photo shows where little attention lies."""
    low, high = opacity**2.4, opacity**0.5
    return np.rint(255 * (low + (high - low) * np.arange(256) / 255)).astype(np.uint8)


def bilinear(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """`grid` [h, w, ...] sampled at `height` x `width` places, edges held, as a canvas scales."""
    top, bottom, down = _steps(height, grid.shape[0], grid.ndim - 1)
    left, right, along = _steps(width, grid.shape[1], grid.ndim - 2)
    rows = grid[:, left] * (1 - along) + grid[:, right] * along
    return rows[top] * (1 - down) + rows[bottom] * down


def block_lines(inside: np.ndarray) -> np.ndarray:
    """The edges of the kept patches, bool [h, w], in patch units."""
    padded = np.pad(inside, 1).astype(np.int8)
    y, x = np.nonzero(np.diff(padded, axis=0)[:, 1:-1])
    across = np.stack([x, y, x + 1, y], axis=1)
    y, x = np.nonzero(np.diff(padded, axis=1)[1:-1])
    down = np.stack([x, y, x, y + 1], axis=1)
    return np.concatenate([across, down]).astype(np.float64)


def level_lines(field: np.ndarray, level: float) -> np.ndarray:
    """Marching squares: the line where `field` [h, w], given at patch centers, crosses `level`.

    In patch units, one line for each two edges of a square that are crossed, in order.
    """
    values = np.pad(field.astype(np.float64), 1, mode="edge")
    steps = [(0, 0), (0, 1), (1, 1), (1, 0)]  # (y, x) around a square
    h, w = field.shape[0] + 1, field.shape[1] + 1
    corners = [values[y : y + h, x : x + w] for y, x in steps]
    origin = np.stack(np.meshgrid(np.arange(w) - 0.5, np.arange(h) - 0.5), axis=-1)
    crossed, places = [], []
    for i, here in enumerate(corners):
        there = corners[(i + 1) % 4]
        crossed.append((here >= level) != (there >= level))
        rise = np.where(crossed[-1], there - here, 1)
        share = np.where(crossed[-1], level - here, 0) / rise
        start, end = np.array(steps[i][::-1]), np.array(steps[(i + 1) % 4][::-1])
        places.append(origin + start + share[..., None] * (end - start))
    edges = np.argsort(~np.array(crossed), axis=0, kind="stable")  # the crossed ones first
    cuts = np.take_along_axis(np.array(places), edges[..., None], axis=0)
    number = np.sum(crossed, axis=0)
    pairs = [
        np.concatenate([cuts[k][number > k], cuts[k + 1][number > k]], axis=-1) for k in (0, 2)
    ]
    return np.concatenate(pairs)


@dataclass(frozen=True)
class _Kept:
    """What of a map is drawn: its shades in 0..1, and where the mask keeps it."""

    shades: np.ndarray  # float32 [h, w]
    inside: np.ndarray  # bool [h, w]
    count: int  # of the patches inside
    level: float  # the shade that separates them from the rest
    field: np.ndarray  # float32, the shades as they are drawn: enlarged where smooth
    is_kept: np.ndarray  # bool, of the field's shape

    @classmethod
    def of(cls, attention: np.ndarray, style: Style, count: int | None) -> "_Kept":
        shades = relative(attention.astype(np.float64)).astype(np.float32)
        if count is None:
            count = int(mass_mask(attention, style.keep).sum())
        inside = brightest(shades, count)
        level = _level(np.sort(shades, axis=None)[::-1], count)
        factor = max(1, -(-FIELD // max(shades.shape))) if style.smooth else 1
        if factor == 1:
            return cls(shades, inside, count, level, shades, inside)
        sides = [factor * side for side in shades.shape]
        field = bilinear(shades.astype(np.float64), *sides).astype(np.float32)
        return cls(shades, inside, count, level, field, field >= level)


def _level(falling: np.ndarray, count: int) -> float:
    """The shade that separates the first `count` of the shades from the rest."""
    if count <= 0:
        return np.inf
    if count >= len(falling):
        return -np.inf
    return (float(falling[count - 1]) + float(falling[count])) / 2


def _layer(kept: _Kept, style: Style) -> np.ndarray:
    """What is laid on the photo, colors times alpha and alpha, float32 [., ., 4] in 0..255."""
    if style.mode == "spotlight":
        darkness = np.where(kept.is_kept, 0, int(255 * style.opacity))
        return np.pad(darkness[..., None], [(0, 0), (0, 0), (3, 0)]).astype(np.float32)
    code = colors.codes(kept.field)
    alpha = alphas(style.opacity)[code].astype(np.float32)[..., None]
    if style.mode == "masked":
        alpha *= kept.is_kept[..., None]
    color = np.rint(colors.table(style.colormap)[code] * (alpha / 255))
    return np.concatenate([color, alpha], axis=-1)


def _laid_on(photo: np.ndarray, layer: np.ndarray, style: Style) -> np.ndarray:
    """`layer` enlarged and laid on `photo`, gray but in a spotlight: float32 [H, W, 3]."""
    height, width = photo.shape[:2]
    if style.smooth:
        layer = bilinear(layer, height, width)
    else:
        layer = nearest(layer.transpose(2, 0, 1), height, width).transpose(1, 2, 0)
    picture = photo.astype(np.float32)
    if style.mode != "spotlight":
        gray = (picture @ LUMINANCE)[..., None]
        picture += style.opacity * (gray - picture)
    picture *= 1 - layer[..., 3:] / 255
    picture += layer[..., :3]
    return picture


def _steps(length: int, n: int, trailing: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `length` places on `n` samples: the two beside it, and the second's share."""
    places = np.clip((np.arange(length) + 0.5) * n / length - 0.5, 0, n - 1)
    low = np.minimum(places.astype(np.intp), max(n - 2, 0))
    share = (places - low).astype(np.float32).reshape(-1, *[1] * trailing)
    return low, np.minimum(low + 1, n - 1), share


def _stroke(picture: np.ndarray, lines: np.ndarray) -> None:
    """Draw lines (pixels, round caps) into `picture` float32 [H, W, 3]: light on a dark edge."""
    unit = max(picture.shape[:2]) / UNITS
    away = _distances(lines, picture.shape[0], picture.shape[1], DARK[2] * unit / 2 + 1)
    for color, alpha, thickness in (DARK, LIGHT):
        cover = alpha * np.clip(thickness * unit / 2 + 0.5 - away, 0, 1)[..., None]
        picture += cover * (np.array(color, np.float32) - picture)


def _distances(lines: np.ndarray, height: int, width: int, reach: float) -> np.ndarray:
    """From each pixel's center to the nearest line, float32 [H, W]; right up to `reach`."""
    away = np.full((height, width), np.inf, np.float32)
    ys, xs = np.arange(height) + 0.5, np.arange(width) + 0.5
    for x0, y0, x1, y1 in lines.tolist():
        top, bottom = _span(y0, y1, reach, height)
        left, right = _span(x0, x1, reach, width)
        dy, dx = y1 - y0, x1 - x0
        y, x = ys[top:bottom, None] - y0, xs[left:right] - x0
        along = np.clip((x * dx + y * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
        near = np.hypot(x - along * dx, y - along * dy)
        box = away[top:bottom, left:right]
        np.minimum(box, near, out=box)
    return away


def _covered(length: int, start: float, end: float) -> np.ndarray:
    """Which share of each of `length` pixels lies between two places, float32 [length]."""
    first = np.arange(length, dtype=np.float32)
    return np.clip(np.minimum(first + 1, end) - np.maximum(first, start), 0, 1)


def _span(start: float, end: float, reach: float, length: int) -> tuple[int, int]:
    """The pixels within `reach` of a line that runs from `start` to `end`, of `length` pixels."""
    first, last = min(start, end) - reach, max(start, end) + reach + 1
    return max(0, min(length, int(first))), max(0, min(length, int(last)))
