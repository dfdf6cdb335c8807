"""Which images are compared with which: read once, behind the page."""

import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from explore import loading, options
from streamlit.testing.v1 import AppTest

from dino_core.gallery import contrast
from dino_core.gallery.notes import Notes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_gallery: Any) -> Any:
    """The page of slices for 30 images, of which three have a tag."""
    monkeypatch.setattr(loading, "begin", lambda: None)
    monkeypatch.setattr(sys, "argv", ["explorer", "--root", str(tmp_path)])
    options.options.cache_clear()
    folder = make_gallery(tmp_path / "galleries" / "few", "scenes:30")
    Notes(folder).tag([f"scenes/{row:06d}" for row in (3, 4, 9)], "some")
    page = AppTest.from_file(str(ROOT / "apps" / "explore" / "page.py"), default_timeout=60)
    for name, value in {"page": "clusters", "tab": "slices", "a": "tag: some"}.items():
        page.query_params[name] = value
    yield page
    options.options.cache_clear()


def drawn(page: AppTest) -> str:
    """What it says once nothing is computed any more."""
    page.run()
    while page.get("progress"):
        time.sleep(0.05)
        page.run()
    assert not page.exception
    return " ".join(element.proto.body for element in page.get("html"))


def test_slices_are_read_behind_the_page_and_again_only_when_they_changed(
    page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, plain = [], contrast.rows_of

    def rows_of(*args: Any, **how: Any) -> Any:
        read.append(threading.current_thread().name)
        return plain(*args, **how)

    monkeypatch.setattr(contrast, "rows_of", rows_of)
    assert "A</b> 3 images, <b class='slice-b'>B</b> 27 images" in drawn(page)
    drawn(page)
    assert len(read) == 2, "A and B, once"
    assert not any("ScriptRunner" in name for name in read)
    Notes(tmp_path / "galleries" / "few").untag(["scenes/000004"], "some")
    assert "A</b> 2 images, <b class='slice-b'>B</b> 28 images" in drawn(page)
