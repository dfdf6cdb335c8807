"""Folders: what counts as an image, what folders say about classes, what may lie in the way."""

import os
import pickle
import shutil

import numpy as np
import pytest

from dino_core.data import BadImage, open_source
from dino_core.data.folder import Folder
from dino_core.errors import UserError


def test_flat_folder_has_no_labels(tree):
    source = open_source(tree("b.png", "a.png", "c.jpg"))
    assert list(source.ids) == ["a.png", "b.png", "c.jpg"]
    assert source.labels is None
    assert source.classes == []
    assert source.splits is None
    assert source.image(1).max() == 0  # b.png was image 0


def test_folders_are_classes(tree):
    source = open_source(tree("dog/2.png", "cat/1.png", "cat/deep/er/3.png"))
    assert list(source.ids) == ["cat/1.png", "cat/deep/er/3.png", "dog/2.png"]
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [0, 0, 1]
    assert source.labels.dtype == np.int64


def test_images_beside_class_folders_are_unlabeled(tree):
    source = open_source(tree("cat/1.png", "dog/2.png", "stray.png"))
    assert source.labels.tolist() == [0, 1, -1]


def test_one_folder_around_everything_says_nothing(tree):
    assert open_source(tree("images/1.png", "images/2.png")).labels is None


def test_classes_are_found_below_folders_that_all_share(tree):
    source = open_source(tree("archive/images/cat/1.png", "archive/images/dog/2.png"))
    assert source.classes == ["cat", "dog"]
    assert source.ids[0] == "archive/images/cat/1.png"


def test_split_folders_are_not_classes(tree):
    source = open_source(tree("train/cat/1.png", "train/dog/2.png", "val/cat/3.png"))
    assert source.splits.tolist() == ["train", "train", "val"]
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [0, 1, 0]


def test_content_decides_not_the_name(tree):
    folder = tree("photo.png")
    shutil.copy(folder / "photo.png", folder / "no ending")
    shutil.copy(folder / "photo.png", folder / "odd.dat")
    (folder / "readme.txt").write_text("not an image")
    (folder / "text.jpg").write_text("not an image either")
    (folder / "empty.jpg").write_bytes(b"")
    source = open_source(folder)
    assert list(source.ids) == ["empty.jpg", "no ending", "odd.dat", "photo.png", "text.jpg"]
    assert source.image(2).shape == (8, 8, 3)
    with pytest.raises(BadImage, match="not an image"):
        source.image(4)
    with pytest.raises(BadImage, match="empty"):
        source.image(0)


def test_hidden_files_and_folders_are_left_out(tree):
    source = open_source(tree("a.png", ".b.png", ".cache/c.png", "__MACOSX/d.png"))
    assert list(source.ids) == ["a.png"]


def test_links_in_a_circle_end(tree):
    folder = tree("cat/1.png", "dog/2.png")
    (folder / "cat" / "up").symlink_to(folder)
    (folder / "cat" / "dogs").symlink_to(folder / "dog")
    (folder / "dog" / "cats").symlink_to(folder / "cat")
    (folder / "itself").symlink_to(folder / "itself")
    assert list(open_source(folder).ids) == ["cat/1.png", "dog/2.png"]


def test_links_to_folders_and_files_elsewhere_are_followed(tree):
    elsewhere = tree("x/1.png", root="elsewhere")
    folder = tree("y/2.png")
    (folder / "linked").symlink_to(elsewhere / "x")
    (folder / "y" / "3.png").symlink_to(elsewhere / "x" / "1.png")
    source = open_source(folder)
    assert list(source.ids) == ["linked/1.png", "y/2.png", "y/3.png"]
    assert source.image(2).max() == 0


def test_a_link_to_a_missing_file_is_a_bad_image(tree):
    folder = tree("a.png")
    (folder / "b.png").symlink_to(folder / "gone.png")
    source = open_source(folder)
    assert len(source) == 2
    with pytest.raises(BadImage, match="No such file"):
        source.image(1)


def test_a_pipe_is_not_opened(tree):
    folder = tree("a.png")
    os.mkfifo(folder / "pipe.png")
    assert list(open_source(folder).ids) == ["a.png"]


def test_a_folder_that_cannot_be_read_is_noted(tree, monkeypatch):
    folder = tree("a.png", "secret/b.png", "open/c.png")
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    source = open_source(folder)
    assert list(source.ids) == ["a.png", "open/c.png"]
    assert source.notes == ["secret: folder cannot be read (Permission denied)"]


def test_names_that_are_not_utf8(tree):
    folder = tree("a.png")
    os.link(folder / "a.png", os.fsencode(folder) + b"/caf\xe9.png")
    source = open_source(folder)
    assert list(source.ids) == ["a.png", "caf\\xe9.png"]
    assert source.image(1).shape == (8, 8, 3)
    source.ids[1].encode("utf-8")


def test_order_does_not_follow_the_disk(tree, monkeypatch):
    folder = tree("b/2.png", "a/1.png", "c.png", "a/0.png")
    expected = list(open_source(folder).ids)
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: reversed(list(scandir(path))))
    assert list(open_source(folder).ids) == expected == sorted(expected)


def test_no_images_is_a_sentence(tree):
    with pytest.raises(UserError, match="no images here"):
        open_source(tree(**{"notes.txt": b"hello"}))


def test_a_table_in_a_folder_without_images_is_offered(tree):
    with pytest.raises(UserError, match=r"did you mean .*list\.csv"):
        open_source(tree(**{"list.csv": b"path\n"}))


def test_pickled_source_is_the_same(tree):
    source = open_source(tree("cat/1.png", "dog/2.png"))
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 (our own bytes)
    assert list(copy.ids) == list(source.ids)
    assert np.array_equal(copy.labels, source.labels)
    assert np.array_equal(copy.image(1), source.image(1))


def test_pickle_stays_small(tmp_path):
    names = [f"class-{k % 10}/image-{k:06d}.png" for k in range(20_000)]
    source = Folder("many", tmp_path, names, [])
    assert len(pickle.dumps(source)) < 20_000 * 45
    assert source.ids[12_345] == "class-5/image-012345.png"
    assert source.ids[-1] == names[-1]


def test_fingerprint_follows_content(tree):
    folder = tree("a.png", "b.png")
    shutil.copy(folder / "a.png", folder / "c.png")
    source = open_source(folder)
    assert source.fingerprint(0) == source.fingerprint(2) != source.fingerprint(1)
    assert len(source.fingerprint(0)) == 32


def test_paths_and_what_a_folder_does_not_know(tree):
    folder = tree("a.png")
    source = open_source(folder)
    assert source.path(0) == folder / "a.png"
    assert source.root == folder
    assert source.mask(0) is None
    assert source.metadata is None
    for index in (1, -2):
        with pytest.raises(IndexError):
            source.path(index)
