"""Notes: what was written last counts, whole lines only, several writers, sentences."""

import errno
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_core.errors import UserError
from dino_core.gallery import notes as notes_module
from dino_core.gallery.notes import LONGEST_NAME, Notes, Review, clean_name, rows_by_tag


@pytest.fixture
def notes(tmp_path):
    (tmp_path / "gallery.json").touch()
    return Notes(tmp_path)


def test_a_new_gallery_has_none_and_reading_makes_no_folder(notes, tmp_path):
    assert (notes.tags(), notes.reviews(), notes.cluster_names("kmeans-12")) == ({}, {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["gallery.json"]


def test_notes_of_a_deleted_gallery_do_not_begin_its_folder_again(notes, tmp_path):
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path.name} is not there any more; reload the page"):
        notes.tag(["a"], "one")
    assert not tmp_path.exists()


def test_a_slice_is_what_has_the_tag(notes):
    assert notes.tag(["a", "b", "c"], "  to   label ") == "to label"
    notes.tag(pd.Series(["c", "d"]), "to label")
    notes.tag(np.array(["x"]), "Blurred")
    notes.untag(["b", "never tagged"], "to label")
    assert notes.tags() == {"Blurred": ["x"], "to label": ["a", "c", "d"]}
    assert list(notes.tags()) == ["Blurred", "to label"]
    notes.untag(None, "to label")
    assert notes.tags() == {"Blurred": ["x"]}
    notes.tag(["b"], "to label")
    assert notes.tags()["to label"] == ["b"], "what was taken off everything stays off"


def test_a_tag_without_images_is_none(notes):
    notes.tag(["a"], "one")
    notes.untag(["a"], "one")
    assert notes.tags() == {}
    with pytest.raises(UserError, match="no image is selected"):
        notes.tag([], "one")
    with pytest.raises(TypeError):
        notes.tag("a", "one")


def test_rows_are_those_of_the_images_that_are_there(notes):
    notes.tag(["d", "gone", "a"], "one")
    notes.tag(["gone"], "of nothing here")
    notes.tag(["b"], "two")
    found = rows_by_tag(pd.Series(["a", "b", "c", "d"]), notes.tags())
    assert {tag: rows.tolist() for tag, rows in found.items()} == {"one": [0, 3], "two": [1]}
    assert rows_by_tag(pd.Series(["a"]), {}) == {}


def test_clusters_keep_the_last_name_each(notes):
    notes.name_cluster("kmeans-12", 3, "dogs")
    notes.name_cluster("kmeans-12", np.int32(4), "cats")
    notes.name_cluster("kmeans-12", 3, " wet  dogs ")
    notes.name_cluster("hdbscan", 3, "sky")
    assert notes.cluster_names("kmeans-12") == {3: "wet dogs", 4: "cats"}
    notes.name_cluster("kmeans-12", 4, " ")
    notes.name_cluster("kmeans-12", 7, None)
    assert notes.cluster_names("kmeans-12") == {3: "wet dogs"}
    assert notes.cluster_names("hdbscan") == {3: "sky"}


def test_reviews_keep_the_last_decision_and_can_be_undone(notes):
    notes.review(["a", "b", "c"], "remove")
    notes.review(["b"], "relabel", " tench ")
    notes.review(["c"], None)
    notes.review([], "keep")
    found = notes.reviews()
    assert {id: (one.decision, one.label) for id, one in found.items()} == {
        "a": ("remove", None),
        "b": ("relabel", "tench"),
    }
    assert found["a"].time.endswith("+00:00")
    with pytest.raises(UserError, match="label has no name"):
        notes.review(["a"], "relabel")
    with pytest.raises(ValueError, match="delete"):
        notes.review(["a"], "delete")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12))
def test_a_file_tells_what_a_set_would(tmp_path_factory, steps):
    notes, wanted = Notes(tmp_path_factory.mktemp("notes")), set()
    (notes.folder.parent / "gallery.json").touch()
    for id, on in steps:
        (notes.tag if on else notes.untag)([id], "t")
        (wanted.add if on else wanted.discard)(id)
    assert set(notes.tags().get("t", [])) == wanted


def test_lines_carry_their_time_and_are_only_ever_added(notes, tmp_path):
    notes.tag(["a"], "naïve 日本")
    before = (tmp_path / "user" / "tags.jsonl").read_bytes()
    notes.untag(["a"], "naïve 日本")
    after = (tmp_path / "user" / "tags.jsonl").read_bytes()
    assert after.startswith(before)
    assert "naïve 日本" in after.decode(), "a person can read it"
    lines = [json.loads(line) for line in after.splitlines()]
    assert [(line["ids"], line["on"]) for line in lines] == [(["a"], True), (["a"], False)]
    assert all(line["time"].endswith("+00:00") for line in lines)


