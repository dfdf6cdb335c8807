"""What this visitor is looking at: kept in the session, and in the address where that is simple.

`?gallery=scenes&color=label&map=umap&image=scenes/000012` opens the same gallery at the same image.
The polygon of a lasso, an uploaded photo and the page of a grid belong to the session alone.
"""

from typing import Any

import streamlit as st

from dino_core.gallery.selection import Selection

IMAGES, PHOTO = "Images", "Your photo"
MAP_KEY = "the_map"


def remember(**values: str | None) -> None:
    """Put values into the page's address; None takes one out."""
    for name, value in values.items():
        if value is None:
            st.query_params.pop(name, None)
        elif st.query_params.get(name) != value:
            st.query_params[name] = value


def from_address(name: str) -> str | None:
    """A value of the page's address."""
    return st.query_params.get(name)


def forget() -> None:
    """Let go of everything that belongs to one gallery."""
    for name in ("picked", "selection", "page", "query", "color", "map"):
        st.session_state.pop(name, None)
    remember(image=None, color=None, map=None)


def picked() -> int | None:
    """The row of the image being looked at."""
    return st.session_state.get("picked")


def pick(row: int | None) -> None:
    """Look at one image, or at none."""
    st.session_state["picked"] = row
    st.session_state["tab"] = IMAGES


def selection() -> Selection:
    """What is selected on the map."""
    return Selection.from_browser(selection_message())


def selection_message() -> dict[str, Any] | None:
    """The same, as the browser sent it: handed back to it so that a reload draws it again."""
    return st.session_state.get("selection")


def page() -> int:
    """Which page of the grid is open, from 0."""
    return st.session_state.get("page", 0)


def on_map(name: str) -> None:
    """A click or a lasso on the map."""
    value = st.session_state[MAP_KEY][name]
    if name == "pick" and isinstance(value, int):
        pick(value)
    elif name == "select" and isinstance(value, dict):
        st.session_state.update(selection=value, page=0, picked=None, tab=IMAGES)


def on_grid(key: str, name: str) -> None:
    """A click on a thumbnail, or on the pager, of the grid with this key."""
    value = st.session_state[key][name]
    if not isinstance(value, int):
        return
    if name == "pick":
        pick(value)
    else:
        st.session_state["page"] = value
