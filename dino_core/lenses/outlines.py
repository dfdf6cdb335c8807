"""A mask of pixels as what other programs take: polygons, a cutout with transparency, JSON.

    rings = polygons(mask, tolerance=1.0)         # of a bool [H, W]
    rgba(image, mask).save("cutout.png")
    to_json(rings, mask.shape, model=tokens.model, model_hash=tokens.model_hash)

Outlines run along the edges between pixels: x from 0 (left edge) to W, y from 0 (top) to H. By the
even-odd rule, asked at pixel centers, rings of tolerance 0 give the mask back exactly. Pixels that
touch at a corner alone belong to different rings.
"""

import json
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dino_core.errors import UserError

VERSION = 1
_TURNS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])  # right, down, left, up as (x, y)


@dataclass(frozen=True)
class Ring:
    """One closed outline. `points`: int64 [n, 2], (x, y) of its corners, the first not repeated.

    Clockwise as seen on the screen around an object, counterclockwise around a hole in it.
    """

    points: np.ndarray
    hole: bool


def polygons(mask: np.ndarray, tolerance: float = 1.0) -> list[Ring]:
    """The outlines of `mask`, bool [H, W], in reading order of their first corners.

    `tolerance` in pixels: no corner of the exact outline is further from the simplified one
    (Douglas and Peucker 1973). What that leaves without area, a speck, is left out; simplified
    rings may touch or cross. Raises `UserError` for a tolerance below 0.
    """
    if not tolerance >= 0:
        raise UserError(f"tolerance {tolerance}: must be 0 pixels or more")
    rings = [Ring(points, _area(points) < 0) for points in _traced(mask)]
    if tolerance == 0:
        return rings
    simple = [Ring(_simplified(ring.points, tolerance), ring.hole) for ring in rings]
    return [ring for ring in simple if len(ring.points) > 2]


def rgba(image: np.ndarray, mask: np.ndarray) -> Image.Image:
    """The cutout: `image` uint8 [H, W, 3] where `mask` bool [H, W] is, else transparent.

    What is transparent is black beneath as well: nothing of the photo around it is handed on.
    """
    alpha = mask.astype(np.uint8)[..., None]
    return Image.fromarray(np.concatenate([image * alpha, 255 * alpha], axis=-1))


def to_json(rings: list[Ring], size: tuple[int, int], *, model: str, model_hash: str) -> str:
    """Rings as JSON text: `version`, `image` [height, width], `model`, `model_hash`, `polygons`.

    Each polygon has `hole` and `points`, a list of [x, y] in pixels of the image of `size`.
    """
    document = {
        "version": VERSION,
        "image": [int(side) for side in size],
        "model": model,
        "model_hash": model_hash,
        "polygons": [{"hole": ring.hole, "points": ring.points.tolist()} for ring in rings],
    }
    return json.dumps(document, separators=(",", ":"))


def _traced(mask: np.ndarray) -> list[np.ndarray]:
    """All outlines, each as its corners int64 [n, 2], with the inside on the right hand."""
    ways, columns = _ways(mask)
    steps = [int(x + columns * y) for x, y in _TURNS]
    starts, done = np.flatnonzero(ways & 1).tolist(), bytearray(ways.size)
    bits, rings = ways.tobytes(), []
    for start in starts:
        if done[start]:
            continue
        corners, place, way = [start], start, 0
        while True:
            if way == 0:
                done[place] = 1
            place += steps[way]
            # Where two outlines meet at a corner: right, around the same pixel.
            turned = next(
                turn % 4 for turn in (way + 1, way, way + 3) if bits[place] >> turn % 4 & 1
            )
            if place == start and turned == 0:
                break
            if turned != way:
                corners.append(place)
            way = turned
        rings.append(np.stack(np.divmod(corners, columns)[::-1], axis=-1).astype(np.int64))
    return rings


def _ways(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """For each corner of the pixel grid the ways that an outline leaves it, and corners per row.

    uint8 [(H + 1) * (W + 1)], bit d set for direction d of `_TURNS`.
    """
    inside = np.pad(mask.astype(bool), 1)
    up_left, up_right = inside[:-1, :-1], inside[:-1, 1:]
    down_left, down_right = inside[1:, :-1], inside[1:, 1:]
    right, down = down_right & ~up_right, down_left & ~down_right
    left, up = up_left & ~down_left, up_right & ~up_left
    ways = (
        right | down.astype(np.uint8) << 1 | left.astype(np.uint8) << 2 | up.astype(np.uint8) << 3
    )
    return ways.ravel(), ways.shape[1]


def _area(points: np.ndarray) -> float:
    """Signed area in pixels, positive when clockwise on the screen (Gauss's shoelace formula)."""
    x, y = points.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _simplified(points: np.ndarray, tolerance: float) -> np.ndarray:
    """The ring with fewer corners; its first one and the one furthest from that always stay."""
    closed = np.concatenate([points, points[:1]])
    kept = np.zeros(len(closed), dtype=bool)
    furthest = int(((points - points[0]) ** 2).sum(axis=1).argmax())
    kept[[0, furthest]] = True
    spans = [(0, furthest), (furthest, len(points))]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        distance = _distances(closed[first + 1 : last], closed[first], closed[last])
        if distance.max() > tolerance:
            middle = first + 1 + int(distance.argmax())
            kept[middle] = True
            spans += [(first, middle), (middle, last)]
    return points[kept[:-1]]


def _distances(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """How far each point [n, 2] is from the segment between `start` and `end`: float64 [n]."""
    along = (end - start).astype(np.float64)
    share = (points - start) @ along / max(along @ along, 1e-12)
    nearest = start + np.clip(share, 0, 1)[:, None] * along
    return np.hypot(*(points - nearest).T)
