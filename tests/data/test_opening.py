"""`open_source`: every spelling, and one sentence for what is none."""

import zipfile

import pytest

from dino_core.data import open_source
from dino_core.errors import UserError


def test_one_image_is_a_collection_of_one(tree):
    folder = tree("a.png", "b.png")
    source = open_source(folder / "b.png")
    assert list(source.ids) == ["b.png"]
    assert source.image(0).max() == 1
    assert source.labels is None


def test_home_is_known(tree, monkeypatch):
    folder = tree("a.png")
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(open_source(f"~/{folder.name}")) == 1


def test_a_folder_called_scenes_needs_its_dot(tree, monkeypatch):
    folder = tree("a.png", root="scenes")
    monkeypatch.chdir(folder.parent)
    assert open_source("scenes").generated
    assert list(open_source("./scenes").ids) == ["a.png"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("scens", "did you mean scenes?"),
        ("fotos", "did you mean .*photos"),
        ("photos/cta", "did you mean .*photos/cat"),
        ("nothing like it", "no such file or folder; name a folder"),
        ("https://example.org/a.jpg", "not known as data"),
        ("", "no data given"),
        ("photos/notes.txt", "not known as data"),
        ("photos/x.zip", r"is compressed \(zip\)"),
        ("a\0b", "cannot be read|no such file"),
        ("n" * 5000, "cannot be read|no such file"),
    ],
)
def test_sentences(tree, monkeypatch, spec, words):
    folder = tree("cat/a.png", **{"notes.txt": b"hello"})
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    monkeypatch.chdir(folder.parent)
    with pytest.raises(UserError, match=words) as caught:
        open_source(spec)
    assert "\n" not in str(caught.value)
