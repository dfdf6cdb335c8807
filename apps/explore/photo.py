"""A photo of the visitor's own: taken up, embedded, searched for, placed on the map."""

import hashlib
from dataclasses import dataclass

import streamlit as st

from dino_core.catalog import MAX_PIXELS
from dino_core.data import BadImage, decode_image
from dino_core.errors import UserError
from dino_core.gallery import Hits
from explore import models
from explore.here import Here

TYPES = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"]


@dataclass(frozen=True)
class Found:
    """What a search with the photo found, and where the photo would lie on the map."""

    key: tuple[str, ...]
    hits: Hits
    xy: list[float]


def ask(key: str = "upload") -> bytes | None:
    """The uploader; the file's bytes, also when another tab was shown in between."""
    st.file_uploader(
        "A photo of your own",
        type=TYPES,
        key=key,
        on_change=_keep,
        args=(key,),
        label_visibility="collapsed",
    )
    return st.session_state.get("photo")


def _keep(key: str) -> None:
    """Hold on to the photo: Streamlit drops an upload while another tab is shown."""
    uploaded = st.session_state[key]
    st.session_state["photo"] = None if uploaded is None else uploaded.getvalue()


def search(here: Here, map_name: str, data: bytes, count: int) -> Found | None:
    """The images nearest to the photo; None with the reason on the page."""
    opened = here.opened
    assert opened is not None
    key = (opened.key, here.model, map_name, f"{count}", hashlib.sha256(data).hexdigest())
    found: Found | None = st.session_state.get("query")
    if found is not None and found.key == key:
        return found
    try:
        image = decode_image(data, MAX_PIXELS)
        model = models.wanted(here)
        if model is None:
            return None
        hits = opened.gallery.search(image, count, model=model)
        place = opened.gallery.place(image, map_name, model=model)
    except BadImage as error:
        st.error(f"This file cannot be read as an image: {error.reason}.")
        return None
    except UserError as error:
        st.error(str(error))
        return None
    found = Found(key, hits, [float(place["x"].iloc[0]), float(place["y"].iloc[0])])
    st.session_state["query"] = found
    return found
