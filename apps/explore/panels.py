"""The panel beside the map: what is selected, one image and its neighbors, or your own photo."""

import html
from dataclasses import dataclass, field

import numpy as np
import streamlit as st

from dino_core.errors import UserError
from dino_core.gallery.selection import select
from explore import address, attention, grid, photo, selected, state, words
from explore.here import Here
from explore.opened import Opened

NEIGHBORS_SHOWN = 18
PREVIEW_SIDE = 640  # pixels
NEIGHBORS, ATTENTION = "Neighbors", "Attention"


@dataclass(frozen=True)
class Shown:
    """What the map lights up: rows, and where an uploaded photo would lie."""

    lit: list[int] = field(default_factory=list)
    query: list[float] | None = None


def show(here: Here, color: str, map_name: str) -> Shown:
    """Draw the panel; returns what the map has to light up."""
    opened = here.opened
    assert opened is not None
    st.session_state.setdefault("tab", state.IMAGES)
    tab = st.segmented_control(
        "Look at",
        [state.IMAGES, state.PHOTO],
        default=st.session_state["tab"],
        required=True,
        key="tab",
        label_visibility="collapsed",
        width="stretch",
    )
    if tab == state.PHOTO:
        return _photo(here, opened, color, map_name)
    row = state.picked(opened)
    if row is not None:
        return _one_image(here, opened, row, color)
    if missing := address.get("image"):
        words.caption(f"This gallery has no image {missing}; it may have been renamed or left out.")
    selected.show(here, _selected_rows(opened, color, map_name), color)
    return Shown()


def _selected_rows(opened: Opened, color: str, map_name: str) -> np.ndarray:
    """The selection, or everything."""
    selection = state.selection()
    if not selection:
        return np.arange(len(opened.labels))
    x, y = opened.xy(map_name)
    return select(x, y, opened.coloring(color).codes, selection)


# -- one image --------------------------------------------------------------------------------


def _one_image(here: Here, opened: Opened, row: int, color: str) -> Shown:
    """An image, what is known of it, its nearest neighbors, and where the model looks in it."""
    back = "the selection" if state.selection() else "all images"
    with st.container(horizontal=True, horizontal_alignment="distribute"):
        st.button(f"← Back to {back}", on_click=state.pick, args=(opened, None), type="tertiary")
        st.button("Search from here", on_click=address.go, args=("neighbors",), type="tertiary")
    facts = opened.gallery.images.iloc[row]
    name = _label(opened, row)
    title = name if name is not None else str(facts["id"]).rsplit("/", 1)[-1]
    view = address.segments("Show", "show", [NEIGHBORS, ATTENTION], width="stretch")
    if view != ATTENTION or not attention.show(here, row):
        st.image(str(opened.gallery.thumbnail(row, PREVIEW_SIDE)), width="stretch")
    lines = [f"{facts['width']} × {facts['height']} px"]
    if isinstance(facts["split"], str):
        lines.append(f"split {facts['split']}")
    name_on_disk = html.escape(str(facts["id"]))
    st.html(
        f"<h2>{html.escape(title)}</h2><p class='facts'><code>{name_on_disk}</code><br>"
        f"{html.escape(' · '.join(lines))}</p>"
    )
    try:
        rows, scores = opened.gallery.neighbors()
    except UserError as error:  # the map and the image are there without them
        words.error(error)
        return Shown()
    near, how_near = rows[row][:NEIGHBORS_SHOWN], scores[row][:NEIGHBORS_SHOWN]
    if len(near) == 0:
        st.caption("There is no other image to compare it with.")
        return Shown()
    if view == NEIGHBORS:
        st.html(f"<h3>Nearest neighbors {_agreement(opened, name, near)}</h3>")
        grid.show(opened, near, key="neighbors", color=color, scores=how_near)
    return Shown(lit=[int(other) for other in near])


def _label(opened: Opened, row: int) -> str | None:
    label = opened.labels.iloc[row]
    return label if isinstance(label, str) else None


def _agreement(opened: Opened, name: str | None, near: np.ndarray) -> str:
    """How many of the neighbors have the same label, where there are labels."""
    if name is None:
        return ""
    same = int((opened.labels.iloc[near] == name).fillna(False).sum())
    return f"<small>{same} of {len(near)} are {html.escape(name)}</small>"


# -- your own photo ---------------------------------------------------------------------------


def _photo(here: Here, opened: Opened, color: str, map_name: str) -> Shown:
    """Upload an image; its neighbors, and where it would lie on the map."""
    data = photo.ask()
    if data is None:
        st.html(
            "<p class='facts'>Its nearest images in this gallery appear here, and a star shows "
            "where it would lie on the map. The photo is forgotten when this page is closed.</p>"
        )
        return Shown()
    found = photo.search(here, map_name, data, NEIGHBORS_SHOWN)
    if found is None:
        return Shown()
    st.image(data, width="stretch")
    st.html("<h3>Nearest in the gallery</h3>")
    grid.show(opened, found.hits.rows, key="hits", color=color, scores=found.hits.scores)
    return Shown(lit=found.hits.rows.tolist(), query=found.xy)
