"""The panel beside the map: what is selected, one image and its neighbors, or your own photo."""

import hashlib
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from dino_core.catalog import MAX_PIXELS
from dino_core.data import BadImage, decode_image
from dino_core.errors import UserError
from dino_core.gallery.selection import page_of, select, shares
from explore import components, loading, picking, state
from explore.opened import Opened
from explore.options import options

if TYPE_CHECKING:
    from dino_core.models import Model

PAGE_SIZE = 24  # thumbnails
NEIGHBORS_SHOWN = 18
BARS = 6  # labels with a bar of their own
PREVIEW_SIDE = 640  # pixels
UPLOAD_TYPES = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"]


@dataclass(frozen=True)
class Shown:
    """What the map lights up: rows, and where an uploaded photo would lie."""

    lit: list[int] = field(default_factory=list)
    query: list[float] | None = None


def show(opened: Opened, model: str, color: str, map_name: str) -> Shown:
    """Draw the panel; returns what the map has to light up."""
    st.session_state.setdefault("tab", state.IMAGES)
    tab = st.segmented_control(
        "Look at",
        [state.IMAGES, state.PHOTO],
        key="tab",
        label_visibility="collapsed",
        width="stretch",
    )
    if tab == state.PHOTO:
        return _photo(opened, model, color, map_name)
    row = state.picked()
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
    on_page, page, pages = page_of(mixed, state.page(), PAGE_SIZE)
    first = page * PAGE_SIZE
    note = f"{first + 1:,}–{first + len(on_page):,} of {len(rows):,}"
    _grid(opened, on_page, color, key="grid", page=page, pages=pages, note=note)


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
    st.button(f"← Back to {back}", on_click=state.pick, args=(None,), type="tertiary")
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
    _grid(opened, near, color, key="neighbors", scores=how_near)
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


def _photo(opened: Opened, model: str, color: str, map_name: str) -> Shown:
    """Upload an image; its neighbors, and where it would lie on the map."""
    st.file_uploader(
        "A photo of your own",
        type=UPLOAD_TYPES,
        key="upload",
        on_change=_keep_photo,
        label_visibility="collapsed",
    )
    data = st.session_state.get("photo")
    if data is None:
        st.html(
            "<p class='facts'>Its nearest images in this gallery appear here, and a star shows "
            "where it would lie on the map. The photo is forgotten when this page is closed.</p>"
        )
        return Shown()
    found = _search(opened, model, map_name, data)
    if found is None:
        return Shown()
    st.image(data, width="stretch")
    st.html("<h3>Nearest in the gallery</h3>")
    _grid(opened, found["rows"], color, key="hits", scores=found["scores"])
    return Shown(lit=[int(row) for row in found["rows"]], query=found["xy"])


def _keep_photo() -> None:
    """Hold on to the photo: Streamlit drops an upload while another tab is shown."""
    uploaded = st.session_state["upload"]
    st.session_state["photo"] = None if uploaded is None else uploaded.getvalue()


def _search(opened: Opened, spec: str, map_name: str, data: bytes) -> dict[str, Any] | None:
    """Rows, scores and place of an uploaded image; None with the reason on the page."""
    key = (opened.key, spec, map_name, hashlib.sha256(data).hexdigest())
    found = st.session_state.get("query")
    if found is not None and found["key"] == key:
        return found
    try:
        picking.check_model(spec)
        image = decode_image(data, MAX_PIXELS)
        model = _model(spec)
        if model is None:
            return None
        hits = opened.gallery.search(image, NEIGHBORS_SHOWN, model=model)
        place = opened.gallery.place(image, map_name, model=model)
    except BadImage as error:
        st.error(f"This file cannot be read as an image: {error.reason}.")
        return None
    except UserError as error:
        st.error(str(error))
        return None
    xy = [float(place["x"].iloc[0]), float(place["y"].iloc[0])]
    found = {"key": key, "rows": hits.rows, "scores": hits.scores, "xy": xy}
    st.session_state["query"] = found
    return found


def _model(spec: str) -> "Model | None":
    """The model; None while it is loading or when it cannot be loaded, which the page then says."""
    loaded = loading.load(spec, options().root.resolve())
    if loaded.waiting:
        _wait_for(spec)
    elif loaded.error:
        st.error(loaded.error)
        st.button("Try again", on_click=loading.forget, args=(spec,))
    return loaded.model


@st.fragment(run_every=0.5)
def _wait_for(spec: str) -> None:
    """Say what is being loaded, until it is; then draw the page again."""
    loaded = loading.load(spec, options().root.resolve())
    if not loaded.waiting:
        st.rerun()
    st.html(f"<p class='loading'>{html.escape(loaded.waiting)}</p>")


# -- the grid ---------------------------------------------------------------------------------


def _grid(
    opened: Opened,
    rows: np.ndarray,
    color: str,
    *,
    key: str,
    scores: Sequence[float] | np.ndarray | None = None,
    page: int = 0,
    pages: int = 1,
    note: str = "",
) -> None:
    """Thumbnails that can be clicked, with their labels in the colors of the map."""
    column = "label" if "label" in opened.columns else color
    coloring = opened.coloring(column)
    light, dark = coloring.colors(dark=False), coloring.colors(dark=True)
    items = []
    for place, row in enumerate(int(row) for row in rows):
        code = int(coloring.codes[row])
        item = {"row": row, "id": str(opened.gallery.images["id"].iloc[row])}
        item |= {"label": _label(opened, row), "light": light[code], "dark": dark[code]}
        items.append(item | ({} if scores is None else {"score": float(scores[place])}))
    components.thumbs(
        key=key,
        data={
            "thumbs": f"explorer/image/{opened.key}",
            "panel": components.PANEL,
            "items": items,
            "page": page,
            "pages": pages,
            "note": note,
        },
        on_pick_change=lambda: state.on_grid(key, "pick"),
        on_page_change=lambda: state.on_grid(key, "page"),
    )
