"""One generated photograph: a background, an object lit and shaded in it, a camera.

`render(key)` gives the same picture for the same key, always; 192 x 192 pixels in a few
milliseconds. The foreground mask is exact: the pixels that the object covers by half or more.
"""

from dataclasses import dataclass

import numpy as np

from dino_core.data.scenes.backgrounds import Setting
from dino_core.data.scenes.colors import develop, draw_palette, linear
from dino_core.data.scenes.fields import Field, circle, step, turned
from dino_core.data.scenes.homes import draw_place
from dino_core.data.scenes.noise import patch, rough, texture
from dino_core.data.scenes.objects import CLASSES, ObjectClass, Part

SIDE = 192


@dataclass(frozen=True)
class Pose:
    """Where the object is, in pixels from the top left, and how it is turned."""

    x: float
    y: float
    scale: float  # pixels per unit of object coordinates
    turn: float
    aspect: float
    mirrored: bool


@dataclass(frozen=True)
class Lamp:
    """One soft light from above, and what the surroundings add."""

    direction: np.ndarray  # unit, x right, y up, z to the camera
    color: np.ndarray
    ambient: np.ndarray


def render(label: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture uint8 [SIDE, SIDE, 3] of class `label` and its foreground mask, bool."""
    setting = draw_place(CLASSES[label].name, rng)(SIDE, rng)
    lamp = _draw_lamp(rng, setting)
    light = np.array(setting.light, np.float32)
    _clutter(light, rng, setting, lamp)
    pose = _draw_pose(rng, CLASSES[label], setting)
    mask = _place(light, CLASSES[label], pose, lamp, setting, rng)
    return develop(_camera(light, rng)), mask


def _draw_lamp(rng: np.random.Generator, setting: Setting) -> Lamp:
    side, up = rng.uniform(-0.8, 0.8), rng.uniform(0.3, 0.9)
    direction = np.array([side, up, rng.uniform(0.6, 1.0)])
    warm = linear(rng.uniform(0.06, 0.14), rng.uniform(0.0, 0.3), 1.0)
    return Lamp(
        direction=(direction / np.linalg.norm(direction)).astype(np.float32),
        color=warm * np.float32(rng.uniform(0.75, 1.1)),
        ambient=setting.sky * np.float32(rng.uniform(0.25, 0.45)),
    )


def _draw_pose(rng: np.random.Generator, kind: ObjectClass, setting: Setting) -> Pose:
    scale = SIDE * rng.uniform(0.26, 0.44)
    margin = scale * 0.85
    x = rng.uniform(margin, SIDE - margin)
    y = rng.uniform(margin, SIDE - margin)
    if setting.horizon is not None:  # stand on the ground, larger when nearer
        foot = SIDE * rng.uniform(min(setting.horizon + 0.12, 0.93), 0.96)
        y = max(foot - scale * 0.9, margin * 0.9)
    return Pose(
        x=x,
        y=y,
        scale=scale,
        turn=rng.uniform(-kind.lean, kind.lean),
        aspect=rng.uniform(0.85, 1.18),
        mirrored=bool(rng.integers(2)),
    )


def _place(
    light: np.ndarray,
    kind: ObjectClass,
    pose: Pose,
    lamp: Lamp,
    setting: Setting,
    rng: np.random.Generator,
) -> np.ndarray:
    """Paint an object with its shadow into `light`; returns its mask, bool [SIDE, SIDE]."""
    reach = pose.scale * 1.25 * max(pose.aspect, 1 / pose.aspect)
    (x0, x1), (y0, y1) = _span(pose.x, reach), _span(pose.y, reach)
    columns = (np.arange(x0, x1, dtype=np.float32) + np.float32(0.5 - pose.x))[None]
    rows = (np.arange(y0, y1, dtype=np.float32) + np.float32(0.5 - pose.y))[:, None]
    x, y = turned(columns / np.float32(pose.scale), -rows / np.float32(pose.scale), pose.turn)
    x, y = x * np.float32(pose.aspect), y / np.float32(pose.aspect)
    parts = kind.draw(-x if pose.mirrored else x, y, rng, draw_palette(rng))
    alphas = [_coverage(part.distance) for part in parts]
    whole = np.maximum.reduce(alphas)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y0:y1, x0:x1] = whole > 0.5
    _shadow(light, mask, pose, lamp, setting)
    canvas = light[:, y0:y1, x0:x1]
    speckle = 1 + 0.05 * patch(rough(), rng, *x.shape)
    for index, (part, alpha) in enumerate(zip(parts, alphas, strict=True)):
        if index:  # what lies below a part is shaded where they touch
            canvas *= 1 - 0.4 * step(part.distance - 0.03, 0.14) * whole
        window = _window(alpha)
        below = canvas[:, *window]
        below += (_shade(part, window, lamp) * speckle[window] - below) * alpha[window]
    return mask


def _window(alpha: Field) -> tuple[slice, slice]:
    """The rows and columns that a part covers any of."""
    spans = (np.flatnonzero(alpha.any(axis)) for axis in (1, 0))
    rows, columns = (slice(int(s[0]), int(s[-1]) + 1) if s.size else slice(0) for s in spans)
    return rows, columns


def _slopes(field: Field) -> tuple[Field, Field]:
    """Differences per pixel: to the right and UPWARDS."""
    dx, dy = np.empty_like(field), np.empty_like(field)
    np.subtract(field[:, 2:], field[:, :-2], out=dx[:, 1:-1])
    np.subtract(field[:-2], field[2:], out=dy[1:-1])
    dx[:, 0], dx[:, -1] = dx[:, 1], dx[:, -2]
    dy[0], dy[-1] = dy[1], dy[-2]
    return dx * np.float32(0.5), dy * np.float32(0.5)


def _coverage(distance: Field) -> Field:
    """Share of each pixel inside: the field over its own steepness is a distance in pixels."""
    dx, dy = _slopes(distance)
    return np.clip(0.5 - distance / (np.hypot(dx, dy) + np.float32(1e-6)), 0, 1)


def _shade(part: Part, window: tuple[slice, slice], lamp: Lamp) -> np.ndarray:
    """Light that a part sends to the camera, [3, h, w]: a rounded edge, diffuse and specular."""
    dome = part.distance if part.dome is None else part.dome
    dx, dy = (slope[window] for slope in _slopes(dome))
    dome = dome[window]
    steep = np.hypot(dx, dy) + np.float32(1e-6)
    inward = np.clip(-dome / np.float32(part.bevel), 0, 1)
    lean = (1 - inward) / steep
    nx, ny, nz = dx * lean, dy * lean, np.sqrt(inward * (2 - inward))
    if part.bump is not None:
        bx, by = (slope[window] for slope in _slopes(part.bump))
        # In object units per pixel; an object unit is about 55 pixels.
        nx, ny = nx - 55 * bx, ny - 55 * by
        norm = 1 / np.sqrt(nx * nx + ny * ny + nz * nz + np.float32(1e-6))
        nx, ny, nz = nx * norm, ny * norm, nz * norm
    lx, ly, lz = lamp.direction
    diffuse = np.maximum(nx * lx + ny * ly + nz * lz, 0)
    hx, hy, hz = lamp.direction + np.array([0, 0, 1], np.float32)
    norm = np.float32(1 / np.sqrt(hx * hx + hy * hy + hz * hz))
    shine = np.maximum((nx * hx + ny * hy + nz * hz) * norm, 0)
    for _ in range(5):
        shine = shine * shine
    around = 0.75 + 0.25 * ny
    received = lamp.color[:, None, None] * diffuse + lamp.ambient[:, None, None] * around
    flat = part.color.ndim == 1
    color = part.color[:, None, None] if flat else part.color[:, *window]
    return color * received + np.float32(part.gloss * 0.8) * shine * lamp.color[:, None, None]


def _shadow(light: np.ndarray, mask: Field, pose: Pose, lamp: Lamp, setting: Setting) -> None:
    """Darken what the object keeps the light from: the ground it stands on, or lies on."""
    rows = np.flatnonzero(mask.any(1))
    if not rows.size:
        return
    if setting.horizon is None:
        _cast_shadow(light, mask, pose, lamp)
        return
    foot = int(rows[-1])
    columns = np.flatnonzero(mask[max(foot - int(pose.scale * 0.6), 0) :].any(0))
    half = max(float(columns[-1] - columns[0]) / 2, 4.0)
    middle = float(columns.mean() - lamp.direction[0] * half * 0.6)
    top, low = _span(foot, half * 0.34)
    left, right = _span(middle, half * 1.45)
    dx = (np.arange(left, right, dtype=np.float32) - np.float32(middle)) / np.float32(half * 1.3)
    dy = (np.arange(top, low, dtype=np.float32) - np.float32(foot - 1)) / np.float32(half * 0.3)
    shade = np.clip(1.1 - np.hypot(dx[None], dy[:, None]), 0, 1)
    light[:, top:low, left:right] *= 1 - 0.7 * shade * (3 - 2 * shade) * shade


def _cast_shadow(light: np.ndarray, mask: Field, pose: Pose, lamp: Lamp) -> None:
    """The object's own outline, blurred and moved away from the lamp."""
    height = pose.scale * 0.16
    radius = max(int(height * 0.5), 2)
    dx = round(float(-lamp.direction[0]) * height * 2)
    dy = round(float(lamp.direction[1]) * height * 2)
    reach = pose.scale * 1.4 + 2 * radius
    top, low = _span(pose.y + dy, reach)
    left, right = _span(pose.x + dx, reach)
    columns = np.arange(left, right) - dx
    rows = np.arange(top, low) - dy
    moved = mask[np.clip(rows, 0, SIDE - 1)][:, np.clip(columns, 0, SIDE - 1)]
    light[:, top:low, left:right] *= 1 - 0.55 * _blur(moved.astype(np.float32), radius)


def _span(middle: float, reach: float) -> tuple[int, int]:
    """The pixels within `reach` of `middle` that lie in the picture."""
    first, end = int(middle - reach), int(middle + reach + 1)
    return min(max(first, 0), SIDE), min(max(end, 0), SIDE)


def _blur(field: Field, radius: int) -> Field:
    """Two box blurs each way: nearly a Gaussian of deviation 0.8 `radius`; the edge repeats."""
    for axis in (0, 1, 0, 1):
        padding = [(radius + 1, radius) if a == axis else (0, 0) for a in (0, 1)]
        sums = np.cumsum(np.pad(field, padding, mode="edge"), axis=axis)
        window = 2 * radius + 1
        upper = sums[window:] if axis == 0 else sums[:, window:]
        lower = sums[:-window] if axis == 0 else sums[:, :-window]
        field = (upper - lower) / np.float32(window)
    return field


def _clutter(light: np.ndarray, rng: np.random.Generator, setting: Setting, lamp: Lamp) -> None:
    """Pebbles about the object, of no class, never in front of it."""
    for _ in range(int(rng.choice([0, 0, 1, 2, 4]))):
        scale = SIDE * rng.uniform(0.03, 0.08)
        top = 0.05 if setting.horizon is None else min(setting.horizon + 0.08, 0.9)
        pose = Pose(
            x=rng.uniform(0, SIDE),
            y=rng.uniform(top, 0.97) * SIDE,
            scale=scale,
            turn=rng.uniform(-0.5, 0.5),
            aspect=rng.uniform(0.7, 0.95),
            mirrored=False,
        )
        _place(light, PEBBLE, pose, lamp, setting, rng)


def _pebble(x: Field, y: Field, rng: np.random.Generator, colors: object) -> list[Part]:
    dent = 0.12 * np.sin(np.arctan2(y, x) * 3 + np.float32(rng.uniform(0, 6.28)))
    grey = linear(rng.random(), rng.uniform(0.0, 0.35), rng.uniform(0.3, 0.8))
    return [Part(circle(x, y, 0.9) + dent, grey, bevel=0.8, gloss=0.1)]


PEBBLE = ObjectClass("pebble", _pebble, 0.5)


def _camera(light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, white balance, vignette and grain."""
    line = np.linspace(-1, 1, SIDE, dtype=np.float32)
    vignette = 1 - np.float32(rng.uniform(0, 0.22)) * (line[None] ** 2 + line[:, None] ** 2)
    exposure = np.float32(rng.uniform(0.8, 1.2)) * rng.uniform(0.92, 1.08, (3, 1, 1))
    grain = patch(texture(0.0), rng, SIDE, SIDE) * np.float32(rng.uniform(0.005, 0.03))
    return light * exposure.astype(np.float32) * (vignette * (1 + grain))
