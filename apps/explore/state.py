"""What this visitor has picked: an image, and a selection on the map. Both live in the address.

`?gallery=scenes&color=label&map=umap&image=scenes/000012` opens the same gallery at the same image;
`region` is what was drawn around on the map, `shown` the codes of the color that the legend leaves.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import streamlit as st

from dino_core.gallery.selection import Selection
from explore import address
from explore.opened import Opened

MAP_KEY = "the_map"
IMAGES, PHOTO = "Images", "Your photo"


def follow(changed: set[str]) -> None:
    """Take up what the visitor changed in the address (see `address.begin`)."""
    if changed & {"region", "shown", "color", "map", "gallery"}:
        st.session_state["stamp"] = st.session_state.get("stamp", 0) + 1  # newer than the browser's
    if "image" in changed:
        st.session_state["tab"] = IMAGES


def forget() -> None:
    """Let go of everything that belongs to one gallery."""
    st.session_state.pop("query", None)
    kept = {name: None for name in address.COMMON if name not in ("page", "gallery", "model")}
    address.change(**kept)
    follow({"gallery"})


def picked(opened: Opened) -> int | None:
    """The row of the image being looked at."""
    return opened.row(address.get("image"))


def pick(opened: Opened, row: int | None) -> None:
    """Look at one image, or at none: for a callback."""
    id = None if row is None or row >= len(opened.labels) else opened.id(row)
    st.session_state["tab"] = IMAGES
    if address.page() in ("map", "neighbors", "compare"):  # they show one themselves
        address.put(image=id)
    else:
        address.go("map", image=id)


def selection() -> Selection:
    """What is selected on the map."""
    shown = map(address.whole_of, (address.get("shown") or "").split(","))
    codes = frozenset(code for code in shown if code is not None)
    return replace(Selection.from_text(address.get("region") or ""), shown=codes)


def selection_message() -> dict[str, Any]:
    """The same as the map in the browser takes it, so that a reload draws it again."""
    chosen = selection()
    return {
        "polygons": [[list(corner) for corner in polygon] for polygon in chosen.polygons],
        "shown": sorted(chosen.shown),
        "stamp": st.session_state.get("stamp", 0),
    }


def select(chosen: Selection) -> None:
    """Select on the map: for a callback."""
    shown = ",".join(str(code) for code in sorted(chosen.shown))
    address.put(region=chosen.to_text() or None, shown=shown or None, image=None, p=None)
    st.session_state["tab"] = IMAGES


def on_map(opened: Opened, name: str, key: str = MAP_KEY) -> None:
    """A click or a lasso on the map."""
    value = st.session_state[key][name]
    if name == "pick" and isinstance(value, int) and 0 <= value < len(opened.labels):
        pick(opened, value)
    elif name == "select" and isinstance(value, dict):
        stamp = value.get("stamp")
        st.session_state["stamp"] = stamp if isinstance(stamp, int) else 0
        select(Selection.from_browser(value))


def on_grid(opened: Opened, key: str, on_pick: Callable[[int], None] | None = None) -> None:
    """A click on a thumbnail of the grid with this key."""
    value = st.session_state[key]["pick"]
    if isinstance(value, int) and 0 <= value < len(opened.labels):
        if on_pick is None:
            pick(opened, value)
        else:
            on_pick(value)


def on_page(key: str, pager: str | None) -> None:
    """A click on the pager of the grid with this key."""
    value = st.session_state[key]["page"]
    if isinstance(value, int) and pager is not None:
        address.put(**{pager: str(value + 1) if value > 0 else None})
