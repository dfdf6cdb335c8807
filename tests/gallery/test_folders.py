"""Folders that a page may read: inside the allowed roots, wherever links and dots lead."""

from pathlib import Path

import pytest

from dino_core.errors import UserError
from dino_core.gallery import folders
from dino_core.gallery.folders import is_within, place_of, subfolders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("data/cats/small", "data/dogs", "data/.hidden", "secret"):
        (tmp_path / name).mkdir(parents=True)
    for name in (
        "data/cats/1.jpg",
        "data/cats/small/2.PNG",
        "data/cats/notes.txt",
        "data/dogs/3.gif",
    ):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "data" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "data" / "in").symlink_to(tmp_path / "data" / "dogs")
    return tmp_path / "data"


def test_what_lies_within(root: Path) -> None:
    for inside in ("", "cats", "cats/small", "in", "cats/../dogs", "cats/1.jpg"):
        assert is_within(root / inside, [root]), inside
    for outside in ("out", "..", "../secret", "nothing", "cats/../../secret"):
        assert not is_within(root / outside, [root]), outside
    assert is_within(root.parent / "secret", [root, root.parent / "secret"])
    assert not is_within(root.parent / "database", [root])  # begins alike


def test_subfolders_with_their_images(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(one.path.name, one.images) for one in subfolders(root, [root])]
    assert found == [("cats", 2), ("dogs", 1), ("in", 1)]
    assert [one.label for one in subfolders(root, [root])][:2] == [
        "cats (2 images)", "dogs (1 image)",
    ]  # fmt: skip
    monkeypatch.setattr(folders, "COUNTED", 1)
    assert subfolders(root, [root])[0].label == "cats (1+ images)"
    with pytest.raises(UserError, match="outside"):
        subfolders(root.parent, [root])


def test_who_may_name_what(root: Path) -> None:
    base, secret = root.parent, root.parent / "secret"
    assert place_of("secret", base, [], open_to_network=False) == secret
    assert place_of("data/cats", base, [root], open_to_network=True) == root / "cats"
    assert place_of(str(root / "in"), base, [root], open_to_network=True) == root / "dogs"
    with pytest.raises(UserError, match="start it with --data-root"):
        place_of(str(root), base, [], open_to_network=True)


def test_nobody_learns_what_lies_outside_of_the_roots(root: Path) -> None:
    refusals = set()
    for typed in ("secret", "nowhere", "data/out", "data/nothing", "~nobody_x/a", "a" * 5000):
        with pytest.raises(UserError) as refusal:
            place_of(typed, root.parent, [root], open_to_network=True)
        assert len(str(refusal.value)) < 500
        refusals.add(str(refusal.value).partition(": ")[2])
    assert refusals == {f"{folders.OUTSIDE}; choose inside {root}"}


def test_what_is_no_path_is_said(root: Path) -> None:
    for typed in ("nowhere", "~nobody_x/a", "a" * 5000, "a\0b"):
        with pytest.raises(UserError, match="no such folder"):
            place_of(typed, root, [], open_to_network=False)
