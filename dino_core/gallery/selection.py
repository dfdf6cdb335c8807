"""What a map shows and what was picked on it: colors, polygons, shares, pages. No app, no model.

The browser draws the map and sends back polygons in data coordinates; which points lie inside is
decided here, by the same even-odd rule as `apps/assets/geometry.js`. So a selection of a million
points costs a few hundred bytes on the wire, and can be kept, linked to, replayed and tested.

    coloring = color_by(images["label"])
    rows = select(x, y, coloring.codes, Selection(polygons=(((0, 0), (1, 0), (0, 1)),)))
    shares(images["label"].iloc[rows])        # [("dog", 12, 0.6), ...]
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from dino_core.gallery.regions import Polygon, read_polygons, spelled

NO_VALUE = "no value"
OTHER = "other"
MAX_CATEGORIES = 1024  # more distinct values than this: the rarest share one code
RAMP_STEPS = 64  # codes of a numeric column
PALETTE_HUES = 12  # hues that can still be told apart at one lightness

Color = str  # "#rrggbb"


@dataclass(frozen=True)
class Selection:
    """What was picked on a map: inside any of `polygons` (data coordinates; () for everywhere) and
    with a code among `shown` (empty for any). An empty selection selects nothing.
    """

    polygons: tuple[Polygon, ...] = ()
    shown: frozenset[int] = frozenset()

    @classmethod
    def from_browser(cls, message: Mapping[str, Any] | None) -> "Selection":
        """Read what scatter.js sent; anything malformed counts as nothing selected.

        One `polygon` is read as well: links and sessions hold messages of before there were many.
        """
        message = message or {}
        try:
            drawn = message.get("polygons") or [message.get("polygon") or ()]
            polygons = tuple(tuple((float(x), float(y)) for x, y in one) for one in drawn)
            shown = frozenset(int(code) for code in message.get("shown") or ())
        except (TypeError, ValueError):
            return cls()
        if not all(np.isfinite(np.array(one)).all() for one in polygons):
            return cls()
        return cls(tuple(one for one in polygons if len(one) > 2), shown)

    def to_text(self) -> str:
        """The polygons, for an address: letters, digits, `-` and `_`; "" for none. See `spelled`.

        Three letters a coordinate where they were rounded as scatter.js does it.
        """
        return spelled(self.polygons)

    @classmethod
    def from_text(cls, text: str) -> "Selection":
        """What `to_text` wrote, exactly; anything damaged counts as nothing selected."""
        return cls(read_polygons(text))

    def __bool__(self) -> bool:
        return bool(self.polygons or self.shown)


@dataclass(frozen=True)
class Coloring:
    """One column as colors. `codes` are uint8 (uint16 beyond 256 codes) [n].

    `kind` "categories": code i means `entries[i]`, a (name, count) with the most frequent first,
    and has the color at `places[i]`, which does not change with the counts.
    `kind` "numbers": codes 0..RAMP_STEPS-1 run from `low` to `high`; one more code is NO_VALUE.
    """

    title: str
    kind: str
    codes: np.ndarray
    entries: list[tuple[str, int]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    low: float = 0.0
    high: float = 0.0

    def colors(self, *, dark: bool) -> list[Color]:
        """One color per code, for a light or a dark page."""
        if self.kind == "numbers":
            return [*ramp_colors(RAMP_STEPS, dark=dark), gray(dark=dark)]
        named = category_colors(1 + max(self.places, default=0), dark=dark)
        colors = [named[place] for place in self.places]
        return colors + [gray(dark=dark)] * (len(self.entries) - len(colors))


def color_by(values: pd.Series, title: str | None = None) -> Coloring:
    """Color a column: numbers with many values by a ramp, everything else by category."""
    title = title if title is not None else str(values.name)
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if is_number and values.nunique() > PALETTE_HUES:
        return _color_numbers(values.to_numpy(np.float64, na_value=np.nan), title)
    return _color_categories(values, title)


def _color_numbers(values: np.ndarray, title: str) -> Coloring:
    known = np.isfinite(values)
    low, high = float(values[known].min()), float(values[known].max())
    place = (values[known] - low) / ((high - low) or 1.0)
    codes = np.full(len(values), RAMP_STEPS, np.uint8)
    codes[known] = np.minimum(place * RAMP_STEPS, RAMP_STEPS - 1).astype(np.uint8)
    return Coloring(title, "numbers", codes, low=low, high=high)


def _color_categories(values: pd.Series, title: str) -> Coloring:
    names = values.astype("string")
    counts = names.value_counts(dropna=True)
    kept = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_CATEGORIES]
    places = _places([str(name) for name, _ in kept], values)
    entries = [(str(name), int(count)) for name, count in kept]
    code_of = {name: code for code, (name, _) in enumerate(entries)}
    codes = names.map(code_of).astype("Int64")
    other = int(counts.sum()) - sum(count for _, count in entries)
    if other:
        codes = codes.mask(codes.isna() & names.notna(), len(entries))
        entries.append((OTHER, other))
    missing = int(names.isna().sum())
    if missing:
        codes = codes.fillna(len(entries))
        entries.append((NO_VALUE, missing))
    dtype = np.uint8 if len(entries) <= 256 else np.uint16
    return Coloring(title, "categories", codes.to_numpy(dtype), entries, places)


def _places(names: list[str], values: pd.Series) -> list[int]:
    """Each name's place among the colors, so that the same names have the same ones everywhere.

    By the alphabet, not by frequency, which an update changes and which differs between galleries.
    Categories keep their own order: a cluster's color is its number's, whatever merges or renames.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        order = [str(name) for name in values.cat.categories]
    else:
        order = sorted(names)
    place = {name: at for at, name in enumerate(order)}
    return [place[name] for name in names]


