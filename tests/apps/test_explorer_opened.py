"""Galleries that are open in the server: who waits for whom, what is read again and what is not."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from explore import opened as opening
from explore.opened import Opened, by_key, open_gallery

from dino_core.gallery import Gallery
from dino_core.gallery.clusters import kmeans
from dino_core.gallery.notes import Notes


@pytest.fixture
def few(tmp_path: Any, make_gallery: Any) -> Opened:
    return open_gallery(make_gallery(tmp_path / "few", "scenes:24"))


def test_who_waits_for_an_update_keeps_nobody_from_another_gallery(
    tmp_path: Any, make_gallery: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = (make_gallery(tmp_path / name, "scenes:8") for name in ("slow", "quick"))
    whole, plain = threading.Event(), Gallery.open

    def open_(path: Any) -> Gallery:
        assert path != slow or whole.wait(60)
        return plain(path)

    monkeypatch.setattr(opening.Gallery, "open", open_)
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(open_gallery, slow) for _ in range(2)]
        try:
            assert open_gallery(quick).gallery.path == quick
            assert not any(one.done() for one in waiting)
        finally:
            whole.set()
        assert waiting[0].result(60) is waiting[1].result(60)


def test_a_gallery_that_is_replaced_leaves_room_for_others(
    tmp_path: Any, make_gallery: Any
) -> None:
    steady = open_gallery(make_gallery(tmp_path / "steady", "scenes:8"))
    folder = make_gallery(tmp_path / "changing", "scenes:8")
    keys = []
    for _ in range(opening.GALLERIES_KEPT + 1):
        keys.append(open_gallery(folder).key)
        (folder / "gallery.json").write_text((folder / "gallery.json").read_text() + "\n")
    assert len(set(keys)) == len(keys)
    assert by_key(keys[-1]) is not None and by_key(keys[-2]) is None
    assert by_key(steady.key) is steady


def test_what_an_update_replaces_meanwhile_is_opened_again(
    few: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, plain, opened = few.gallery.path, Gallery.open, []

    def open_(path: Any) -> Gallery:
        opened.append(path)
        if len(opened) == 1:  # it settles what an update left behind
            (path / "gallery.json").write_text((path / "gallery.json").read_text() + "\n")
        return plain(path)

    monkeypatch.setattr(opening.Gallery, "open", open_)
    (path / "gallery.json").write_text((path / "gallery.json").read_text() + "\n")
    after = open_gallery(path)
    assert opened == [path, path]
    assert open_gallery(path) is after


def test_rows_are_found_by_their_ids(few: Opened) -> None:
    ids = few.gallery.images["id"].tolist()
    assert [few.row(id) for id in ids] == list(range(24))
    assert few.row("nowhere") is few.row(None) is None


def test_columns_are_listed_anew_only_when_there_are_others(
    few: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, plain = [], Notes.tags
    monkeypatch.setattr(Notes, "tags", lambda notes: read.append(1) or plain(notes))
    notes, before = Notes(few.gallery.path), few.columns
    assert "label" in before and few.columns == before and len(read) == 1
    notes.tag([few.id(3), few.id(1)], "rare")
    assert set(few.columns) - set(before) == {"tag: rare"}
    kmeans(few.gallery, 2)
    assert set(few.columns) - set(before) == {"tag: rare", "cluster: kmeans-2"}
    notes.untag(None, "rare")
    assert set(few.columns) - set(before) == {"cluster: kmeans-2"}


def test_tags_are_those_of_the_gallery_even_after_it_was_closed(few: Opened) -> None:
    assert few.tagged == {}
    Notes(few.gallery.path).tag([few.id(3), few.id(1)], "rare")
    opening._open.pop(few.key)  # by visitors of other galleries
    assert few.tagged["rare"].tolist() == [1, 3]


def test_grids_have_one_order(few: Opened) -> None:
    everything = np.arange(24)
    assert few.rank[few.order].tolist() == everything.tolist()
    assert few.mixed(everything) is few.order, "sorted once"
    some = few.mixed(np.array([2, 3, 5, 7]))
    assert some.tolist() == [row for row in few.order.tolist() if row in (2, 3, 5, 7)]
