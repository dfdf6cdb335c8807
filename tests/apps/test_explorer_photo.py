"""A visitor's own photo, on the map and on the page of neighbors, without a browser."""

import io
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from explore import models, photo, words
from explore.opened import open_gallery
from PIL import Image
from streamlit.testing.v1 import AppTest

from dino_core import gallery as galleries
from dino_core.gallery import Features


@pytest.fixture
def data() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def script(folder: str, data: bytes) -> None:
    from pathlib import Path

    import streamlit as st
    from explore import photo
    from explore.here import Here
    from explore.opened import open_gallery

    here = Here(Path(folder), "starter", st.container(), open_gallery(Path(folder, "few")))
    found = photo.search(here, "pca", data, 5)
    st.session_state["found"] = found, photo.look(here, data)


def test_a_photo_is_looked_at_once_and_behind_the_page(
    data: bytes, tmp_path: Path, make_gallery: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_gallery(make_gallery(tmp_path / "few", "scenes:24"))
    looked: list[Any] = []

    def embed(model: Any, images: Any, kind: str) -> Features:
        looked.append((images[0].shape, kind, threading.current_thread()))
        return Features(opened.gallery.features[7:8], opened.gallery.info.feature_hash, "starter")

    monkeypatch.setattr(galleries, "embed", embed)
    monkeypatch.setattr(models, "wanted", lambda _: SimpleNamespace(hash="1" * 64))
    page = AppTest.from_function(script, default_timeout=60, args=(str(tmp_path), data)).run()
    while page.get("progress"):
        page.run()
    assert not page.exception
    found, features = page.session_state["found"]
    ((shape, kind, thread),) = looked
    assert (shape, kind) == ((20, 30, 3), "cls")
    assert thread.name != "MainThread" and "ScriptRunner" not in thread.name
    assert features.array.shape == (1, 16)
    assert found.hits.rows[0] == 7 and len(found.hits) == 5
    place = opened.gallery.place(features, "pca")
    assert found.xy == pytest.approx([place["x"].iloc[0], place["y"].iloc[0]])


def test_a_file_that_is_no_image_is_refused_when_it_comes(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    session: dict[str, Any] = {}
    said: list[str] = []
    stand_in = SimpleNamespace(session_state=session, file_uploader=lambda *_, **__: None)
    monkeypatch.setattr(photo, "st", stand_in)
    monkeypatch.setattr(words, "error", said.append)
    for uploaded, kept in ((b"no picture at all", None), (data, data), (None, None)):
        session["upload"] = None if uploaded is None else io.BytesIO(uploaded)
        photo._keep("upload")
        assert photo.ask() == kept
    assert len(said) == 1 and "cannot be read as an image" in said[0]
