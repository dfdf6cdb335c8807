"""Places for the objects: a dozen settings, drawn independently of the object's class.

Each returns a `Setting`: linear light [3, h, w], and either the row where objects stand on the
ground or None where the camera looks straight at a surface, so that they lie on it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dino_core.data.scenes.colors import linear, mix
from dino_core.data.scenes.fields import step, wave
from dino_core.data.scenes.noise import patch, rough, smooth, soft, stretched

Rng = np.random.Generator


@dataclass(frozen=True)
class Setting:
    """A background and the light in it."""

    light: np.ndarray  # float32 [3, h, w], linear
    horizon: float | None  # row in [0, 1] from the top, or None when looking down at a surface
    sky: np.ndarray  # ambient color from above, [3]


def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centers in [0, 1]: column [1, side] and row [side, 1]."""
    line = ((np.arange(side) + 0.5) / side).astype(np.float32)
    return line[None], line[:, None]


def _relief(height: np.ndarray, strength: float, turn: float) -> np.ndarray:
    """Light on a bumpy surface from direction `turn`: about 1, brighter on facing slopes."""
    dy, dx = height[1:] - height[:-1], height[:, 1:] - height[:, :-1]
    slope = np.zeros_like(height)
    slope[1:] += dy * np.float32(np.sin(turn) * strength)
    slope[:, 1:] += dx * np.float32(np.cos(turn) * strength)
    return np.clip(1 + slope, 0.25, 1.8)


