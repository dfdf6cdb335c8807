"""The frame of every page: the bar on top, the page that the address names, errors as sentences."""

import html
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import streamlit as st

from dino_core.errors import UserError
from explore import address, components, loading, making, picking, state, words
from explore.here import Here
from explore.opened import Opened, open_gallery
from explore.options import options

MARK = components.ASSETS / "mark.svg"


@dataclass(frozen=True)
class Page:
    """One of `explore/tabs`."""

    title: str
    of_gallery: bool = True  # whether it shows a gallery


PAGES = {
    "map": Page("Map"),
    "neighbors": Page("Neighbors"),
    "clusters": Page("Clusters"),
    "quality": Page("Quality"),
    "heads": Page("Heads"),
    "compare": Page("Compare"),
    "runs": Page("Runs", of_gallery=False),
    "emergence": Page("Emergence", of_gallery=False),
    "galleries": Page("Galleries", of_gallery=False),
}


def show() -> None:
    """Draw the page for what the address says."""
    st.set_page_config("DINO explorer", str(MARK), layout="wide")
    state.follow(address.begin())
    st.html(f"<style>{components.style()}</style>")
    try:
        _page(options().root.resolve())
    except UserError as error:
        words.error(error)
    address.finish()
    loading.page_is_out()


def _page(root: Path) -> None:
    with st.container(key="top", horizontal=True, vertical_alignment="center", gap="medium"):
        st.html("<h1>DINO <span>explorer</span></h1>")
        asked = address.get("page")
        name = address.segments(
            "Page", "page", list(PAGES), on_change=_turn, format_func=lambda name: PAGES[name].title
        )
    page, opened, path, gone = PAGES[name], None, None, ""
    bar = st.container(key="bar", horizontal=True, vertical_alignment="bottom", gap="small")
    with bar:
        if page.of_gallery:
            path, gone = picking.gallery(root)
            opened = _open(path)
        model = picking.model(root, opened) if page.of_gallery else "starter"
    making.progress(root)
    if asked and asked not in PAGES:
        words.warning(f"There is no page {asked}; this is the {page.title.lower()}.")
    if gone:
        words.warning(gone)
        return
    if page.of_gallery and opened is None:
        making.first(root, model, empty=path is None)
        return
    if opened is not None:
        _problems(opened)
    import_module(f"explore.tabs.{name}").show(Here(root, model, bar, opened))


def _problems(opened: Opened) -> None:
    """What does not work in this gallery, and what to do; everything else does."""
    data = opened.gallery.info.data
    for problem in opened.gallery.problems():
        st.html(f"<p class='warning'>{html.escape(words.told(problem, data))}</p>")


def _turn() -> None:
    address.go(st.session_state["page"])


def _open(path: Path | None) -> Opened | None:
    """The gallery, or None with the reason on the page."""
    if path is None:
        return None
    try:
        return open_gallery(path)
    except UserError as error:
        words.error(error)
        return None
