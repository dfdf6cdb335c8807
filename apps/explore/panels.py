"""The panel beside the map: what is selected, one image and its neighbors, or your own photo."""

import html
from dataclasses import dataclass, field

import numpy as np
import streamlit as st

from dino_core.gallery.selection import select, shares
from explore import grid, photo, state
from explore.here import Here
from explore.opened import Opened

NEIGHBORS_SHOWN = 18
BARS = 6  # labels with a bar of their own
PREVIEW_SIDE = 640  # pixels


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
        key="tab",
        label_visibility="collapsed",
        width="stretch",
    )
    if tab == state.PHOTO:
        return _photo(here, opened, color, map_name)
    row = state.picked(opened)
    if row is not None:
        return _one_image(opened, row, color)
    _many_images(opened, color, map_name)
    return Shown()


# -- many images ------------------------------------------------------------------------------


def _many_images(opened: Opened, color: str, map_name: str) -> None:
    """The selection, or everything: how many, of which labels, and their thumbnails."""
    selection = state.selection()
    if selection:
        x, y = opened.xy(map_name)
        rows = select(x, y, opened.coloring(color).codes, selection)
        title = f"{len(rows):,} selected" if len(rows) else "Nothing selected"
    else:
        rows = np.arange(len(opened.labels))
        title = f"All {len(rows):,} images" if len(rows) else "No images"
    st.html(f"<h2>{title}</h2>" + _facts(opened, whole=not selection))
    if len(rows) == 0:
        st.caption(_nothing(opened))
        return
    if selection:  # of all images, the legend tells it already
        _bars(opened, rows)
    mixed = rows[np.argsort(opened.rank[rows])]
    grid.show(opened, mixed, key="grid", color=color, pager="p")


def _facts(opened: Opened, *, whole: bool) -> str:
    if not whole:
        return ""
    info = opened.gallery.info
    model = html.escape(info.model.rsplit("/", 1)[-1])
    facts = [f"features of <b title='{html.escape(info.model)}'>{model}</b>"]
    if info.classes:
        facts.insert(0, f"{len(info.classes):,} classes")
    if info.quarantined:
        facts.append(f"{info.quarantined:,} files could not be read (quarantine.jsonl says why)")
    hint = "Click a point or a thumbnail for its neighbors; lasso a group with Shift-drag."
    missing = opened.gallery.images_missing()
    warning = f"<p class='warning'>{html.escape(missing)}</p>" if missing else ""
    return f"<p class='facts'>{' · '.join(facts)}<br>{hint}</p>{warning}"


def _nothing(opened: Opened) -> str:
    if len(opened.labels) == 0:
        return "This gallery is empty: none of its files could be read as an image."
    return "There is no point inside. Draw around a group of points, or clear the selection."


def _bars(opened: Opened, rows: np.ndarray) -> None:
    """Which labels the rows have, as bars."""
    if "label" not in opened.columns:
        return
    coloring = opened.coloring("label")
    names = [name for name, _ in coloring.entries]
    pairs = dict(zip(names, _pairs(opened, "label"), strict=True))
    lines = [
        f"<li><span>{html.escape(name)}</span><i style='--share:{share:.4f};"
        f"--color:{pairs.get(name, 'var(--d-line-strong)')}'></i>"
        f"<b>{_percent(share)}</b></li>"
        for name, _, share in shares(opened.labels.iloc[rows], BARS)
    ]
    st.html(f"<ul class='shares' aria-label='Labels'>{''.join(lines)}</ul>")


def _percent(share: float) -> str:
    return "&lt;1%" if 0 < share < 0.005 else f"{share:.0%}"


def _pairs(opened: Opened, column: str) -> list[str]:
    """The colors of a column's codes, each for both themes."""
    coloring = opened.coloring(column)
    both = zip(coloring.colors(dark=False), coloring.colors(dark=True), strict=True)
    return [f"light-dark({light},{dark})" for light, dark in both]


# -- one image --------------------------------------------------------------------------------


def _one_image(opened: Opened, row: int, color: str) -> Shown:
    """An image, what is known of it, and its nearest neighbors (computed with the gallery)."""
    back = "the selection" if state.selection() else "all images"
    st.button(f"← Back to {back}", on_click=state.pick, args=(opened, None), type="tertiary")
    facts = opened.gallery.images.iloc[row]
    st.image(str(opened.gallery.thumbnail(row, PREVIEW_SIDE)), width="stretch")
    name = _label(opened, row)
    title = name if name is not None else str(facts["id"]).rsplit("/", 1)[-1]
    lines = [f"{facts['width']} × {facts['height']} px"]
    if isinstance(facts["split"], str):
        lines.append(f"split {facts['split']}")
    name_on_disk = html.escape(str(facts["id"]))
    st.html(
        f"<h2>{html.escape(title)}</h2><p class='facts'><code>{name_on_disk}</code><br>"
        f"{html.escape(' · '.join(lines))}</p>"
    )
    rows, scores = opened.gallery.neighbors()
    near, how_near = rows[row][:NEIGHBORS_SHOWN], scores[row][:NEIGHBORS_SHOWN]
    if len(near) == 0:
        st.caption("There is no other image to compare it with.")
        return Shown()
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