def _sky(side: int, rng: Rng, clouds: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A sky that pales or glows towards the horizon, with clouds: light and its mean color."""
    _, row = _grid(side)
    kind = rng.random()
    if kind < 0.6:  # day
        hue = rng.uniform(0.53, 0.62)
        top, low = linear(hue, rng.uniform(0.4, 0.75), 0.9), linear(hue, 0.15, 1.0)
    elif kind < 0.85:  # dusk
        top = linear(rng.uniform(0.6, 0.8), 0.45, rng.uniform(0.4, 0.75))
        low = linear(rng.uniform(0.02, 0.12), rng.uniform(0.3, 0.6), 1.0)
    else:  # overcast
        top, low = linear(0.6, 0.08, rng.uniform(0.6, 0.8)), linear(0.6, 0.05, 0.95)
    sky = mix(top, low, np.clip(row * 1.6, 0, 1))
    if clouds:
        cover = patch(soft(), rng, side, side) + np.float32(rng.uniform(-1.1, 0.6))
        sky = mix(
            sky, np.minimum(low * 1.25, 1.1), np.clip(cover, 0, 1) * np.float32(0.75 * clouds)
        )
    return np.broadcast_to(sky, (3, side, side)).copy(), 0.5 * (top + low)


@dataclass(frozen=True)
class Ground:
    """A plane's colors at our feet and far away, how strong and how fine its texture is."""

    near: np.ndarray
    far: np.ndarray
    grain: float
    zoom: float


def _plane(side: int, rng: Rng, horizon: float, ground: Ground) -> np.ndarray:
    """A plane receding to the horizon, its texture in perspective: [3, rows below, side]."""
    column, row = _grid(side)
    row = row[round(horizon * side) :]
    depth = np.float32(ground.zoom) / (row - np.float32(horizon) + np.float32(0.06))
    u = (column - np.float32(0.5)) * depth
    v = np.broadcast_to(depth * 2.2, u.shape)
    texture = stretched(rough(), rng, u, v)
    fade = np.clip((row - horizon) / (1 - horizon) * 1.5, 0, 1)
    color = mix(ground.far, ground.near, np.broadcast_to(fade, u.shape))
    return color * np.clip(1 + np.float32(ground.grain) * texture * (0.3 + 0.7 * fade), 0.2, 1.8)


def _ridge(side: int, rng: Rng, height: float, rough_by: float) -> np.ndarray:
    """A skyline: rows [1, side] in [0, 1], its mean at `height`."""
    start, line = (int(v) for v in rng.integers(0, 512 - side, 2))
    profile = soft()[line, start : start + side]
    return np.float32(height) - np.float32(rough_by) * profile[None]


def _landscape(
    side: int, rng: Rng, horizon: float, ground: Ground, ridge: np.ndarray | None = None
) -> Setting:
    """A plane under a sky, with hills of color `ridge` between."""
    sky, mean = _sky(side, rng)
    _, row = _grid(side)
    if ridge is not None:
        for layer in range(2):
            skyline = _ridge(side, rng, horizon - 0.06 + 0.05 * layer, 0.035)
            hill = mix(sky, ridge, np.float32(0.55 + 0.35 * layer))
            sky = mix(sky, hill, step(skyline - row, 1.5 / side))
    below = round(horizon * side)
    sky[:, below:] = _plane(side, rng, horizon, ground)
    return Setting(sky, horizon, mean)


def meadow(side: int, rng: Rng) -> Setting:
    """Grass under an open sky, with hills behind."""
    hue = rng.uniform(0.17, 0.36)
    near = linear(hue, rng.uniform(0.4, 0.65), rng.uniform(0.35, 0.6))
    far = linear(hue - 0.03, 0.45, 0.7)
    hills = linear(rng.uniform(0.25, 0.6), 0.4, 0.45)
    horizon = rng.uniform(0.38, 0.62)
    return _landscape(side, rng, horizon, Ground(near, far, 0.32, rng.uniform(25, 45)), hills)


def beach(side: int, rng: Rng) -> Setting:
    """Sand before a strip of sea."""
    sand = linear(rng.uniform(0.07, 0.13), rng.uniform(0.25, 0.45), rng.uniform(0.75, 0.95))
    horizon = rng.uniform(0.45, 0.6)
    setting = _landscape(side, rng, horizon, Ground(sand, sand, 0.16, rng.uniform(30, 60)))
    sea = linear(rng.uniform(0.48, 0.6), rng.uniform(0.5, 0.8), rng.uniform(0.4, 0.7))
    top, low = int((horizon - rng.uniform(0.1, 0.2)) * side), round(horizon * side)
    column, row = _grid(side)
    row = row[top : low + 4]
    depth = 6 / (row - np.float32(top / side) + np.float32(0.03))
    swell = stretched(
        rough(), rng, (column - 0.5) * depth * 0.35, np.broadcast_to(depth * 4, (row.size, side))
    )
    shore = step(row - horizon - 0.012 * np.sin(column * 11 + np.float32(rng.uniform(0, 6))), 0.012)
    water = sea[:, None, None] * np.clip(1 + 0.25 * swell, 0.4, 2)
    setting.light[:, top : low + 4] = mix(setting.light[:, top : low + 4], water, shore)
    return setting


def snow(side: int, rng: Rng) -> Setting:
    """A snow field before mountains."""
    near, far = linear(0.6, rng.uniform(0.02, 0.15), 0.9), linear(0.6, 0.1, 0.97)
    rock = linear(rng.uniform(0.55, 0.7), 0.35, rng.uniform(0.3, 0.5))
    return _landscape(side, rng, rng.uniform(0.45, 0.62), Ground(near, far, 0.06, 20.0), rock)


def desert(side: int, rng: Rng) -> Setting:
    """Dunes, layer before layer."""
    sky, mean = _sky(side, rng, clouds=0.4)
    _, row = _grid(side)
    hue = rng.uniform(0.03, 0.11)
    horizon = rng.uniform(0.4, 0.55)
    light = sky
    for layer in range(4):
        share = layer / 3
        color = linear(hue, 0.35 + 0.35 * share, 0.95 - 0.25 * share)
        skyline = _ridge(side, rng, horizon + 0.15 * layer, 0.045)
        shade = np.clip(1 - 2.2 * (row - skyline) + 0.25, 0.55, 1.25)
        light = mix(light, color[:, None, None] * shade, step(skyline - row, 1.5 / side))
    light = light * (1 + 0.04 * patch(rough(), rng, side, side))
    return Setting(light, horizon + 0.15, mean)


def tabletop(side: int, rng: Rng) -> Setting:
    """A wooden table before a wall out of focus."""
    _, row = _grid(side)
    wall = linear(rng.random(), rng.uniform(0.05, 0.4), rng.uniform(0.3, 0.9))
    stain = patch(soft(), rng, side, side)
    light = wall[:, None, None] * np.clip(1 + 0.16 * stain + 0.35 * (0.4 - row), 0.3, 1.6)
    horizon = rng.uniform(0.5, 0.66)
    below = round(horizon * side)
    light[:, below:] = _wood(side, rng, perspective=True)[:, below:]
    return Setting(light.astype(np.float32), horizon, wall * 0.5 + 0.4)


def _wood(side: int, rng: Rng, perspective: bool) -> np.ndarray:
    """Planks along the rows, [3, side, side]; in perspective they are seen at a flat angle."""
    column, row = _grid(side)
    hue, saturation = rng.uniform(0.04, 0.1), rng.uniform(0.35, 0.7)
    dark = linear(hue, saturation, rng.uniform(0.25, 0.5))
    pale = linear(hue + 0.01, saturation * 0.8, rng.uniform(0.55, 0.85))
    u = np.broadcast_to(column, (side, side))
    v = np.broadcast_to(row * (2.2 if perspective else 1.0), (side, side))
    plank = np.floor(v * np.float32(rng.integers(3, 6)) + np.float32(rng.random()))
    warp = stretched(soft(), rng, u * 60 + plank * 97, v * 230)
    grain = wave(v * np.float32(rng.uniform(6, 14)) + 0.5 * warp + plank * 0.37)
    grain = 0.6 * grain + 0.2 * stretched(rough(), rng, u * 30 + plank * 31, v * 420)
    tone = 0.85 + 0.15 * np.sin(plank * 2.3)
    return mix(dark, pale, np.clip(grain, 0, 1)) * tone


def planks(side: int, rng: Rng) -> Setting:
    """Wood seen from above."""
    light = _wood(side, rng, perspective=False)
    if rng.random() < 0.5:
        light = light.transpose(0, 2, 1)
    return Setting(np.ascontiguousarray(light, np.float32), None, linear(0.1, 0.1, 0.9))


def bokeh(side: int, rng: Rng) -> Setting:
    """Lights far out of focus over a dim floor."""
    column, row = _grid(side)
    hue = rng.random()
    base = linear(hue, rng.uniform(0.4, 0.8), rng.uniform(0.2, 0.45))
    haze = np.clip(1 + 0.4 * patch(soft(), rng, side, side), 0.2, 2)
    light = base[:, None, None] * haze
    for _ in range(int(rng.integers(7, 13))):
        size = rng.uniform(0.04, 0.11)
        cx, cy = rng.random(), rng.uniform(0, 0.75)
        x0, x1 = (int(np.clip((cx + s * (size + 0.02)) * side, 0, side)) for s in (-1, 1))
        y0, y1 = (int(np.clip((cy + s * (size + 0.02)) * side, 0, side)) for s in (-1, 1))
        disc = np.hypot(column[:, x0:x1] - cx, row[y0:y1] - cy) - np.float32(size)
        glow = linear(hue + rng.uniform(-0.12, 0.25), rng.uniform(0.2, 0.7), 1.0)
        alpha = step(disc, 0.016) * np.float32(rng.uniform(0.15, 0.5))
        light[:, y0:y1, x0:x1] += glow[:, None, None] * alpha * (1 + np.clip(disc * 8, -0.5, 0))
    horizon = rng.uniform(0.66, 0.78)
    floor = base * np.float32(rng.uniform(0.5, 0.9))
    light = mix(light, floor, np.clip((row - np.float32(horizon)) * 9, 0, 0.85))
    return Setting(light, horizon, base + 0.35)


def stones(side: int, rng: Rng) -> Setting:
    """Rock or gravel lit from one side."""
    height = patch(rough(), rng, side, side)
    large = patch(soft(), rng, side, side)
    stone = linear(rng.uniform(0.02, 0.65), rng.uniform(0.02, 0.25), rng.uniform(0.45, 0.8))
    other = linear(rng.uniform(0.05, 0.15), rng.uniform(0.1, 0.4), rng.uniform(0.35, 0.6))
    color = mix(stone, other, np.clip(0.5 + 0.5 * large, 0, 1))
    return Setting(
        color * _relief(height + large, 0.3, rng.uniform(0, 6.28)), None, linear(0.6, 0.1, 0.9)
    )


def foliage(side: int, rng: Rng) -> Setting:
    """Moss, hedge or fallen leaves filling the frame."""
    hue = rng.uniform(0.06, 0.4)
    fine, large = patch(rough(), rng, side, side), patch(soft(), rng, side, side)
    deep = linear(hue + 0.05, 0.7, rng.uniform(0.12, 0.25))
    lit = linear(hue, rng.uniform(0.5, 0.8), rng.uniform(0.5, 0.8))
    color = mix(deep, lit, np.clip(0.45 + 0.26 * fine + 0.22 * large, 0, 1))
    return Setting(color * _relief(fine, 0.22, rng.uniform(0, 6.28)), None, linear(0.2, 0.2, 0.9))


def water(side: int, rng: Rng) -> Setting:
    """A clear pool: caustics over a gradient."""
    hue = rng.uniform(0.46, 0.6)
    _, row = _grid(side)
    ripples = patch(smooth(), rng, side, side)
    net = 1 - 1.6 * np.abs(ripples + 0.15 * patch(soft(), rng, side, side))
    deep = linear(hue + 0.04, 0.85, rng.uniform(0.3, 0.55))
    shallow = linear(hue, rng.uniform(0.4, 0.7), rng.uniform(0.7, 0.9))
    color = mix(deep, shallow, np.clip(0.9 - row + 0.25 * net, 0, 1))
    return Setting(color * (1 + 0.6 * np.clip(net, 0, 1) ** 3), None, linear(hue, 0.3, 0.95))


def cloth(side: int, rng: Rng) -> Setting:
    """A checked or striped cloth with folds."""
    column, row = _grid(side)
    hue = rng.random()
    ground = linear(hue, rng.uniform(0.05, 0.3), rng.uniform(0.75, 0.95))
    thread = linear(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.4, 0.8), rng.uniform(0.35, 0.8))
    folds = patch(soft(), rng, side, side)
    turn = rng.uniform(0, 3.14)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    pitch = np.float32(rng.uniform(5, 11))
    u = (column * cos + row * sin) * pitch + 0.12 * folds
    v = (row * cos - column * sin) * pitch + 0.12 * folds
    across = step(0.5 - wave(u), 0.12)
    along = step(0.5 - wave(v), 0.12) if rng.random() < 0.6 else across
    color = mix(ground, thread, 0.4 * (across + along))
    weave = 1 + 0.04 * patch(rough(), rng, side, side)
    return Setting(color * _relief(folds, 1.2, rng.uniform(0, 6.28)) * weave, None, ground)


