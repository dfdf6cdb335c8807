"""The map for a browser without WebGL2: Plotly's, as SVG, of a sample of the points.

What is drawn around selects among ALL points, by the same rule as on the other map; only what is
drawn, and can be clicked, is a sample.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from dino_core.gallery.regions import Polygon
from dino_core.gallery.selection import NO_VALUE, Coloring, Selection, select
from dino_core.rng import permutation
from explore import state
from explore.opened import Opened

MOST = 20_000  # points that a browser draws as SVG within a second or two
MOST_IN_LEGEND = 40  # categories; more are told by pointing at a point
CORNERS = 120  # of a polygon: it goes into the page's address
GRID = 20_000  # steps across the map that corners are rounded to
SIZE = (10.0, 3.0)  # pixels of a point where there are few and where there are many
MARK = "#e11d48"  # of what is picked or lit
SEEN = "WebGL2 is missing"


def want() -> None:
    """From now on draw this visitor's maps so: for a callback of scatter.js's "missing"."""
    st.session_state[SEEN] = True


def wanted() -> bool:
    """Whether this visitor's browser said that it has no WebGL2."""
    return bool(st.session_state.get(SEEN))


def draw(
    opened: Opened,
    xy: tuple[np.ndarray, np.ndarray],
    coloring: Coloring,
    *,
    lit: Sequence[int] = (),
    query: Sequence[float] | None = None,
    key: str = "plain_map",
) -> None:
    """The map; clicks, lassos and boxes go to the address as those of scatter.js do.

    `xy`: float32 [n] each; `lit`: rows drawn large; `query`: [x, y] of a new image.
    """
    picked, chosen = state.picked(opened), state.selection()
    marked = [*map(int, lit), *([] if picked is None else [picked])]
    rows = sampled(*xy, marked)
    st.html(f"<p class='warning'>{sentence(len(rows), len(xy[0]))}</p>")
    dark = st.context.theme.type == "dark"
    names = [html.escape(opened.id(int(row)).rsplit("/", 1)[-1]) for row in rows]
    x, y = (values[rows] for values in xy)
    drawn = Drawn(rows, x, y, coloring.codes[rows], np.array(names, object))
    st.plotly_chart(
        figure(drawn, coloring, chosen, lit=marked, query=query, dark=dark),
        key=key,
        on_select=lambda: _selected(opened, xy, key),
        config={"scrollZoom": True, "displaylogo": False},
        height=620,
    )


def sentence(drawn: int, images: int) -> str:
    """Why this map looks otherwise, and what it leaves out."""
    why = "This browser has no WebGL2, so the map is drawn more simply, without thumbnails."
    if drawn == images:
        return why
    return (
        f"{why} It shows {drawn:,} of {images:,} points, always the same ones; lasso and box "
        "select among all of them."
    )


def sampled(x: np.ndarray, y: np.ndarray, marked: Iterable[int] = ()) -> np.ndarray:
    """The rows to draw, int64 ascending: MOST of those that have a place, and the marked ones."""
    placed = np.isfinite(x) & np.isfinite(y)
    order = permutation(len(x), "explorer", "plain map")
    rows = order[placed[order]][:MOST]
    own = np.array([row for row in marked if 0 <= row < len(x) and placed[row]], np.int64)
    return np.union1d(rows, own)


# -- the figure -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """The points of a sample, n of them."""

    rows: np.ndarray  # int64 [n]
    x: np.ndarray
    y: np.ndarray
    codes: np.ndarray
    names: np.ndarray  # of their images, [n] objects

    @property
    def size(self) -> float:
        """Pixels of a point: smaller in a crowd."""
        return max(SIZE[1], SIZE[0] - 2 * math.log10(max(len(self.rows), 100) / 100))

    def trace(self, which: np.ndarray, name: str, marker: dict[str, Any], **how: Any) -> go.Scatter:
        """Some of them, bool [n], under a name of the legend; `marker` and `how` as Plotly's."""
        return go.Scatter(
            x=self.x[which],
            y=self.y[which],
            customdata=self.rows[which],
            text=self.names[which],
            mode="markers",
            name=html.escape(name),
            marker={"size": self.size, "opacity": 0.85} | marker,
            hovertemplate=f"<b>{html.escape(name)}</b><br>%{{text}}<extra></extra>",
            **how,
        )


def figure(
    drawn: Drawn,
    coloring: Coloring,
    chosen: Selection,
    *,
    lit: Sequence[int] = (),
    query: Sequence[float] | None = None,
    dark: bool = False,
) -> go.Figure:
    """The sample in colors; what `chosen` leaves out is faint, the rows `lit` are ringed."""
    plain = np.ones(len(drawn.rows), bool)
    if chosen:
        plain[:] = False
        plain[select(drawn.x, drawn.y, drawn.codes, chosen)] = True
    traces = []
    if not plain.all():
        faint = {"color": "#8a94a8", "opacity": 0.25}
        traces.append(drawn.trace(~plain, "not selected", faint, showlegend=False))
    of_kind = _numbers if coloring.kind == "numbers" else _categories
    traces += of_kind(drawn, coloring, plain, dark)
    large = np.isin(drawn.rows, np.array(lit, np.int64))
    if large.any():
        line = {"width": 2, "color": MARK}
        ring = {"size": drawn.size + 8, "color": "rgba(0,0,0,0)", "line": line, "opacity": 1}
        traces.append(drawn.trace(large, "marked", ring, showlegend=False))
    if query is not None:
        traces.append(_star(query))
    return go.Figure(traces, _layout(coloring, chosen))


