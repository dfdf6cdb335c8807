"""The map's panel for many images: what it says, tags, exports, who may."""

import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from explore import options, permission, selected
from streamlit.testing.v1 import AppTest

from dino_core.errors import UserError
from dino_core.gallery import Gallery
from dino_core.gallery.exporting import as_csv, table
from dino_core.gallery.notes import Notes
from dino_core.gallery.selection import color_by


@pytest.mark.soak
def test_tag_a_selection_take_it_home_find_it_again(
    explorer: Any, page: Any, make_gallery: Any
) -> None:
    address, root = explorer
    gallery = Gallery.open(make_gallery(root / "galleries" / "picked", "scenes:40"))
    coloring = color_by(gallery.images["label"])
    rows = np.flatnonzero(coloring.codes < 2)
    page.goto(f"{address}?gallery=picked&shown=0,1")
    page.get_by_text(f"{len(rows)} selected").first.wait_for()

    page.get_by_role("button", name="Tag", exact=True).click()
    page.get_by_placeholder("to label").fill("two kinds")
    page.get_by_role("button", name=f"Tag {len(rows)} images").click()
    page.get_by_text(f"Tagged {len(rows)}: two kinds").wait_for()
    assert Notes(gallery.path).tags() == {"two kinds": gallery.images["id"].iloc[rows].tolist()}
    page.keyboard.press("Escape")

    page.get_by_role("button", name="Export").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Table (CSV)").click()
    assert download.value.suggested_filename == f"picked-{len(rows)}.csv"
    assert Path(download.value.path()).read_bytes() == as_csv(table(gallery, rows))
    page.keyboard.press("Escape")

    page.goto(f"{address}?gallery=picked")
    page.get_by_role("button", name=f"two kinds · {len(rows)}").click()
    page.wait_for_url(re.compile("color=tag"))
    page.get_by_text(f"{len(rows)} selected").first.wait_for()


# -- without a browser ------------------------------------------------------------------------


def script(root: str, name: str, picked: str, count: int) -> None:
    """The panel alone, with the first `count` images of the gallery."""
    from pathlib import Path

    import numpy as np
    import streamlit as st
    from explore import address, selected
    from explore.here import Here
    from explore.opened import open_gallery

    address.begin()
    if picked:
        address.put(shown=picked)
    opened = open_gallery(Path(root, "galleries", name))
    selected.show(Here(Path(root), "starter", st.container(), opened), np.arange(count), "label")
    st.session_state["color now"] = address.get("color"), address.get("shown")
    address.finish()


@pytest.fixture
def run(make_gallery, tmp_path, monkeypatch) -> Any:
    """Run the panel for a server bound to `host`; the gallery has 40 labeled images."""
    make_gallery(tmp_path / "galleries" / "few", "scenes:40")
    monkeypatch.setattr("sys.argv", ["explorer", "--root", str(tmp_path)])
    options.options.cache_clear()

    def run(count: int = 30, picked: str = "1", host: str = "127.0.0.1") -> AppTest:
        monkeypatch.setattr(permission, "host", lambda: host)
        given = (str(tmp_path), "few", picked, count)
        return settled(AppTest.from_function(script, default_timeout=60, args=given).run())

    yield run
    options.options.cache_clear()


@pytest.fixture
def gallery(run, tmp_path) -> Gallery:
    return Gallery.open(tmp_path / "galleries" / "few")


def settled(page: AppTest) -> AppTest:
    """The page once nothing is being computed any more."""
    while page.get("progress"):
        time.sleep(0.05)
        page.run()
    return page


def said(page: AppTest) -> str:
    assert not page.exception
    texts = [element.proto.body for element in page.get("html")]
    texts += [one.value for one in (*page.error, *page.caption, *page.markdown, *page.toast)]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", " ".join(texts)))


def button(page: AppTest, label: str) -> Any:
    return next(one for one in page.button if one.label.startswith(label))


def test_a_selection_is_summed_up(run, gallery):
    text = said(run())
    labels = gallery.images["label"].iloc[:30]
    features = gallery.features[:30].astype(np.float64)
    mean = features.mean(0)
    assert "30 selected" in text
    assert f"purity {labels.value_counts().iloc[0] / 30:.0%}" in text
    assert f"middle {(features @ mean / np.linalg.norm(mean)).mean():.2f}" in text
    assert labels.value_counts().index[0] in text
    assert "Most typical" in text


def test_without_a_selection_it_says_what_the_gallery_is(run):
    page = run(count=40, picked="")
    text = said(page)
    assert "All 40 images" in text
    assert "features of starter" in text
    assert "purity" not in text
    assert not [one for one in page.button if one.label.startswith("Tag")]


