"""A run's history as an animated GIF: one picture, its heads, its patch colors, and the map.

    film(history, Scene(picture=0, layer=-1, head=None), maps)     # the bytes of a GIF

Between two checks values are mixed, so that what grows is seen to grow; the last check stays for a
moment. At most 96 frames of 720 x 405 pixels, a few MB.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dino_core.emergence.history import Check, History, Maps, evenly
from dino_core.errors import UserError
from dino_core.gallery.progress import Progress, silent
from dino_core.gallery.selection import category_colors, gray
from dino_core.lenses import LensPayload, colormap

WIDTH, HEIGHT = 720, 405
MOST_FRAMES = 96
MOST_BETWEEN = 6  # frames from one check to the next
FRAME, LAST = 90, 1800  # milliseconds that a frame, and the last one, stay
CODES, PICTURE_CODES = 256, 168  # colors of a GIF's frame; of these, for the pictures
PAPER, INK, MUTED = "#0b0f1c", "#edf0f8", "#9aa5bf"  # of theme.css's dark half
LINE, RAISED, ACCENT = "#263049", "#1b2336", "#818cf8"
MARGIN, GAP, STRIP = 18, 12, 44  # pixels; the strip of heads under the pictures
OPACITY = 0.65


@dataclass(frozen=True)
class Scene:
    """What a film shows: which fixed image, which layer, which head (None: their mean)."""

    picture: int
    layer: int = -1
    head: int | None = None


@dataclass(frozen=True)
class _Moment:
    """One check as arrays that can be mixed with the next one's."""

    check: Check
    maps: np.ndarray  # float32 [heads, h, w], each from 0 to its greatest as 1
    colors: np.ndarray | None  # float32 [h, w, 3]
    points: np.ndarray | None  # float32 [n, 2]


def film(
    history: History, scene: Scene, maps: Maps | None = None, progress: Progress = silent
) -> bytes:
    """The GIF's bytes. Raises `UserError` where the checks kept no attention of that picture."""
    moments = _moments(history, scene, maps)
    photo = Image.open(io.BytesIO(history.picture(scene.picture))).convert("RGB")
    stage = _Stage(history, scene, photo, [moment.check for moment in moments], maps)
    plan = list(_between(len(moments)))
    frames = []
    for done, (at, share) in enumerate(plan):
        progress(done, len(plan), "Drawing the film")
        mixed = _mixed(moments[at], moments[min(at + 1, len(moments) - 1)], share)
        frames.append(_coded(stage.draw(mixed, at + share), stage.box))
    durations = [FRAME] * (len(frames) - 1) + [LAST]
    stream = io.BytesIO()
    frames[0].save(
        stream, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
    )
    return stream.getvalue()


def _moments(history: History, scene: Scene, maps: Maps | None) -> list[_Moment]:
    payloads = history.heads(scene.picture, scene.layer)
    colors = history.colors(scene.picture)
    moments = []
    for check, blob, color in zip(history.checks, payloads, colors, strict=True):
        if blob is None:
            continue
        payload = LensPayload.from_bytes(blob)
        moments.append(
            _Moment(
                check,
                (payload.codes[0] / np.float32(255)) ** 2 * _relative_peaks(payload.peak[0]),
                None if color is None else color.astype(np.float32),
                None if maps is None else places_at(maps, check.step),
            )
        )
    if not moments:
        raise UserError(f"{history.run.path}: no attention was kept of picture {scene.picture}")
    sizes = {moment.maps.shape for moment in moments}
    if len(sizes) > 1:
        raise UserError(f"{history.run.path}: its checks looked at other sizes; no film of both")
    return evenly(moments, MOST_FRAMES)


def _relative_peaks(peaks: np.ndarray) -> np.ndarray:
    """Each head's share of the greatest peak, [heads, 1, 1]: their mean weighs them by it."""
    return (peaks / (peaks.max() or 1)).astype(np.float32)[:, None, None]


