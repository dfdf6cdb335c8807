"""The bar of pickers: gallery, color, map, model. The address and the command line choose first."""

from pathlib import Path

import streamlit as st

from dino_core import catalog
from dino_core.errors import UserError
from dino_core.gallery.listing import is_gallery, list_galleries
from dino_core.serving import is_loopback
from explore import state
from explore.opened import Opened
from explore.options import host, options


def gallery(root: Path) -> Path | None:
    """The gallery to show; None when there is none yet."""
    found = {entry.name: entry.path for entry in list_galleries(root) if entry.state == "whole"}
    asked = options().gallery
    if asked is not None:
        path = _named(asked, root)
        found = {path.name: path} | {k: v for k, v in found.items() if v.resolve() != path}
    if not found:
        return None
    names = list(found)
    wanted = state.from_address("gallery")
    if (made := st.session_state.pop("open next", None)) in found:
        state.forget()
        wanted = made
    if "gallery" not in st.session_state or wanted != st.session_state["gallery"]:
        st.session_state["gallery"] = wanted if wanted in found else names[0]
    if st.session_state["gallery"] not in found:
        st.session_state["gallery"] = names[0]
    chosen = st.selectbox("Gallery", names, key="gallery", on_change=_other_gallery, width=210)
    state.remember(gallery=chosen)
    return found[chosen]


def _other_gallery() -> None:
    state.forget()
    state.remember(gallery=st.session_state["gallery"])


def _named(asked: str, root: Path) -> Path:
    """A folder, or the name of a gallery under the root; the folder need not exist."""
    for path in (Path(asked), root / asked, root / "galleries" / asked):
        if is_gallery(path):
            return path.resolve()
    return Path(asked).resolve()


def color(opened: Opened) -> str:
    """The column that colors the map."""
    return _choice("Color", "color", opened.columns, 190, on_change=_drop_filter)


def _drop_filter() -> None:
    """Codes of one column mean nothing in another; the polygon stays."""
    message = state.selection_message()
    if message is not None:
        st.session_state["selection"] = message | {"shown": []}


def map_of(opened: Opened) -> str:
    """The map to draw."""
    names = sorted(opened.gallery.info.maps, key=lambda name: name != "umap")
    return _choice("Map", "map", names, 110, on_change=_drop_polygon, label=str.upper)


def _drop_polygon() -> None:
    """A polygon belongs to one map's coordinates; the filter stays."""
    message = state.selection_message()
    if message is not None:
        st.session_state["selection"] = message | {"polygon": None}


def _choice(title, name, values, width, on_change, label=str.capitalize) -> str:  # type: ignore[no-untyped-def]
    if st.session_state.get(name) not in values:
        wanted = state.from_address(name)
        st.session_state[name] = wanted if wanted in values else values[0]
    chosen = st.selectbox(
        title, values, key=name, on_change=on_change, width=width, format_func=label
    )
    state.remember(**{name: None if chosen == values[0] else chosen})
    return chosen


def model(root: Path, opened: Opened | None) -> str:
    """The model for uploaded photos and for new galleries."""
    titles = {entry.spec: entry.title for entry in catalog.models(root)}
    made_with = opened.gallery.info.model if opened is not None else None
    first = [spec for spec in (options().model, made_with) if spec]
    specs = list(dict.fromkeys([*first, *titles])) or ["starter"]
    chosen = st.selectbox(
        "Model",
        specs,
        key="model",
        width=210,
        help="Looks at a photo of your own, and makes new galleries.",
        format_func=lambda spec: titles.get(spec, spec.rsplit("/", 1)[-1]),
    )
    return chosen if chosen in specs else specs[0]  # never a path that someone made up


def check_model(spec: str) -> None:
    """Refuse to download a model for a stranger; raises `UserError`.

    Everything else in the picker lies on this machine already.
    """
    if spec.startswith("timm:") and spec != options().model and not is_loopback(host()):
        raise UserError(
            f"{spec}: may have to be downloaded, which is off on a page that other machines can "
            "reach; start the page with --model to allow it"
        )


def follow_address(opened: Opened) -> None:
    """Open the image that the address names, once; keep the address in step afterwards."""
    ids = opened.gallery.images["id"]
    if "picked" not in st.session_state:
        wanted = state.from_address("image")
        rows = (ids == wanted).to_numpy().nonzero()[0] if wanted else []
        st.session_state["picked"] = int(rows[0]) if len(rows) else None
    row = state.picked()
    if row is not None and row >= len(ids):  # the gallery was rebuilt smaller
        st.session_state["picked"] = row = None
    state.remember(image=None if row is None else str(ids.iloc[row]))