def select(x: np.ndarray, y: np.ndarray, codes: np.ndarray, selection: Selection) -> np.ndarray:
    """Rows of the selected points, int64 ascending. `x`, `y` [n]; points with NaN are never in."""
    if not selection:
        return np.empty(0, np.int64)
    chosen = np.isfinite(x) & np.isfinite(y)
    if selection.shown:
        chosen &= np.isin(codes, list(selection.shown))
    rows = np.flatnonzero(chosen)
    if not selection.polygons:
        return rows
    x, y = x[rows], y[rows]
    inside = np.zeros(len(rows), bool)
    for polygon in selection.polygons:
        inside |= points_in_polygon(x, y, polygon)
    return rows[inside]


def points_in_polygon(
    x: np.ndarray, y: np.ndarray, polygon: Sequence[tuple[float, float]]
) -> np.ndarray:
    """Even-odd rule: bool [n]. A crossing counts for y in [lower, upper), so none counts twice."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    corners = np.asarray(polygon, np.float64)
    inside = np.zeros(len(x), bool)
    (left, lower), (right, upper) = corners.min(0), corners.max(0)
    near = np.flatnonzero((x >= left) & (x <= right) & (y >= lower) & (y <= upper))
    near = near[np.argsort(y[near])]  # by height: a side concerns one stretch of them
    x, y = x[near], y[near]
    odd = np.zeros(len(near), bool)
    for (x_i, y_i), (x_j, y_j) in zip(corners, np.roll(corners, 1, axis=0), strict=True):
        if y_i == y_j:
            continue
        at = slice(*np.searchsorted(y, (min(y_i, y_j), max(y_i, y_j))))
        odd[at] ^= x[at] < (x_j - x_i) * (y[at] - y_i) / (y_j - y_i) + x_i
    inside[near] = odd
    return inside


def shares(labels: pd.Series, top: int | None = None) -> list[tuple[str, int, float]]:
    """(name, count, share of all) per value, most frequent first; beyond `top` summed as OTHER."""
    counts = labels.astype("string").fillna(NO_VALUE).value_counts()
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    if top is not None and len(ranked) > top:
        ranked = [*ranked[:top], (OTHER, sum(count for _, count in ranked[top:]))]
    total = max(len(labels), 1)
    return [(str(name), int(count), int(count) / total) for name, count in ranked]


def page_of(rows: np.ndarray, page: int, size: int) -> tuple[np.ndarray, int, int]:
    """(rows on that page, the page clamped to what exists, number of pages, at least 1)."""
    pages = max(1, math.ceil(len(rows) / size))
    page = min(max(page, 0), pages - 1)
    return rows[page * size : (page + 1) * size], page, pages


def category_colors(count: int, *, dark: bool) -> list[Color]:
    """`count` colors, neighbors in the list far apart in hue, and steady under a larger `count`.

    Up to 12 hues at one lightness, then the same hues again lighter or darker, and so on. In OKLCH,
    where equal steps look equal (Ottosson, "A perceptual color space for image processing", 2020).
    """
    lightness = (0.74, 0.60, 0.86, 0.66) if dark else (0.62, 0.45, 0.76, 0.54)
    order = [0, 7, 4, 10, 2, 8, 5, 1, 11, 6, 3, 9]  # of the hues: far apart first
    colors = []
    for i in range(count):
        ring, hue = divmod(i, PALETTE_HUES)
        angle = 275.0 + 360.0 * order[hue] / PALETTE_HUES + 15.0 * (ring % 2)
        alternate = 0.05 if hue % 2 else -0.03
        colors.append(_oklch(lightness[ring % 4] + alternate, 0.155, angle))
    return colors


def ramp_colors(steps: int, *, dark: bool) -> list[Color]:
    """A sequential ramp that ends with the strongest contrast to the page."""
    ends = ((0.40, 285.0), (0.90, 100.0)) if dark else ((0.88, 100.0), (0.34, 285.0))
    (l_0, h_0), (l_1, h_1) = ends
    where = np.linspace(0.0, 1.0, steps)
    return [_oklch(l_0 + t * (l_1 - l_0), 0.13, h_0 + t * (h_1 - h_0)) for t in where]


def gray(*, dark: bool) -> Color:
    """The color of points without a value."""
    return "#5b6680" if dark else "#a3adc2"


def _oklch(lightness: float, chroma: float, hue: float) -> Color:
    """OKLCH (hue in degrees) as sRGB hex; chroma is lowered until the color exists in sRGB."""
    angle = math.radians(hue)
    while True:
        a, b = chroma * math.cos(angle), chroma * math.sin(angle)
        l_ = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
        m_ = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
        s_ = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
        linear = (
            4.0767416621 * l_ - 3.3077115913 * m_ + 0.2309699292 * s_,
            -1.2684380046 * l_ + 2.6097574011 * m_ - 0.3413193965 * s_,
            -0.0041960863 * l_ - 0.7034186147 * m_ + 1.7076147010 * s_,
        )
        if chroma < 1e-3 or all(-1e-4 <= value <= 1.0001 for value in linear):
            return "#" + "".join(f"{_srgb_byte(value):02x}" for value in linear)
        chroma *= 0.97


def _srgb_byte(linear: float) -> int:
    """A linear-light value in [0, 1] with the sRGB curve, as 0..255."""
    linear = min(max(linear, 0.0), 1.0)
    curved = 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
    return round(255 * curved)
