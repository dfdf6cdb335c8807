"""The page of clusters: in a browser from making to merging, and what it says when it cannot."""

import os
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from explore import loading, models, options, permission
from explore.tabs.clusters import PENDING
from streamlit.testing.v1 import AppTest

from dino_core.errors import UserError
from dino_core.gallery import Gallery, clusters
from dino_core.gallery.clusters import Clustering, clusterings, kmeans
from dino_core.gallery.notes import Notes

ROOT = Path(__file__).resolve().parents[2]
ROW = "[class*=st-key-cluster_row_]"


def test_make_name_split_and_compare_clusters(explorer: Any, make_gallery: Any, page: Any) -> None:
    address, folder = explorer
    path = make_gallery(folder / "galleries" / "clustered", "scenes:60")
    page.goto(f"{address}?page=clusters&gallery=clustered")
    page.wait_for_selector("text=No clusters yet")
    page.get_by_label("Clusters", exact=True).fill("4")
    page.get_by_role("button", name="Make clusters").click()
    page.wait_for_selector(f"{ROW} >> nth=3")
    gallery = Gallery.open(path)
    made = Clustering.read(gallery, "kmeans-4")
    sizes = sorted(made.sizes.values(), reverse=True)
    told = [
        int(re.findall(r"(\d+) image", text)[0]) for text in page.locator(ROW).all_inner_texts()
    ]
    assert told == sizes
    page.wait_for_selector(".scatter[data-ready=true]")
    page.wait_for_selector(".legend h3:has-text('cluster: kmeans-4')")
    assert page.locator(".measures dt").all_inner_texts() == ["Purity", "NMI", "ARI"]

    # one cluster: it alone is lit, and its name reaches the legend
    page.locator(f"{ROW} button").nth(1).click()
    page.wait_for_selector(".st-key-members .card")
    page.wait_for_url(re.compile("cluster=1"))
    page.wait_for_selector(f".scatter[data-selected='{sizes[1]}']")
    page.get_by_placeholder("Cluster 1: type a name").fill("night & fog")
    page.get_by_placeholder("Cluster 1: type a name").press("Enter")
    page.wait_for_selector(".legend .entry:has-text('night & fog')")
    assert Notes(path).cluster_names("kmeans-4") == {1: "night & fog"}

    # split it, see both parts in the list, and take it back
    page.get_by_role("button", name="Split").click()
    page.get_by_label("Into").wait_for()
    page.get_by_role("button", name="Split", exact=True).last.click()
    fifth = page.locator(".legend .entry").nth(4)
    fifth.wait_for()
    assert len(Clustering.read(gallery, "kmeans-4").sizes) == 5
    page.keyboard.press("Escape")
    page.get_by_role("button", name="All clusters").click()
    page.wait_for_selector(f"{ROW} >> nth=4")
    page.wait_for_url(re.compile("^(?!.*cluster=)"))
    page.get_by_role("button", name="Undo split").click()
    fifth.wait_for(state="detached")
    np.testing.assert_array_equal(Clustering.read(gallery, "kmeans-4").labels, made.labels)

    # back to the open cluster, by the browser's own button
    page.go_back()
    page.wait_for_selector(".st-key-members .card")
    assert page.get_by_label("Name").input_value() == "night & fog"

    page.get_by_role("button", name="Compare", exact=True).click()
    page.wait_for_selector(".contrasts li:nth-child(13)")
    page.wait_for_url(re.compile("tab=slices.*a=cluster%3A\\+kmeans-4%2F1"))
    page.wait_for_selector(".legend h3:has-text('Slices')")
    page.wait_for_selector(".st-key-shows_A .card >> nth=7")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_gallery: Any) -> Any:
    """The page of a gallery of 30 images, at an address; the gallery's path."""
    path = make_gallery(tmp_path / "galleries" / "few", "scenes:30")
    monkeypatch.setattr(loading, "begin", lambda: None)
    monkeypatch.setattr("sys.argv", ["explorer", "--root", str(tmp_path)])
    options.options.cache_clear()

    def run(host: str = "127.0.0.1", **address: str) -> AppTest:
        monkeypatch.setattr(permission, "host", lambda: host)
        page = AppTest.from_file(str(ROOT / "apps" / "explore" / "page.py"), default_timeout=60)
        for name, value in {"page": "clusters", "gallery": "few", **address}.items():
            page.query_params[name] = value
        return page.run()

    yield path, run
    options.options.cache_clear()


def said(page: AppTest) -> str:
    assert not page.exception
    texts = [element.proto.body for element in page.get("html")]
    texts += [element.value for element in (*page.error, *page.info, *page.caption)]
    return re.sub(r"<[^>]+>", "", re.sub(r"\\([^\w\s]|_)", r"\1", " ".join(texts)))


def test_a_damaged_clustering_is_a_sentence_and_another_can_be_made(run: Any) -> None:
    path, page = run
    gallery = Gallery.open(path)
    kmeans(gallery, 3)
    (path / "clusters" / "kmeans-3.npz").write_bytes(b"cut short")
    found = page()
    assert "kmeans-3.npz: is missing or damaged; make the clustering again" in said(found)
    found.number_input(key="k bar").set_value(5)
    found.button(key="make bar").click().run()
    assert "5 clusters" in said(found)
    assert clusterings(gallery) == ["kmeans-3", "kmeans-5"]


