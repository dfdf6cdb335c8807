"""The map of a gallery, and beside it what is selected, one image, or a photo of your own."""

import streamlit as st

from explore import making, mapping, panels
from explore.here import Here


def show(here: Here) -> None:
    """Draw the page."""
    opened = here.opened
    assert opened is not None
    color, map_name = mapping.pickers(here)
    if opened.gallery.info.generated:
        making.notice(here.root, here.model, opened)
    left, right = st.columns([1.85, 1], gap="small")
    with right, st.container(key="panel"):
        shown = panels.show(here, color, map_name)
    with left, st.container(key="map_side"):
        mapping.draw(here, color, map_name, lit=shown.lit, query=shown.query)