def bricks(side: int, rng: Rng) -> Setting:
    """A brick wall and the pavement before it."""
    column, row = _grid(side)
    rows = np.float32(rng.integers(7, 12))
    v = row * rows
    course = np.floor(v)
    u = column * rows * np.float32(0.45) + 0.5 * (course % 2)
    tone = np.sin(np.floor(u) * 12.9 + course * 78.2) * 0.18
    hue = rng.choice([0.02, 0.04, 0.08, 0.6])
    brick = linear(hue, rng.uniform(0.15, 0.65), rng.uniform(0.45, 0.8))
    mortar = linear(0.1, 0.08, rng.uniform(0.5, 0.85))
    gap = np.minimum(wave(u) / 0.45, wave(v)) - 0.09
    noise = patch(rough(), rng, side, side)
    color = mix(brick[:, None, None] * (1 + tone), mortar, step(gap, 0.08))
    light = color * np.clip(1 + 0.13 * noise, 0.3, 1.7)
    horizon = rng.uniform(0.62, 0.76)
    below = round(horizon * side)
    paving = linear(0.1, 0.06, rng.uniform(0.45, 0.7))
    light[:, below:] = _plane(side, rng, horizon, Ground(paving, paving * 0.7, 0.14, 40.0))
    return Setting(light, horizon, linear(0.6, 0.1, 0.9))


def studio(side: int, rng: Rng) -> Setting:
    """A paper sweep lit by a soft spot."""
    column, row = _grid(side)
    hue, saturation = rng.random(), rng.uniform(0.05, 0.6)
    paper = linear(hue, saturation, rng.uniform(0.5, 0.95))
    cx, cy = rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.6)
    spot = 1.25 - 0.9 * np.hypot(column - np.float32(cx), row - np.float32(cy))
    horizon = rng.uniform(0.55, 0.7)
    fold = np.clip((row - np.float32(horizon)) * 6, 0, 1) * 0.18
    grain = 1 + 0.015 * patch(rough(), rng, side, side)
    return Setting(paper[:, None, None] * (spot - fold) * grain, horizon, paper * 0.5 + 0.45)


SETTINGS: tuple[Callable[[int, Rng], Setting], ...] = (
    meadow,
    beach,
    snow,
    desert,
    tabletop,
    planks,
    bokeh,
    stones,
    foliage,
    water,
    cloth,
    bricks,
    studio,
)
