"""The data report: counted right, the same with any number of workers, and in words."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from dino_core.data import BadImage, Quarantined, Source, open_source
from dino_core.data.report import Spread, report
from dino_core.errors import UserError


@pytest.fixture
def mixed(tree):
    """Eight files: three PNGs (two the same, in two splits and classes), JPEGs, and bad ones."""
    folder = tree("train/cat/a.png", "train/dog/b.png", "train/cat/empty.jpg")
    shutil.copy(folder / "train/cat/a.png", folder / "train/cat/b.png")
    (folder / "val/dog").mkdir(parents=True)
    shutil.copy(folder / "train/cat/a.png", folder / "val/dog/z.png")
    for name, size in (("c.jpg", (40, 20)), ("d.jpg", (20, 60))):
        Image.new("RGB", size).save(folder / "train/cat" / name)
    (folder / "train/cat/empty.jpg").write_bytes(b"")
    (folder / "val/dog/text.png").write_bytes(b"hello")
    return folder


def test_everything_is_counted(mixed):
    found = report(open_source(mixed), workers=1)
    assert found.images == 8
    files = [path for path in mixed.rglob("*") if path.is_file()]
    assert found.bytes == sum(path.stat().st_size for path in files)
    assert found.width == Spread(8, 8, 40) and found.height == Spread(8, 8, 60)
    assert found.aspect == Spread(1 / 3, 1, 2)
    assert found.formats == {"PNG": 4, "JPEG": 2}
    assert found.classes == {"cat": 5, "dog": 3} and found.unlabeled == 0
    assert found.splits == {"train": 6, "val": 2}
    assert found.copies == [["train/cat/a.png", "train/cat/b.png", "val/dog/z.png"]]
    assert (found.copies_across_splits, found.copies_across_classes) == (1, 1)
    assert found.quarantined == [
        Quarantined("train/cat/empty.jpg", "empty file"),
        Quarantined("val/dog/text.png", "not an image (begins with b'hello')"),
    ]


def test_in_words(mixed):
    sentences = report(open_source(mixed), workers=1).sentences()
    assert sentences[0].startswith(f"{mixed}: 8 images, ")
    assert sentences[1:] == [
        "width 8 to 40 pixels (median 8), height 8 to 60 (8), width / height 0.33 to 2.00 (1.00)",
        "formats: PNG 4, JPEG 2",
        "2 classes, from 3 (dog) to 5 (cat) images",
        "splits: train 6, val 2",
        "2 exact copies of others (e.g. train/cat/a.png = train/cat/b.png)",
        "1 image with copies in several splits: "
        "what is measured on one was trained on in the other",
        "1 image with copies in several classes",
        "2 images cannot be used: empty file 1, not an image (begins with b'hello') 1 "
        "(e.g. train/cat/empty.jpg)",
    ]


def test_nothing_good_at_all(tree):
    folder = tree("a.png")
    (folder / "a.png").write_bytes(b"")
    found = report(open_source(folder), workers=1)
    assert found.width is None and found.formats == {} and found.copies == []
    assert "no labels" in found.sentences()


def test_sizes_are_as_seen(tree):
    folder, exif = tree("a.png"), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(folder / "a.png", exif=exif)
    found = report(open_source(folder))
    assert (found.width, found.height) == (Spread(20, 20, 20), Spread(40, 40, 40))


def test_arrays_and_generated_images(tree):
    folder = tree()
    np.save(folder / "a.npy", np.zeros((4, 6, 5), np.uint8))
    found = report(open_source(folder, channels=5))
    assert found.formats == {"NPY": 1} and found.width == Spread(6, 6, 6)
    found = report(open_source("scenes:24"), workers=1)
    assert found.sentences()[3] == "12 classes, 2 images each"


def test_workers_change_nothing(tree):
    folder = tree(*(f"{k}.png" for k in range(150)))
    (folder / "77.png").write_bytes(b"")
    source, seen = open_source(folder), []
    alone = report(source, workers=1)
    together = report(source, workers=2, progress=lambda done, images: seen.append((done, images)))
    assert together.json() == alone.json()
    assert seen[-1] == (150, 150) and seen == sorted(seen)
    json.dumps(together.json())


class Deadly(Source):
    """Its image 100 ends the process that reads it."""

    def __init__(self):
        self.spec, self.ids = "deadly", [f"{k}" for k in range(200)]
        self.classes, self.notes = [], []

    def read(self, i):
        if i == 100:
            os._exit(1)
        raise BadImage("none")


def test_a_process_that_dies_is_a_sentence():
    with pytest.raises(UserError, match=r"a process that read images died .* at one of \d+ to"):
        report(Deadly(), workers=2)
