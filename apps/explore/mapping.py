"""The map of a gallery as pages draw it, and the pickers of what it shows."""

from collections.abc import Sequence
from typing import Any

from dino_core.gallery.selection import Coloring
from explore import address, components, fallback, state
from explore.here import Here
from explore.opened import Opened
from explore.server import codes_url


def pickers(here: Here) -> tuple[str, str]:
    """The column that colors the map and the map to draw, picked in the bar."""
    assert here.opened is not None
    with here.bar:
        color = address.choice(
            "Color", "color", here.opened.columns, on_change=_drop_filter, width=190,
            format_func=_capitalized,
        )  # fmt: skip
        name = address.choice(
            "Map", "map", maps(here.opened), on_change=_drop_region, width=110,
            format_func=str.upper,
        )  # fmt: skip
    return color, name


def maps(opened: Opened) -> list[str]:
    """The gallery's maps, the usual UMAP first."""
    return sorted(opened.gallery.info.maps, key=lambda name: name != "umap")


def _capitalized(name: str) -> str:
    return name[:1].upper() + name[1:]


def _drop_filter() -> None:
    """Codes of one column mean nothing in another; what was drawn around stays."""
    address.put(shown=None)
    state.follow({"color"})


def _drop_region() -> None:
    """A region belongs to one map's coordinates; the filter stays."""
    address.put(region=None)
    state.follow({"map"})


def draw(
    here: Here,
    color: str,
    map_name: str,
    *,
    lit: Sequence[int] = (),
    query: Sequence[float] | None = None,
    key: str = state.MAP_KEY,
    **props: Any,
) -> None:
    """The map, colored by a column; `lit`: rows drawn large; `query`: [x, y] of a new image.

    Clicks and lassos go to the address (`state.on_map`). `props`: further ones of scatter.js.
    """
    opened = here.opened
    assert opened is not None
    if fallback.wanted():
        xy, coloring = opened.xy(map_name), opened.coloring(color)
        fallback.draw(opened, xy, coloring, lit=lit, query=query, key=f"{key}_plain")
        return
    usual = {
        "points": f"explorer/points/{opened.key}/{map_name}",
        "codes": codes_url(opened, color),
        "thumbs": f"explorer/image/{opened.key}",
        "info": f"explorer/info/{opened.key}",
        "panel": components.PANEL,
        "selection": state.selection_message(),
        "picked": state.picked(opened),
        "lit": list(map(int, lit)),
        "query": None if query is None else list(map(float, query)),
    }
    components.scatter(
        key=key,
        data=usual | colors_of(opened.coloring(color)) | props,
        on_pick_change=lambda: state.on_map(opened, "pick", key),
        on_select_change=lambda: state.on_map(opened, "select", key),
        on_missing_change=fallback.want,
    )


def colors_of(coloring: Coloring) -> dict[str, Any]:
    """The legend and the colors of a column, as scatter.js takes them."""
    return {
        "legend": {
            "title": coloring.title,
            "kind": coloring.kind,
            "entries": coloring.entries,
            "low": coloring.low,
            "high": coloring.high,
        },
        "colors": {"light": coloring.colors(dark=False), "dark": coloring.colors(dark=True)},
    }