def _categories(
    drawn: Drawn, coloring: Coloring, plain: np.ndarray, dark: bool
) -> list[go.Scatter]:
    """A trace for each, so that it stands in the legend; for many of them one for all."""
    colors, codes = coloring.colors(dark=dark), drawn.codes
    if len(coloring.entries) > MOST_IN_LEGEND:
        marker = {"color": [colors[code] for code in codes[plain]]}
        return [drawn.trace(plain, coloring.title, marker, showlegend=False)]
    return [
        drawn.trace(plain & (codes == code), name, {"color": colors[code]}, showlegend=True)
        for code, (name, _) in enumerate(coloring.entries)
        if (plain & (codes == code)).any()
    ]


def _numbers(drawn: Drawn, coloring: Coloring, plain: np.ndarray, dark: bool) -> list[go.Scatter]:
    """Those with a value on a ramp, those without one gray."""
    *colors, gray = coloring.colors(dark=dark)
    low, high = coloring.low, coloring.high
    known = plain & (drawn.codes < len(colors))
    values = low + (drawn.codes[known] + 0.5) * (high - low) / len(colors)
    marker = {
        "color": values,
        "cmin": low,
        "cmax": high,
        "colorscale": [[place / (len(colors) - 1), color] for place, color in enumerate(colors)],
        "colorbar": {"title": html.escape(coloring.title), "thickness": 12, "outlinewidth": 0},
    }
    traces = [drawn.trace(known, coloring.title, marker, showlegend=False)]
    if (plain & ~known).any():
        traces.append(drawn.trace(plain & ~known, NO_VALUE, {"color": gray}, showlegend=False))
    return traces


def _star(query: Sequence[float]) -> go.Scatter:
    return go.Scatter(
        x=[query[0]],
        y=[query[1]],
        mode="markers",
        marker={"symbol": "star", "size": 18, "color": MARK},
        showlegend=False,
        hovertemplate="your photo<extra></extra>",
    )


def _layout(coloring: Coloring, chosen: Selection) -> dict[str, Any]:
    bare = {"showgrid": False, "zeroline": False, "showticklabels": False}
    return {
        "xaxis": bare,
        "yaxis": bare | {"scaleanchor": "x"},
        "margin": {"l": 8, "r": 8, "t": 44, "b": 8},  # at the top are Plotly's tools
        "dragmode": "pan",  # with lasso and box Streamlit tells of no clicks
        "legend": {"orientation": "h", "y": 0, "yanchor": "top", "itemsizing": "constant"},
        "uirevision": "map",  # zoomed as it was when something else changes
        "shapes": [
            {
                "type": "path",
                "path": _path(polygon),
                "line": {"width": 1.5, "dash": "dot", "color": MARK},
            }
            for polygon in chosen.polygons
        ],
    }


def _path(polygon: Polygon) -> str:
    return "M" + "L".join(f"{x:.9g},{y:.9g}" for x, y in polygon) + "Z"


# -- what comes back --------------------------------------------------------------------------


def _selected(opened: Opened, xy: tuple[np.ndarray, np.ndarray], key: str) -> None:
    row, polygons = told(st.session_state[key]["selection"], *xy)
    if row is not None or (not polygons and state.picked(opened) is not None):
        state.pick(opened, row)
    else:
        state.select(replace(state.selection(), polygons=polygons))


def told(
    event: Mapping[str, Any], x: np.ndarray, y: np.ndarray
) -> tuple[int | None, tuple[Polygon, ...]]:
    """What Streamlit says of a selection: the row that was clicked, or the polygons drawn."""
    areas = [_corners(area) for area in event.get("lasso") or ()]
    for area in event.get("box") or ():
        (x0, x1), (y0, y1) = sorted(area["x"]), sorted(area["y"])
        areas.append([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    if areas:
        extent = max(float(np.nanmax(values) - np.nanmin(values)) for values in (x, y))
        return None, tuple(short for area in areas if len(short := shortened(area, extent)) > 2)
    for point in event.get("points") or ():
        row = point.get("customdata")
        row = row[0] if isinstance(row, list) else row
        if isinstance(row, int) and 0 <= row < len(x):
            return row, ()
    return None, ()


def _corners(area: Mapping[str, Any]) -> list[tuple[float, float]]:
    return list(zip(area["x"], area["y"], strict=True))


def shortened(corners: Sequence[tuple[float, float]], extent: float) -> Polygon:
    """At most CORNERS corners of an outline, with few digits, as scatter.js has them."""
    step = math.ceil(len(corners) / CORNERS)
    digits = -math.floor(math.log10(max(extent, 1e-6) / GRID))
    return tuple((round(float(x), digits), round(float(y), digits)) for x, y in corners[::step])
