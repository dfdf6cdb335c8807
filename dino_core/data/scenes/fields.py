"""Signed distance fields: the outlines of generated objects, as arithmetic on coordinates.

A field is negative inside, positive outside and about as steep as the distance itself, so that
`coverage` turns it into an antialiased edge and `objects` into a rounded relief. `x` grows to the
right, `y` UPWARDS, and an object lives in about [-1, 1] x [-1, 1]. All arrays float32 [h, w].
The formulas are the usual ones of implicit modelling (Inigo Quilez, "2D distance functions").
"""

import numpy as np

Field = np.ndarray


def circle(x: Field, y: Field, radius: float) -> Field:
    """Distance to a disc about the origin."""
    return np.hypot(x, y) - np.float32(radius)


def ellipse(x: Field, y: Field, rx: float, ry: float) -> Field:
    """Distance-like field of an ellipse about the origin; -min(rx, ry) at its center."""
    return (np.hypot(x / np.float32(rx), y / np.float32(ry)) - 1) * np.float32(min(rx, ry))


def box(x: Field, y: Field, rx: float, ry: float, corner: float = 0.0) -> Field:
    """Distance to a box of half sizes `rx`, `ry` with rounded corners."""
    dx = np.abs(x) - np.float32(rx - corner)
    dy = np.abs(y) - np.float32(ry - corner)
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return outside + np.minimum(np.maximum(dx, dy), 0) - np.float32(corner)


def capsule(
    x: Field,
    y: Field,
    start: tuple[float, float],
    end: tuple[float, float],
    radius: float,
    end_radius: float | None = None,
) -> Field:
    """Distance to a thick line from `start` to `end`, tapering to `end_radius`."""
    bx, by = end[0] - start[0], end[1] - start[1]
    px, py = x - np.float32(start[0]), y - np.float32(start[1])
    along = np.clip((px * np.float32(bx) + py * np.float32(by)) / np.float32(bx**2 + by**2), 0, 1)
    taper = np.float32((radius if end_radius is None else end_radius) - radius)
    distance = np.hypot(px - along * np.float32(bx), py - along * np.float32(by))
    return distance - np.float32(radius) - taper * along


def union(*fields: Field) -> Field:
    """What is in any of the fields."""
    result = fields[0]
    for field in fields[1:]:
        result = np.minimum(result, field)
    return result


def intersection(a: Field, b: Field) -> Field:
    """What is in both; `intersection(a, -b)` cuts b out of a."""
    return np.maximum(a, b)


def blend(a: Field, b: Field, width: float) -> Field:
    """Union whose seam is filleted over `width` (polynomial smooth minimum)."""
    h = np.maximum(np.float32(width) - np.abs(a - b), 0) / np.float32(width)
    return np.minimum(a, b) - h * h * np.float32(width / 4)


def turned(x: Field, y: Field, angle: float) -> tuple[Field, Field]:
    """Coordinates of a frame turned by `angle` radians counter-clockwise."""
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * x + s * y, c * y - s * x


def folded(x: Field, y: Field, count: int) -> tuple[Field, Field]:
    """Fold the plane onto one of `count` equal sectors, whose middle is the +x axis."""
    sector = 2 * np.pi / count
    angle = np.arctan2(y, x)
    angle = angle - np.float32(sector) * np.round(angle / np.float32(sector))
    radius = np.hypot(x, y)
    return radius * np.cos(angle), radius * np.sin(angle)


def step(edge_distance: Field, softness: float) -> Field:
    """1 where `edge_distance` < 0, 0 where > 0, a ramp of width `softness` between."""
    return np.clip(np.float32(0.5) - edge_distance / np.float32(softness), 0, 1)


def wave(phase: Field) -> Field:
    """Triangle wave of period 1: 0 at integers, 1 half way."""
    return 1 - np.abs(2 * (phase - np.floor(phase)) - 1)