def test_a_line_cut_short_is_passed_over_and_takes_no_other_along(notes, tmp_path):
    path = tmp_path / "user" / "tags.jsonl"
    notes.tag(["a"], "one")
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole + whole.replace(b'"a"', b'"b"')[:cut])
        expected = ["a", "b"] if cut == len(whole) - 1 else ["a"]  # only its line feed is missing
        assert notes.tags() == {"one": expected}
        notes.tag(["c"], "one")
        assert notes.tags() == {"one": [*expected, "c"]}


def test_lines_that_are_none_of_ours_are_passed_over(notes, tmp_path):
    notes.tag(["a"], "one")
    notes.review(["a"], "keep")
    notes.name_cluster("k", 1, "x")
    for name in ("tags", "reviews", "clusters"):
        with open(tmp_path / "user" / f"{name}.jsonl", "ab") as file:
            file.write(b'\xff\xfe\n[]\n7\n{}\n{"tag": 3, "ids": ["b"], "on": true}\n')
            file.write(b'{"tag": "one", "ids": "bc", "on": true}\n')
            file.write(
                b'{"ids": ["b"], "decision": "burn"}\n{"ids": ["b"], "decision": "relabel"}\n'
            )
            file.write(b'{"clustering": "k", "cluster": true, "name": "y"}\n' + b"[" * 99_999)
    assert notes.tags() == {"one": ["a"]}
    assert list(notes.reviews()) == ["a"]
    assert notes.cluster_names("k") == {1: "x"}


def test_what_is_handed_out_can_be_changed_without_harm(notes):
    notes.tag(["a"], "one")
    notes.review(["a"], "keep")
    notes.name_cluster("k", 1, "x")
    notes.tags()["one"].append("b")
    notes.reviews()["b"] = Review("keep")
    notes.cluster_names("k")[2] = "y"
    assert (notes.tags(), list(notes.reviews())) == ({"one": ["a"]}, ["a"])
    assert notes.cluster_names("k") == {1: "x"}


def test_an_unchanged_file_is_read_once(notes, monkeypatch):
    notes.tag(["a"], "one")
    stamp, times = notes.stamp(), []
    parse = notes_module._lines
    monkeypatch.setattr(notes_module, "_lines", lambda data: times.append(1) or parse(data))
    for _ in range(3):
        notes.tags()
    assert (len(times), notes.stamp()) == (1, stamp)
    Notes(notes.folder.parent).tag(["b"], "one")
    assert (notes.tags(), len(times)) == ({"one": ["a", "b"]}, 2)
    assert notes.stamp() != stamp


def test_several_threads_and_processes_lose_nothing(notes, tmp_path):
    code = (
        "import sys; from dino_core.gallery.notes import Notes\n"
        "for i in range(40): Notes(sys.argv[1]).tag([f'{sys.argv[2]}-{i}-' + 'x' * 9000], 't')"
    )
    others = [subprocess.Popen([sys.executable, "-c", code, tmp_path, name]) for name in "pq"]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: notes.tag([f"t-{i}"], "t"), range(80)))
    assert [other.wait(120) for other in others] == [0, 0]
    found = {id.rstrip("x") for id in notes.tags()["t"]}
    assert found == {f"t-{i}" for i in range(80)} | {f"{p}-{i}-" for p in "pq" for i in range(40)}


def test_a_full_disk_leaves_the_file_as_it_was(notes, tmp_path, monkeypatch):
    notes.tag(["a"], "one")
    before = (tmp_path / "user" / "tags.jsonl").read_bytes()
    write = os.write

    def full(file, data):
        if len(data) > 10:
            return write(file, bytes(data[:10]))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match=r"tags\.jsonl: cannot be written \(No space left"):
        notes.tag(["b" * 25], "one")  # its end does not fit
    monkeypatch.undo()
    assert (tmp_path / "user" / "tags.jsonl").read_bytes() == before


def test_where_nothing_can_be_written_a_sentence_says_so(notes, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\)"):
        notes.tag(["a"], "one")
    monkeypatch.undo()
    (tmp_path / "user").rmdir()
    (tmp_path / "user").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        notes.review(["a"], "keep")
    assert notes.tags() == {}


@pytest.mark.parametrize(
    ("typed", "kept"),
    [(" a\tb\n", "a b"), ("e\u0301te\u0301", "été"), ("x" * LONGEST_NAME, "x" * LONGEST_NAME)],
)
def test_names_are_trimmed_to_one_line(typed, kept):
    assert clean_name(typed, "tag") == kept


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [("", "no name"), (" \n", "no name"), ("x" * 81, "81 characters"), ("a\0b", "cannot be shown")],
)
def test_what_is_no_name_gets_a_sentence(notes, typed, sentence):
    with pytest.raises(UserError, match=sentence):
        notes.tag(["a"], typed)
    assert notes.tags() == {}
