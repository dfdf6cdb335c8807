"""The twelve object classes, each an outline and a texture of its own.

An object is a list of `Part`s, painted in order. Every class takes its colors from the same
`Palette` distribution and varies in proportions, counts and pattern with `rng`; so what tells a
fish from a leaf is its shape and its scales, never its hue. Coordinates as in `fields`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dino_core.data.scenes.colors import Palette, mix
from dino_core.data.scenes.fields import (
    Field,
    blend,
    box,
    capsule,
    circle,
    ellipse,
    folded,
    intersection,
    step,
    turned,
    union,
    wave,
)

PI = np.float32(np.pi)


@dataclass(frozen=True)
class Part:
    """One painted piece: its outline, color [3] or [3, h, w], and how its surface curves.

    `bevel` is how far in from the edge the surface keeps rising; `dome`, if given, is the field
    that rises in place of the outline (a mug curves sideways only); `bump` adds fine relief.
    """

    distance: Field
    color: np.ndarray
    bevel: float = 0.3
    gloss: float = 0.1
    bump: Field | None = None
    dome: Field | None = None


Draw = Callable[[Field, Field, np.random.Generator, Palette], list[Part]]


@dataclass(frozen=True)
class ObjectClass:
    """A class: its name, its drawing, and how far it may lean (radians; pi is any way up)."""

    name: str
    draw: Draw
    lean: float


def ball(x: Field, y: Field, rng: np.random.Generator, colors: Palette) -> list[Part]:
    """A beach ball: panels that meet at two poles."""
    radius = 0.82
    px, py = x / radius, y / radius
    pz = np.sqrt(np.maximum(1 - px * px - py * py, 0))
    py, pz = turned(py, pz, rng.uniform(0.3, 1.1))
    px, py = turned(px, py, rng.uniform(0, 6.28))
    panels = int(rng.integers(3, 6))
    longitude = np.arctan2(px, pz) * np.float32(panels / (2 * np.pi))
    edge = wave(longitude + 0.25) - 0.5
    color = mix(colors.main, colors.light, step(edge, 0.08))
    color = mix(color, colors.accent, step(0.93 - np.abs(py), 0.03))
    return [Part(circle(x, y, radius), color, bevel=radius, gloss=0.5)]


def fish(x: Field, y: Field, rng: np.random.Generator, colors: Palette) -> list[Part]:
    """A body of overlapping scales, a forked tail, fins and an eye; it swims to the left."""
    height = rng.uniform(0.34, 0.5)
    body = ellipse(x + 0.12, y, 0.78, height)
    tail = union(
        capsule(x, y, (0.45, 0), (0.88, rng.uniform(0.32, 0.5)), 0.1, 0.07),
        capsule(x, y, (0.45, 0), (0.88, -rng.uniform(0.32, 0.5)), 0.1, 0.07),
    )
    tail = blend(tail, circle(x - 0.62, y, 0.16), 0.25)
    back = ellipse(*turned(x + 0.05, y - height * 0.8, -0.2), 0.4, rng.uniform(0.22, 0.32))
    belly = ellipse(*turned(x - 0.12, y + height * 0.85, 0.5), 0.24, 0.13)
    fin = union(intersection(back, -0.32 - x - 0.4 * y), belly)
    rays = wave((np.arctan2(y, x - 0.2) * 9).astype(np.float32))
    size = np.float32(rng.uniform(0.12, 0.17))
    row = np.floor(y / (size * 0.75))
    u = x / size + 0.5 * (row - 2 * np.floor(row / 2))
    scale = np.hypot(u - np.floor(u) - 0.75, (y / (size * 0.75) - row - 0.5) * 0.75)
    skin = mix(colors.main, colors.second, step(np.abs(scale - 0.55) - 0.08, 0.12))
    skin = mix(skin, colors.light, step(y + height * 0.45, 0.35) * 0.8)
    head = step(x + 0.5 + 0.3 * np.cos(y * 3), 0.03)
    skin = mix(skin, colors.second, head * 0.8)
    fins = mix(colors.second, colors.dark, rays * 0.55)
    eye = circle(x + 0.62, y - height * 0.28, 0.085)
    return [
        Part(tail, fins, bevel=0.12),
        Part(fin, fins, bevel=0.1),
        Part(body, skin, bevel=height, gloss=0.45, bump=0.25 * (1 - head) * scale * size),
        Part(eye, colors.light, bevel=0.08, gloss=0.2),
        Part(eye + 0.035, colors.dark, bevel=0.05, gloss=0.9),
    ]


def leaf(x: Field, y: Field, rng: np.random.Generator, colors: Palette) -> list[Part]:
    """A pointed blade with a midrib, curved side veins and a stalk."""
    bend = rng.uniform(-0.25, 0.25)
    y = y - np.float32(bend) * x * x
    along = np.clip((x + 0.75) / 1.65, 0, 1)
    width = rng.uniform(0.36, 0.56) * np.sin(PI * along ** np.float32(rng.uniform(0.6, 0.9)))
    teeth = float(rng.choice([0.0, 0.03])) * wave(along * 14)
    outside = np.maximum(np.abs(x - 0.075) - 0.825, 0)
    blade = (np.abs(y) - width + teeth) * 0.8 + outside
    stalk = capsule(x, y, (-1.05, 0), (-0.6, 0), 0.035, 0.03)
    side = wave((x - np.abs(y) * np.float32(rng.uniform(0.6, 1.1))) * np.float32(rng.uniform(4, 6)))
    veins = union(np.abs(y) - 0.028, (side - 0.09) * 0.12)
    color = mix(colors.main, colors.second, 0.6 * np.clip(np.abs(y) * 2, 0, 1))
    color = mix(color, colors.light, 0.75 * step(veins, 0.025))
    relief = -0.05 * np.clip(side, 0, 0.5) - 0.12 * np.clip(np.abs(y), 0, 0.1)
    return [
        Part(stalk, colors.second, bevel=0.04),
        Part(blade, color, bevel=0.1, gloss=0.25, bump=-relief),
    ]


def mushroom(x: Field, y: Field, rng: np.random.Generator, colors: Palette) -> list[Part]:
    """A pale stem under a cap with round spots."""
    width, height = rng.uniform(0.65, 0.88), rng.uniform(0.55, 0.85)
    stem = capsule(x, y, (rng.uniform(-0.1, 0.1), -0.75), (0, 0.1), rng.uniform(0.17, 0.26), 0.14)
    stem = intersection(stem, -y - 0.86)
    base = 0.02
    dome = ellipse(x, y - base, width, height)
    under = ellipse(x, y - base, width, 0.15)
    cap = union(intersection(dome, base - y), under)
    color = np.broadcast_to(colors.main[:, None, None], (3, *x.shape))
    start = rng.random()
    for index in range(10):
        # A golden sequence spreads the spots; those near the rim are seen from the side.
        reach = np.sqrt((index + 0.6) / 10.5)
        angle = np.pi * ((start + 0.618 * index) % 1)
        sx, sy = reach * np.cos(angle) * width, base + 0.04 + reach * np.sin(angle) * height
        size = rng.uniform(0.07, 0.12)
        narrow = size * np.sqrt(1.15 - reach**2)
        sx, sy = turned(x - np.float32(sx), y - np.float32(sy), angle)
        color = mix(color, colors.light, step(ellipse(sx, sy, narrow, size), 0.025))
    gills = mix(colors.light, colors.dark, 0.6 * wave(x * 9))
    return [
        Part(stem, mix(colors.light, colors.second, 0.15 * wave(x * 14)), bevel=0.16, gloss=0.05),
        Part(cap, color, bevel=min(width, height) * 0.9, gloss=0.4, dome=dome),
        Part(intersection(under, y - base), gills, bevel=0.02, gloss=0.0),
    ]


def starfish(x: Field, y: Field, rng: np.random.Generator, colors: Palette) -> list[Part]:
    """Five tapering arms covered in rows of knobs."""
    fx, fy = folded(x, y, 5)
    thick = rng.uniform(0.2, 0.3)
    arm = capsule(fx, fy, (0.15, 0), (0.88, 0), thick, 0.07)
    body = blend(arm, circle(x, y, thick + 0.08), 0.2)
    pitch = np.float32(rng.uniform(8, 11))
    knob = np.hypot((fx * pitch - np.round(fx * pitch)), fy * pitch) / pitch
    side = np.abs(fy) - (0.78 - fx * 0.6) * np.float32(thick * 0.9)
    u = fx * pitch * 1.2
    rim = np.hypot(u - np.round(u), side * pitch * 1.2) / (pitch * 1.2)
    dots = union(knob - 0.036, rim - 0.028)
    color = mix(colors.main, colors.second, np.clip((np.hypot(x, y) - 0.2) * 1.2, 0, 1))
    color = mix(color, colors.light, 0.9 * step(dots, 0.02))
    bump = 0.5 * np.clip(-dots, 0, 0.03)
    return [Part(body, color, bevel=thick, gloss=0.15, bump=bump)]


def butterfly(x: Field, y: Field, rng: np.random.Generator, colors: Palette) -> list[Part]:
    """Two pairs of dark-rimmed wings with eyespots, a slim body and feelers."""
    fold = np.float32(rng.uniform(0.95, 1.3))
    mx = np.abs(x) * fold
    ux, uy = turned(mx - 0.46, y - 0.34, rng.uniform(0.5, 0.8))
    lx, ly = turned(mx - 0.36, y + 0.38, rng.uniform(-0.9, -0.6))
    upper = ellipse(ux, uy, 0.56, rng.uniform(0.3, 0.37))
    lower = ellipse(lx, ly, 0.42, rng.uniform(0.26, 0.33))
    wings = blend(upper, lower, 0.08)
    vein = wave(np.arctan2(y - 0.05, mx + 0.12) * np.float32(rng.uniform(2.6, 3.4)))
    color = mix(colors.main, colors.second, np.clip(np.hypot(mx, y) * 0.9, 0, 1))
    color = mix(color, colors.dark, 0.8 * step(vein - 0.06, 0.08))
    color = mix(color, colors.dark, step(-0.075 - wings, 0.03))
    for cx, cy, size in ((0.66, 0.5, 0.12), (0.46, -0.46, 0.1)):
        spot = circle(mx - cx, y - cy, size)
        color = mix(color, colors.light, step(spot, 0.03))
        color = mix(color, colors.accent, step(spot + 0.04, 0.03))
        color = mix(color, colors.dark, step(spot + 0.075, 0.03))
    feelers = capsule(np.abs(x), y, (0.0, 0.35), (0.2, 0.82), 0.022, 0.02)
    feelers = union(feelers, circle(np.abs(x) - 0.2, y - 0.82, 0.045))
    body = capsule(x, y, (0, -0.45), (0, 0.36), 0.05, 0.085)
    stripes = mix(colors.dark, colors.second, 0.5 * step(wave(y * 9) - 0.5, 0.3))
    return [
        Part(feelers, colors.dark, bevel=0.03),
        Part(wings, color, bevel=0.05, gloss=0.1),
        Part(body, stripes, bevel=0.08, gloss=0.2),
    ]


def flower(x: Field, y: Field, rng: np.random.Generator, colors: Palette) -> list[Part]:
    """Streaked petals in two layers around a stippled disc."""
    count = int(rng.integers(6, 12))
    center = rng.uniform(0.2, 0.32)
    width = min(0.27, rng.uniform(1.4, 1.9) / count)
    parts = []
    for turn, shade, reach in ((np.pi / count, 0.9, 0.86), (0.0, 0.0, 0.98)):
        fx, fy = folded(*turned(x, y, turn), count)
        petal = ellipse(fx - (reach - 0.4), fy, 0.4, width)
        streak = wave(np.arctan2(fy, fx) * np.float32(14)) * np.clip(1.1 - fx, 0, 1)
        color = mix(colors.light, colors.main, np.clip((fx - 0.15) * 1.9, 0, 1))
        color = mix(color, colors.second, 0.45 * streak) * np.float32(1 - 0.45 * shade)
        parts.append(Part(petal, color, bevel=width * 0.9, gloss=0.1, bump=0.012 * streak))
    pitch = np.float32(11)
    u, v = turned(x, y, rng.uniform(0, 3))
    v = v * pitch * 1.15
    row = np.round(v)
    u = u * pitch + 0.5 * row
    seed = np.hypot(u - np.round(u), v - row)
    heart = mix(colors.accent, colors.dark, 0.75 * step(0.36 - seed, 0.25))
    parts.append(Part(circle(x, y, center), heart, bevel=center, gloss=0.1, bump=-0.02 * seed))
    return parts


def mug(x: Field, y: Field, rng: np.random.Generator, colors: Palette) -> list[Part]:
    """A glazed cylinder with a zigzag band, a ring handle and something to drink."""
    half, height = rng.uniform(0.42, 0.54), rng.uniform(0.52, 0.7)
    rim = 0.14
    handle = np.abs(ellipse(x - half, y + 0.02, 0.34, height * 0.62)) - 0.075
    wall = union(box(x, y, half, height, 0.02), ellipse(x, y + height, half, rim))
    curved = np.abs(x) - np.float32(half)
    sag = np.sqrt(np.maximum(1 - (x / np.float32(half)) ** 2, 0)) * rim
    level = y + sag
    angle = np.arcsin(np.clip(x / np.float32(half), -1, 1))
    zigzag = level - 0.09 * wave(angle * np.float32(rng.integers(2, 5)))
    color = mix(colors.main, colors.light, step(np.abs(zigzag) - 0.08, 0.03))
    for band in (0.27, -0.27):
        color = mix(color, colors.second, step(np.abs(level - band * height * 2) - 0.045, 0.03))
    opening = ellipse(x, y - height, half, rim)
    drink = intersection(opening + 0.03, ellipse(x, y - height + 0.06, half * 0.95, rim * 0.85))
    return [
        Part(handle, colors.main, bevel=0.075, gloss=0.5),
        Part(wall, color, bevel=half, gloss=0.6, dome=curved),
        Part(opening, colors.light, bevel=0.03, gloss=0.3),
        Part(drink, colors.dark, bevel=0.01, gloss=0.2),
    ]


def cactus(x: Field, y: Field, rng: np.random.Generator, colors: Palette) -> list[Part]:
    """Ribbed columns with spines, a flower on top, in a pot."""
    thick = rng.uniform(0.2, 0.28)
    trunk = capsule(x, y, (0, -0.5), (0, 0.62), thick)
    body = trunk
    for sign, low in ((-1, rng.uniform(-0.15, 0.1)), (1, rng.uniform(-0.15, 0.25))):
        reach = sign * (thick + rng.uniform(0.22, 0.32))
        top = low + rng.uniform(0.25, 0.45)
        elbow = capsule(x, y, (0, low), (reach, low), thick * 0.5)
        body = blend(
            body, union(elbow, capsule(x, y, (reach, low), (reach, top), thick * 0.55)), 0.1
        )
    ribs = wave(body * np.float32(rng.uniform(9, 12)))
    pitch = np.float32(rng.uniform(6.5, 8.5))
    spine = np.hypot(ribs * 0.9 - 0.9, wave(y * pitch)) - 0.28
    color = mix(colors.main, colors.dark, 0.65 * (1 - ribs))
    color = mix(color, colors.light, 0.9 * step(spine, 0.3))
    bloom = union(*(circle(x - dx, y - 0.86 + abs(dx) * 0.3, 0.09) for dx in (-0.11, 0.0, 0.11)))
    slope = np.float32(0.12) * (y + 0.9)
    pot = box(x / (1 + slope * 1.5), y + 0.72, 0.36, 0.24, 0.03)
    lip = box(x, y + 0.5, 0.44, 0.075, 0.03)
    return [
        Part(bloom, colors.accent, bevel=0.08),
        Part(body, color, bevel=thick, gloss=0.12, bump=0.03 * ribs),
        Part(pot, colors.second, bevel=0.36, gloss=0.15, dome=np.abs(x) - 0.38),
        Part(lip, colors.second, bevel=0.4, gloss=0.15, dome=np.abs(x) - 0.45),
    ]


def gear(x: Field, y: Field, rng: np.random.Generator, colors: Palette) -> list[Part]:
    """A toothed wheel of brushed metal with a bore and a ring of holes."""
    teeth = int(rng.integers(8, 15))
    fx, fy = folded(x, y, teeth)
    tooth = box(fx - 0.78, fy, 0.16, 1.15 / teeth, 0.02)
    wheel = union(circle(x, y, 0.76), tooth)
    bore = circle(x, y, rng.uniform(0.14, 0.24))
    holes = int(rng.integers(4, 7))
    hx, hy = folded(*turned(x, y, rng.uniform(0, 6)), holes)
    hole = circle(hx - 0.47, hy, min(0.15, 0.9 / holes))
    wheel = intersection(wheel, -union(bore, hole))
    radius = np.hypot(x, y)
    grain = wave(radius * 21 + 0.35 * np.sin(radius * 93))
    # Brushed metal reflects the light in two fans.
    fans = np.cos(2 * np.arctan2(y, x) + np.float32(rng.uniform(0, 6.28)))
    steel = mix(colors.main, colors.light, np.float32(0.35))
    color = mix(steel, colors.light, np.clip(0.35 + 0.4 * fans, 0, 1))
    color = mix(color, colors.dark, 0.3 * grain)
    color = mix(color, colors.dark, 0.5 * step(np.abs(radius - 0.66) - 0.015, 0.02))
    return [Part(wheel, color, bevel=0.07, gloss=0.5, bump=0.004 * grain)]


def snail(x: Field, y: Field, rng: np.random.Generator, colors: Palette) -> list[Part]:
    """A banded spiral shell on a soft body with two feelers."""
    foot = capsule(x, y, (0.85, -0.68), (-0.55, -0.62), 0.05, 0.16)
    neck = capsule(x, y, (-0.5, -0.62), (-0.76, -0.2), 0.15, 0.12)
    body = blend(foot, neck, 0.15)
    feelers = union(
        capsule(x, y, (-0.76, -0.15), (-0.98, 0.16), 0.04, 0.025),
        capsule(x, y, (-0.72, -0.15), (-0.7, 0.2), 0.04, 0.025),
    )
    feelers = union(feelers, circle(x + 0.98, y - 0.16, 0.05), circle(x + 0.7, y - 0.2, 0.05))
    sx, sy = x - 0.12, y + 0.02
    radius = np.hypot(sx, sy)
    angle = np.arctan2(sy, sx) / (2 * PI)
    growth = rng.uniform(1.7, 2.1)
    turns = (
        np.log(np.maximum(radius, 0.015) / np.float32(0.66)) / np.float32(np.log(growth)) - angle
    )
    whorl = turns - np.floor(turns)
    shell = union(circle(sx, sy, 0.62), circle(sx + 0.1, sy + 0.16, 0.54))
    bands = int(rng.integers(9, 15))
    band = step(wave(angle * bands + 0.35 * whorl) - 0.45, 0.3)
    color = mix(colors.main, colors.second, band)
    color = mix(color, colors.light, 0.8 * step(np.abs(whorl - 0.5) - 0.12, 0.1))
    seam = step(np.minimum(whorl, 1 - whorl) - 0.05, 0.06)
    color = mix(color, colors.dark, 0.8 * seam)
    dome = np.sqrt(np.maximum(whorl * (1 - whorl), 0)) * np.minimum(radius, 0.6)
    skin = mix(colors.light, colors.second, 0.4 * wave(x * 8 + y * 5))
    return [
        Part(feelers, colors.second, bevel=0.04),
        Part(body, skin, bevel=0.15, gloss=0.3),
        Part(shell, color, bevel=0.5, gloss=0.45, bump=0.35 * dome),
    ]


def pine(x: Field, y: Field, rng: np.random.Generator, colors: Palette) -> list[Part]:
    """Tiers of hanging needles on a trunk."""
    trunk = box(x, y + 0.82, 0.1, 0.2)
    tiers = int(rng.integers(3, 5))
    spread = rng.uniform(0.55, 0.7)
    comb = wave(x * np.float32(rng.uniform(9, 12)) + 0.15 * np.sin(y * 17))
    parts = [Part(trunk, mix(colors.second, colors.dark, 0.7 * wave(x * 17)), bevel=0.1)]
    for tier in range(tiers):
        low = -0.68 + tier * 1.25 / tiers
        reach = spread * (1 - 0.72 * tier / tiers)
        high = low + 1.75 / tiers
        slope = np.float32(reach / (high - low))
        droop = y - low + 0.1 * np.abs(x) / reach - 0.07 * comb
        edge = (np.abs(x) - (high - y) * slope) / np.hypot(np.float32(1), slope)
        outline = np.maximum(edge, -droop)
        depth = np.clip((y - low) / (high - low), 0, 1)
        needles = wave(x * 13 / (1.2 - depth) * 0.9 + y * 3)
        color = mix(colors.main, colors.dark, 0.75 * depth)
        color = mix(color, colors.light, 0.35 * needles * (1 - depth))
        parts.append(Part(outline, color, bevel=0.3, gloss=0.05, bump=0.04 * needles))
    return parts


CLASSES = (
    ObjectClass("ball", ball, np.pi),
    ObjectClass("butterfly", butterfly, 0.8),
    ObjectClass("cactus", cactus, 0.12),
    ObjectClass("fish", fish, 0.4),
    ObjectClass("flower", flower, np.pi),
    ObjectClass("gear", gear, np.pi),
    ObjectClass("leaf", leaf, np.pi),
    ObjectClass("mug", mug, 0.15),
    ObjectClass("mushroom", mushroom, 0.2),
    ObjectClass("pine", pine, 0.1),
    ObjectClass("snail", snail, 0.15),
    ObjectClass("starfish", starfish, np.pi),
)
