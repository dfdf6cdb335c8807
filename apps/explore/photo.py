"""A photo of the visitor's own: taken up, embedded, searched for, placed on the map."""

import hashlib
from dataclasses import dataclass
from typing import Any

import streamlit as st

from dino_core.catalog import MAX_PIXELS
from dino_core.data import BadImage, decode_image
from dino_core.gallery import Features, Hits
from explore import models, words
from explore.here import Here
from explore.working import work

REFUSED = "photo refused"
TYPES = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"]


@dataclass(frozen=True)
class Found:
    """What a search with the photo found, and where the photo would lie on the map."""

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
    if refused := st.session_state.get(REFUSED):
        words.error(refused)
    return st.session_state.get("photo")


def _keep(key: str) -> None:
    """Hold on to the photo: Streamlit drops an upload while another tab is shown."""
    uploaded = st.session_state[key]
    data, refused = None if uploaded is None else uploaded.getvalue(), None
    try:
        if data is not None:
            decode_image(data, MAX_PIXELS)
    except BadImage as error:
        data, refused = None, f"This file cannot be read as an image: {error.reason}."
    st.session_state["photo"], st.session_state[REFUSED] = data, refused


def digest(data: bytes) -> str:
    """What tells one photo from another."""
    return hashlib.sha256(data).hexdigest()


def look(here: Here, data: bytes) -> Features | None:
    """The photo as the model sees it; None while it looks, with the reason on the page."""
    model, kind = models.wanted(here), here.gallery.info.kind
    if model is None:
        return None

    def embedded(_progress: Any) -> Features:
        from dino_core.gallery import embed  # loads torch; the model is there by now

        return embed(model, [decode_image(data, MAX_PIXELS)], kind)

    return work(("photo", here.model, model.hash, kind, digest(data)), "Looking", embedded)


def search(here: Here, map_name: str, data: bytes, count: int) -> Found | None:
    """The images nearest to the photo; None with the reason on the page."""
    opened, features = here.opened, look(here, data)
    if opened is None or features is None:
        return None
    gallery = opened.gallery

    def searched(_progress: Any) -> Found:
        place = gallery.place(features, map_name)
        return Found(gallery.search(features, count), place[["x", "y"]].iloc[0].tolist())

    key = ("photo found", opened.key, map_name, count, features.feature_hash, digest(data))
    return work(key, "Comparing", searched)
