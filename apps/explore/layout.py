"""The page: a bar of pickers, a notice where one is due, the map, and a panel beside it."""

from pathlib import Path
from urllib.parse import quote

import streamlit as st

from dino_core.errors import UserError
from explore import components, loading, making, panels, picking, state
from explore.opened import Opened, open_gallery
from explore.options import options

MARK = components.ASSETS / "mark.svg"


def show() -> None:
    """Draw the page for what the session and the address say."""
    _page()
    loading.page_is_out()


def _page() -> None:
    st.set_page_config("DINO explorer", str(MARK), layout="wide")
    st.html(f"<style>{components.style()}</style>")
    root = options().root.resolve()
    with st.container(key="bar", horizontal=True, vertical_alignment="bottom", gap="small"):
        st.html("<h1>DINO <span>explorer</span></h1>")
        path = picking.gallery(root)
        opened = _open(path)
        if opened is not None:
            color, map_name = picking.color(opened), picking.map_of(opened)
        model = picking.model(root, opened)
        making.popover(root, model)
    making.progress(root)
    if opened is None:
        making.first(root, model, empty=path is None)
        return
    if opened.gallery.info.generated:
        making.notice(root, model, opened)
    picking.follow_address(opened)
    left, right = st.columns([1.85, 1], gap="small")
    with right, st.container(key="panel"):
        shown = panels.show(opened, model, color, map_name)
    with left, st.container(key="map_side"):
        _map(opened, color, map_name, shown)


def _open(path: Path | None) -> Opened | None:
    """The gallery, or None with the reason on the page."""
    if path is None:
        return None
    try:
        return open_gallery(path)
    except UserError as error:
        st.error(str(error))
        return None


def _map(opened: Opened, color: str, map_name: str, shown: panels.Shown) -> None:
    coloring = opened.coloring(color)
    light, dark = coloring.colors(dark=False), coloring.colors(dark=True)
    components.scatter(
        key=state.MAP_KEY,
        data={
            "points": f"explorer/points/{opened.key}/{map_name}",
            "codes": f"explorer/codes/{opened.key}/{quote(color, safe='')}",
            "thumbs": f"explorer/image/{opened.key}",
            "info": f"explorer/info/{opened.key}",
            "legend": {
                "title": color,
                "kind": coloring.kind,
                "entries": coloring.entries,
                "low": coloring.low,
                "high": coloring.high,
            },
            "colors": {
                "light": light,
                "dark": dark,
            },
            "panel": components.PANEL,
            "selection": state.selection_message(),
            "picked": state.picked(),
            "lit": shown.lit,
            "query": shown.query,
        },
        on_pick_change=lambda: state.on_map("pick"),
        on_select_change=lambda: state.on_map("select"),
    )