def test_merging_by_hand(run: Any) -> None:
    path, page = run
    gallery = Gallery.open(path)
    before = kmeans(gallery, 3).sizes
    Notes(path).name_cluster("kmeans-3", 2, "small")
    found = page(cluster="0")
    found.multiselect(key="merge kmeans-3 0").set_value([2]).run()
    next(one for one in found.button if one.label == "Merge").click().run()
    assert Clustering.read(gallery, "kmeans-3").sizes == {0: before[0] + before[2], 1: before[1]}
    found = page(cluster="0")
    next(one for one in found.button if one.label == "Merge").click().run()
    assert "Choose the clusters to merge with this one first" in said(found)


def test_a_cluster_becomes_a_slice(run: Any) -> None:
    path, page = run
    gallery = Gallery.open(path)
    made = kmeans(gallery, 3)
    found = page(cluster="1")
    found.text_input(key="tag kmeans-3 1").set_value("seconds").run()
    next(one for one in found.button if one.label == "Tag").click().run()
    tagged = Notes(path).tags()["seconds"]
    assert sorted(tagged) == sorted(gallery.images["id"].iloc[made.rows(1)])
    assert f"A {len(tagged)} images, B {30 - len(tagged)}" in said(
        page(tab="slices", a="tag: seconds")
    )


@pytest.mark.parametrize("view", ["attention", "colors"])
def test_a_model_that_is_gone_is_said_and_the_rest_stays(run: Any, monkeypatch, view: str) -> None:
    path, page = run
    kmeans(Gallery.open(path), 3)
    lost = loading.Loading(error="runs/lost: there is no such run")
    monkeypatch.setattr(loading, "load", lambda spec, root: lost)
    found = page(cluster="0", view=view)
    assert "runs/lost: there is no such run" in said(found)
    assert any(field.label == "Name" for field in found.text_input)


def test_slices_that_cannot_be_compared(run: Any) -> None:
    path, page = run
    kmeans(Gallery.open(path), 3)
    assert "Nothing is selected: draw around points" in said(page(tab="slices", a="selection"))
    assert "slice B has 0 images" in said(page(tab="slices", a="all", b="cluster: kmeans-3/0"))


def press(page: AppTest, label: str) -> AppTest:
    return next(one for one in page.button if one.label == label).click().run()


def test_what_was_asked_of_another_gallery_waits_there(run: Any) -> None:
    path, page = run
    kmeans(Gallery.open(path), 3)
    found = page()
    found.session_state[PENDING] = (str(path.parent / "other"), 1, "split", "kmeans-3", 0, 2)
    found.run()
    assert "3 clusters" in said(found) and "Splitting" not in said(found)
    assert len(Clustering.read(Gallery.open(path), "kmeans-3").sizes) == 3


def test_a_split_is_done_once_though_the_gallery_gets_a_map_meanwhile(run, monkeypatch) -> None:
    path, page = run
    kmeans(Gallery.open(path), 3)
    split, go_on, begun = clusters.split, threading.Event(), []

    def slowly(*args: Any, **how: Any) -> Clustering:
        begun.append(args)
        assert go_on.wait(60)
        return split(*args, **how)

    monkeypatch.setattr(clusters, "split", slowly)
    found = press(page(cluster="0"), "Split")
    assert any(one.label == "Hide" for one in found.button)
    os.utime(path / "gallery.json")
    found.run()
    go_on.set()
    while PENDING in found.session_state:
        found.run()
    assert len(begun) == 1 and not found.exception
    assert len(Clustering.read(Gallery.open(path), "kmeans-3").sizes) == 4


def test_what_fails_is_said_once(run: Any, monkeypatch: Any) -> None:
    path, page = run
    kmeans(Gallery.open(path), 3)

    def fail(*_: Any, **__: Any) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr(clusters, "split", fail)
    found = press(page(cluster="0"), "Split")
    assert "the disk is full" in said(found) and PENDING not in found.session_state
    assert "the disk is full" not in said(found.run())


@pytest.mark.parametrize("view", ["attention", "colors"])
def test_strangers_do_not_run_the_model(run: Any, monkeypatch: Any, view: str) -> None:
    path, page = run
    kmeans(Gallery.open(path), 3)
    monkeypatch.setattr(models, "wanted", lambda here: pytest.fail("it was asked for"))
    found = page(host="0.0.0.0", cluster="0", view=view)
    assert "Looking at images with the model is off" in said(found)


@pytest.mark.parametrize(("host", "may"), [("127.0.0.1", True), ("0.0.0.0", False)])
def test_strangers_do_not_cancel_what_others_wait_for(run, monkeypatch, host, may) -> None:
    path, page = run
    kmeans(Gallery.open(path), 3)
    go_on = threading.Event()
    monkeypatch.setattr("explore.tabs.clusters.describe", lambda *_: go_on.wait(60))
    found = page(host=host)
    assert "describing" in said(found).lower() or found.get("progress")
    assert may == any(one.label == "Cancel" for one in found.button)
    go_on.set()
