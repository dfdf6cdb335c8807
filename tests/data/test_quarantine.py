"""Bad images: the replacement is always the same, the report complete, and nothing runs forever."""

import json
import multiprocessing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dino_core.data import BadImage, Quarantine, Quarantined, Source, open_source, safe_image
from dino_core.data.quarantine import ATTEMPTS, require_readable
from dino_core.errors import UserError


class Halves(Source):
    """Image k is one pixel of value k % 256; those in `bad` are bad."""

    def __init__(self, count, bad):
        self.spec, self.ids, self.bad = "halves", [f"{k}.png" for k in range(count)], set(bad)
        self.classes, self.notes = [], []

    def read(self, i):
        raise NotImplementedError

    def image(self, i):
        if i in self.bad:
            raise BadImage("broken")
        return np.full((1, 1, 3), i % 256, np.uint8)


def test_a_good_image_is_itself():
    image, index, bad = safe_image(Halves(5, []), 3)
    assert (image.max(), index, bad) == (3, 3, [])


@given(st.data())
def test_replacement_is_good_and_always_the_same(data):
    count = data.draw(st.integers(2, 300))
    bad = data.draw(st.sets(st.integers(0, count - 1), max_size=count // 2))
    index = data.draw(st.integers(0, count - 1))
    source = Halves(count, bad)
    image, chosen, found = safe_image(source, index)
    assert chosen not in bad
    assert image.max() == chosen % 256
    assert [item.id for item in found[:1]] == ([f"{index}.png"] if index in bad else [])
    assert safe_image(source, index)[1:] == (chosen, found)


def test_the_last_good_image_of_a_small_collection_is_found():
    source = Halves(40, set(range(40)) - {17})
    assert {safe_image(source, i)[1] for i in range(40)} == {17}


def test_replacements_spread_over_the_collection():
    chosen = {safe_image(Halves(1000, {i}), i)[1] for i in range(100)}
    assert len(chosen) > 80


@pytest.mark.parametrize("count", [1, 7, 5000])
def test_all_bad_ends_in_a_sentence(count):
    with pytest.raises(UserError, match=r"halves: none of \d+ images tried can be read") as caught:
        safe_image(Halves(count, range(count)), 0)
    tried = int(str(caught.value).split("none of ")[1].split()[0])
    assert tried <= min(count, ATTEMPTS + 1)


def test_workers_replace_alike(tree):
    folder = tree(*(f"{k}.png" for k in range(20)))
    for k in range(0, 20, 3):
        (folder / f"{k}.png").write_bytes(b"")
    source = open_source(folder)
    here = [safe_image(source, i)[1] for i in range(20)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        there = pool.starmap(safe_image, [(source, i) for i in reversed(range(20))], chunksize=1)
    assert [chosen for _, chosen, _ in reversed(there)] == here


def test_report(tmp_path):
    quarantine = Quarantine()
    assert quarantine.sentence() == ""
    quarantine.add([Quarantined("b.png", "truncated"), Quarantined("ä.png", "empty file")])
    quarantine.add([Quarantined("b.png", "another reason"), Quarantined("a.png", "empty file")])
    quarantine.write(tmp_path / "report" / "bad.jsonl")
    lines = (tmp_path / "report" / "bad.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": "a.png", "reason": "empty file"},
        {"id": "b.png", "reason": "truncated"},
        {"id": "ä.png", "reason": "empty file"},
    ]
    assert len(quarantine) == 3
    expected = "3 images were left out as unreadable (e.g. a.png: empty file)"
    assert quarantine.sentence() == expected


def test_a_folder_without_one_readable_image_is_a_sentence(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"none")
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"no image in it can be read \(2 tried; a.jpg: "):
        require_readable(open_source(tmp_path))
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png")
    require_readable(open_source(tmp_path))
