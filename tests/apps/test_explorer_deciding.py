"""What a tab of quality has found, shown on the map: without a browser."""

from pathlib import Path
from typing import Any

import pytest
from explore import options, permission
from streamlit.testing.v1 import AppTest

from dino_core.gallery import Gallery
from dino_core.gallery.notes import Notes


def script(folder: str, rows: list[int]) -> None:
    """The buttons under what was found: these rows."""
    from pathlib import Path

    import numpy as np
    import streamlit as st
    from explore import address, deciding
    from explore.here import Here
    from explore.opened import open_gallery

    from dino_core.gallery.reviewing import Queue

    address.begin()
    none = np.full(len(rows), None, object)
    queue = Queue(np.array(rows), none, np.zeros(len(rows), np.int64), none, none)
    here = Here(Path(folder), "starter", st.container(), open_gallery(Path(folder, "few")))
    deciding.actions(here, "duplicates", "duplicate", queue)
    st.session_state["now"] = {name: address.get(name) for name in ("color", "shown")}
    address.finish()


@pytest.fixture
def run(make_gallery: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    make_gallery(tmp_path / "few", "scenes:24")
    monkeypatch.setattr("sys.argv", ["explorer", "--root", str(tmp_path)])
    monkeypatch.setattr(permission, "host", lambda: "127.0.0.1")
    options.options.cache_clear()

    def run(*rows: int) -> AppTest:
        given = (str(tmp_path), list(rows))
        return AppTest.from_function(script, default_timeout=60, args=given).run()

    yield run
    options.options.cache_clear()


def test_what_was_found_is_shown_and_nobodys_tag_of_that_name_is_touched(
    run: Any, tmp_path: Path
) -> None:
    gallery = Gallery.open(tmp_path / "few")
    ids, notes = gallery.images["id"].tolist(), Notes(tmp_path / "few")
    notes.tag([ids[9], ids[20]], "duplicates")
    for rows in ((3, 4, 5), (4, 7)):  # another threshold finds others
        page = run(*rows)
        page.button(key="on the map").click().run()
        assert not page.exception
        found = {"found: duplicates": [ids[row] for row in rows]}
        assert notes.tags() == {"duplicates": [ids[9], ids[20]]} | found
        now = page.session_state["now"]
        assert now == {"color": "tag: found: duplicates", "shown": "0"}
    assert page.text_input[0].value == "duplicates", "a tag of one's own is proposed"