def test_nothing_inside_is_said(run):
    assert "There is no point inside" in said(run(count=0))


def test_tags_are_put_on_shown_and_taken_off(run, gallery):
    page = run()
    page.text_input(key="tag typed").set_value(" odd  *ones* ")
    button(page, "Tag 30 images").click()
    page.run()
    assert Notes(gallery.path).tags() == {"odd *ones*": gallery.images["id"].iloc[:30].tolist()}
    assert r"Tagged 30: odd \*ones\*" in said(page), "no name is read as Markdown"
    assert r"odd \*ones\* · 30" in said(page)
    fewer = run(count=10)
    assert r"odd \*ones\* · 10" in said(fewer), "of these images"
    fewer.button(key="tag off odd *ones*").click().run()
    assert len(Notes(gallery.path).tags()["odd *ones*"]) == 20
    page.run()
    page.button(key="tag on odd *ones*").click().run()
    assert len(Notes(gallery.path).tags()["odd *ones*"]) == 30


def test_a_tag_opens_its_slice_on_the_map(run, gallery):
    Notes(gallery.path).tag(gallery.images["id"].iloc[:3], "rare")
    page = run(picked="")
    page.button(key="slice rare").click().run()
    column, shown = page.session_state["color now"]
    assert column == "tag: rare"
    assert page.button(key="slice rare").label == "rare · 3"
    assert shown == "0"  # the one value there is; the other 37 images have none


@pytest.mark.parametrize(("typed", "sentence"), [("", "has no name"), ("  ", "has no name")])
def test_a_tag_without_a_name_gets_a_sentence(run, gallery, typed, sentence):
    page = run()
    page.text_input(key="tag typed").set_value(typed)
    button(page, "Tag 30 images").click()
    assert sentence in said(page.run())
    assert Notes(gallery.path).tags() == {}


def test_a_folder_of_links_is_made_once(run, gallery, tmp_path):
    page = run()
    page.text_input(key="links name").set_value("mine")
    page.toggle(key="links by label").set_value(True)
    settled(button(page, "Make the folder").click().run())
    assert f"30 copies in {tmp_path}/exports/mine." in said(page)
    made = {path.parent.name for path in Path(tmp_path, "exports", "mine").rglob("*.png")}
    assert made == set(gallery.images["label"].iloc[:30])
    page.text_input(key="links name").set_value("mine")
    settled(button(page, "Make the folder").click().run())
    assert "is there already; choose another name" in said(page)


def test_downloads_are_made_when_they_are_asked_for(run, monkeypatch):
    asked = []
    for name in ("table", "as_csv", "as_parquet", "as_paths"):
        monkeypatch.setattr(selected, name, lambda *_: asked.append(1))
    titles = [one.proto.label for one in run().get("download_button")]
    assert titles == ["Table (CSV)", "Table (Parquet)", "List of paths"]
    assert asked == []


def test_a_large_file_is_made_behind_the_page_once_it_was_asked_for(run, gallery, monkeypatch):
    monkeypatch.setattr(selected, "AT_ONCE", 20)
    made, plain = [], selected.as_csv

    def as_csv(frame: Any) -> bytes:
        made.append(threading.current_thread())
        if len(made) == 1:
            raise UserError("tags.jsonl: cannot be read")
        return plain(frame)

    monkeypatch.setattr(selected, "as_csv", as_csv)
    page = run()
    assert page.get("download_button") == [] and made == []
    settled(page.button(key="make .csv").click().run())
    assert "cannot be read" in said(page).replace("\\", "")
    settled(button(page, "Try again").click().run())
    (offered,) = page.get("download_button")
    assert offered.proto.label == "Table (CSV)"
    page.run()
    assert len(made) == 2, "not again at each click"
    assert all("ScriptRunner" not in one.name for one in made)
    assert len(run(count=10).get("download_button")) == 3, "a small one needs no waiting"


def test_strangers_neither_tag_nor_make_folders(run, gallery, tmp_path):
    page = run(host="0.0.0.0")
    text = said(page)
    assert "Tagging is off: the page is open to the network" in text
    assert "Making a folder is off" in text
    assert not [one for one in page.button if one.label.startswith(("Tag", "Make"))]
    assert len(page.get("download_button")) == 3


def test_who_has_the_token_may(run, gallery, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["explorer", "--root", str(tmp_path), "--token", "secret"])
    options.options.cache_clear()
    page = run(host="0.0.0.0")
    page.text_input(key="token for Tagging").set_value("wrong").run()
    assert "Tagging needs the token" in said(page)
    page.text_input(key="token for Tagging").set_value("secret").run()
    assert button(page, "Tag 30 images")
    assert button(page, "Make the folder")