def _between(count: int) -> list[tuple[int, float]]:
    """(check, share of the way to the next) of each frame; the last is the last check."""
    if count == 1:
        return [(0, 0.0)]
    steps = max(1, min(MOST_BETWEEN, (MOST_FRAMES - 1) // (count - 1)))
    return [(at, part / steps) for at in range(count - 1) for part in range(steps)] + [
        (count - 1, 0.0)
    ]


def _mixed(first: _Moment, second: _Moment, share: float) -> _Moment:
    def mix(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
        return a if a is None or b is None else (1 - share) * a + share * b

    maps = mix(first.maps, second.maps)
    assert maps is not None
    return _Moment(
        first.check, maps, mix(first.colors, second.colors), mix(first.points, second.points)
    )


def places_at(maps: Maps, step: int) -> np.ndarray:
    """Where each image lies at `step`, float32 [n, 2]: between two maps, between its places."""
    after = int(np.searchsorted(maps.steps, step))
    if after == 0 or maps.steps[min(after, len(maps.steps) - 1)] == step:
        return maps.points[min(after, len(maps.steps) - 1)]
    if after == len(maps.steps):
        return maps.points[-1]
    before, there = maps.steps[after - 1], maps.steps[after]
    share = (step - before) / (there - before)
    return ((1 - share) * maps.points[after - 1] + share * maps.points[after]).astype(np.float32)


# -- drawing ------------------------------------------------------------------------------------


class _Stage:
    """Where everything is on a frame, and what does not move."""

    def __init__(
        self,
        history: History,
        scene: Scene,
        photo: Image.Image,
        checks: Sequence[Check],
        maps: Maps | None,
    ) -> None:
        self.history, self.scene, self.checks = history, scene, checks
        room = HEIGHT - 2 * MARGIN - 96  # above the curve and below the heading
        wide = (WIDTH - 2 * MARGIN - 2 * GAP) // 3
        under = 0 if maps is None else STRIP + GAP
        scale = min((room - under) / photo.height, wide / photo.width)
        self.size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
        self.photo = photo.resize(self.size, Image.Resampling.LANCZOS)
        self.wide, self.room = wide, room
        self.bounds = None if maps is None else bounds(maps.points)
        has_colors = any(color is not None for color in history.colors(scene.picture))
        self.left = MARGIN + (1 + has_colors) * (wide + GAP)  # of the map, or of the heads
        right = WIDTH - MARGIN if maps is None else self.left - GAP
        self.box = MARGIN, MARGIN + 34, right, MARGIN + 34 + room  # of the pictures
        self.big, self.small = ImageFont.load_default(19), ImageFont.load_default(12)
        codes = history.labels % max(1, len(history.classes))
        palette = category_colors(max(1, len(history.classes)), dark=True)
        none = gray(dark=True)
        self.dots = [
            palette[c] if k >= 0 else none for c, k in zip(codes, history.labels, strict=True)
        ]

    def draw(self, moment: _Moment, at: float) -> Image.Image:
        """The frame at `at`, a check's number and the share of the way to the next."""
        frame = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
        pen = ImageDraw.Draw(frame)
        self._heading(pen, moment.check)
        top = MARGIN + 34
        head = self.scene.head
        chosen = moment.maps.mean(axis=0) if head is None else moment.maps[head]
        columns = [self._heat(chosen)]
        if moment.colors is not None:
            columns.append(_grown(moment.colors, self.size))
        for place, picture in enumerate(columns):
            frame.paste(picture, (MARGIN + place * (self.wide + GAP), top))
        left = self.left
        if moment.points is not None:
            self._map(pen, moment.points, (left, top, WIDTH - MARGIN, top + self.room))
            below = top + self.size[1] + GAP
            self._tiles(frame, moment.maps, (MARGIN, below), len(moment.maps), left - GAP - MARGIN)
        else:
            across = int(np.ceil(np.sqrt(len(moment.maps))))
            self._tiles(frame, moment.maps, (left, top), across, self.wide)
        self._curve(pen, at, HEIGHT - MARGIN - 40)
        return frame

    def _heading(self, pen: ImageDraw.ImageDraw, check: Check) -> None:
        pen.text((MARGIN, MARGIN - 4), f"Step {check.step:,}", INK, self.big)
        told = check.sentence().partition(": ")[2]
        pen.text((WIDTH - MARGIN, MARGIN + 8), told, MUTED, self.small, anchor="rm")

    def _heat(self, one: np.ndarray) -> Image.Image:
        """The photo, gray, under the colors of a map, as the page draws it."""
        shades = _shades(one)
        field = Image.fromarray(shades.astype(np.float32)).resize(
            self.size, Image.Resampling.BILINEAR
        )
        codes = colormap.codes(np.asarray(field))
        alpha = (OPACITY**2.4 + (OPACITY**0.5 - OPACITY**2.4) * codes / 255)[..., None]
        photo = np.asarray(self.photo, np.float32)
        plain = photo @ np.array([0.3, 0.59, 0.11], np.float32)
        ground = (1 - OPACITY) * photo + OPACITY * plain[..., None]
        mixed = (1 - alpha) * ground + alpha * colormap.table("inferno")[codes]
        return Image.fromarray(np.rint(mixed).astype(np.uint8))

    def _tiles(
        self, frame: Image.Image, maps: np.ndarray, at: tuple[int, int], across: int, wide: int
    ) -> None:
        """All heads in rows of `across`, within `wide` pixels and what room there is below."""
        rows = -(-len(maps) // across)
        ratio = self.size[1] / self.size[0]
        high = (MARGIN + 34 + self.room - at[1] - 6 * (rows - 1)) / rows
        side = max(1, int(min((wide - 6 * (across - 1)) / across, high / ratio)))
        tall = max(1, round(side * ratio))
        for head, one in enumerate(maps):
            down, along = divmod(head, across)
            tile = Image.fromarray(colormap.colored(_shades(one), "inferno"))
            tile = tile.resize((side, tall), Image.Resampling.BILINEAR)
            frame.paste(tile, (at[0] + along * (side + 6), at[1] + down * (tall + 6)))

    def _map(
        self, pen: ImageDraw.ImageDraw, points_N2: np.ndarray, box: tuple[int, int, int, int]
    ) -> None:
        left, top, right, bottom = box
        pen.rounded_rectangle(box, 8, RAISED)
        inside = np.isfinite(points_N2).all(axis=1)
        if self.bounds is None:
            return
        low, high = self.bounds
        scale = min((right - left - 20), (bottom - top - 20)) / (float((high - low).max()) or 1)
        middle = (low + high) / 2
        x = (left + right) / 2 + scale * (points_N2[:, 0] - middle[0])
        y = (top + bottom) / 2 - scale * (points_N2[:, 1] - middle[1])
        for row in np.flatnonzero(inside):
            pen.ellipse((x[row] - 2, y[row] - 2, x[row] + 2, y[row] + 2), self.dots[row])

    def _curve(self, pen: ImageDraw.ImageDraw, at: float, top: int) -> None:
        """k-NN, else RankMe, over the checks, with a dot where the film is."""
        measured = [check.knn for check in self.checks]
        if any(value is None for value in measured):
            measured = [check.rankme for check in self.checks]
        values = np.array([0.0 if value is None else value for value in measured])
        low, high = values.min(), values.max()
        x = np.linspace(MARGIN + 4, WIDTH - MARGIN - 4, max(2, len(values)))[: len(values)]
        y = top + 34 * (1 - (values - low) / ((high - low) or 1))
        if len(values) > 1:
            pen.line(list(zip(x, y, strict=True)), LINE, 3, joint="curve")
        places = np.arange(len(values))
        here = float(np.interp(at, places, x)), float(np.interp(at, places, y))
        done = [(a, b) for a, b in zip(x, y, strict=True) if a <= here[0]] + [here]
        if len(done) > 1:
            pen.line(done, ACCENT, 3, joint="curve")
        pen.ellipse((here[0] - 5, here[1] - 5, here[0] + 5, here[1] + 5), INK)


def bounds(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest x and y of all finite points [..., 2]; zeros without any."""
    finite = points.reshape(-1, 2)[np.isfinite(points).all(axis=-1).reshape(-1)]
    if not len(finite):
        return np.zeros(2), np.zeros(2)
    return finite.min(axis=0), finite.max(axis=0)


def _shades(one: np.ndarray) -> np.ndarray:
    """A map stretched to 0..1 between its least and greatest value."""
    low, high = float(one.min()), float(one.max())
    return (one - low) / (high - low) if high > low else np.zeros_like(one)


def _coded(frame: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """With a palette of its own: 168 colors for the pictures inside `box`, 88 for what is around.

    Median cut is the better one for pictures (of 6 bits a channel six times as fast as of 8), but
    it gives nothing to the few pixels of a dot or a letter: these are left to the octree.
    """
    coarse = frame.crop(box).point([value & 0xFC | 2 for value in range(256)] * 3)
    inner = coarse.quantize(PICTURE_CODES, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    outer = frame.copy()
    outer.paste(PAPER, box)
    outer = outer.quantize(
        CODES - PICTURE_CODES, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
    )
    codes = np.asarray(outer) + np.uint8(PICTURE_CODES)
    codes[box[1] : box[3], box[0] : box[2]] = np.asarray(inner)
    coded = Image.fromarray(codes)
    first = (inner.getpalette() or [])[: 3 * PICTURE_CODES]
    coded.putpalette(first + [0] * (3 * PICTURE_CODES - len(first)) + (outer.getpalette() or []))
    return coded


def _grown(colors: np.ndarray, size: tuple[int, int]) -> Image.Image:
    picture = Image.fromarray(np.rint(colors).astype(np.uint8))
    return picture.resize(size, Image.Resampling.BICUBIC)
