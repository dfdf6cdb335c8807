"""The cached list of a folder's images: always the list that looking again would give."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dino_core.data import listing, open_source
from dino_core.data.cache import cache_folder
from dino_core.data.listing import list_images
from dino_core.rng import generator

PICTURE = b"\xff\xd8\xff" + bytes(40)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that were opened, in order; every folder is worth a cache here."""
    monkeypatch.setattr(listing, "FEWEST", 1)
    opened: list[str] = []
    scandir = os.scandir

    def watched(path):
        opened.append(os.path.basename(str(path)))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", watched)
    return opened


def settle(root: Path) -> None:
    """Let all of this have happened an hour ago: a folder just changed is never trusted."""
    then = time.time() - 3600
    for path in [root, *root.rglob("*")]:
        os.utime(path, (then, then), follow_symlinks=False)


def names(root: Path) -> list[str]:
    return list(list_images(root).names)


def truth(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    with monkeypatch.context() as patch:
        patch.setattr(listing, "_load", lambda place: None)
        patch.setattr(listing, "_save", lambda *args: None)
        return names(root)


def test_the_second_time_no_folder_is_opened(tree, looked_at):
    root = tree("dog/1.png", "cat/2.png", "cat/deep/3.png", **{"notes.txt": b"hello"})
    settle(root)
    first = names(root)
    assert set(looked_at) == {"photos", "dog", "cat", "deep"}
    looked_at.clear()
    assert names(root) == first == ["cat/2.png", "cat/deep/3.png", "dog/1.png"]
    assert not looked_at
    source = open_source(root)
    assert source.classes == ["cat", "dog"] and source.labels.tolist() == [0, 0, 1]


def test_only_a_changed_folder_is_opened_again(tree, looked_at):
    root = tree("dog/1.png", "cat/2.png", "cow/3.png")
    settle(root)
    names(root)
    looked_at.clear()
    (root / "cat" / "0.png").write_bytes(PICTURE)
    (root / "cat" / "2.png").unlink()
    assert names(root) == ["cat/0.png", "cow/3.png", "dog/1.png"]
    assert looked_at == ["cat"]


def test_nothing_is_written_into_the_folder(tree, looked_at):
    root = tree("dog/1.png")
    settle(root)
    names(root)
    assert sorted(path.name for path in root.rglob("*")) == ["1.png", "dog"]
    assert len(list(cache_folder("listings").iterdir())) == 1


def test_a_folder_that_just_changed_is_not_trusted(tree, looked_at):
    """Its time of change may be too coarse to tell what comes in the next moment."""
    root = tree("a.png")
    names(root)
    state = root.stat()
    (root / "b.png").write_bytes(PICTURE)
    os.utime(root, ns=(state.st_atime_ns, state.st_mtime_ns))  # a coarse clock
    assert names(root) == ["a.png", "b.png"]


def test_links_are_followed_anew(tree, looked_at):
    elsewhere = tree("x/1.png", root="elsewhere")
    root = tree("a.png")
    (root / "link").symlink_to(elsewhere / "x")
    (root / "file").symlink_to(elsewhere / "y.png")
    settle(root)
    settle(elsewhere)
    assert names(root) == ["a.png", "link/1.png"]
    (elsewhere / "x" / "2.png").write_bytes(PICTURE)
    (elsewhere / "y.png").write_bytes(PICTURE)
    assert names(root) == ["a.png", "file", "link/1.png", "link/2.png"]


def test_a_file_that_becomes_an_image_is_found(tree, looked_at):
    """A copy that was under way when the folder was listed."""
    root = tree("a.png", unfinished=b"")
    settle(root)
    assert names(root) == ["a.png"]
    state = root.stat()
    (root / "unfinished").write_bytes(PICTURE)
    assert root.stat().st_mtime_ns == state.st_mtime_ns
    assert names(root) == ["a.png", "unfinished"]


def test_arrays_have_a_list_of_their_own(tree, looked_at):
    root = tree("a.png", **{"b.npy": b""})
    settle(root)
    for _ in range(2):
        assert list(list_images(root, 4).names) == ["a.png", "b.npy"]
        assert list(list_images(root, 3).names) == ["a.png"]


def test_a_moved_folder_is_another(tree, looked_at):
    root = tree("a.png")
    settle(root)
    names(root)
    other = root.with_name("other")
    root.rename(other)
    (other / "a.png").rename(other / "b.png")
    shutil.copytree(other, root)
    assert names(root) == ["b.png"]


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other", "folder"])
def test_a_broken_cache_counts_for_nothing(tree, looked_at, damage):
    root = tree("dog/1.png", "cat/2.png")
    settle(root)
    first = names(root)
    (file,) = cache_folder("listings").iterdir()
    data = file.read_bytes()
    if damage == "folder":
        file.unlink()
        file.mkdir()
    elif damage == "other":
        with file.open("wb") as opened:
            np.savez(opened, other=np.zeros(3))
    else:
        half = len(data) // 2
        flipped = data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]
        file.write_bytes({"empty": b"", "cut": data[:half], "flipped": flipped}[damage])
    assert names(root) == first


def test_every_flipped_byte_is_survived(tree, looked_at):
    root = tree("dog/1.png", "cat/2.png")
    settle(root)
    first = names(root)
    (file,) = cache_folder("listings").iterdir()
    data = file.read_bytes()
    for at in generator(0, "tests", "listing").permutation(len(data))[:80]:
        file.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        assert names(root) == first


def test_a_cache_that_cannot_be_written_is_no_error(tree, looked_at, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("DINO_CACHE", str(tmp_path / "file"))
    root = tree("a.png")
    assert names(root) == names(root) == ["a.png"]


def test_a_few_files_need_no_cache(tree):
    names(tree("a.png"))
    assert not cache_folder("listings").exists()


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "move", "folder", "drop"]),
        st.sampled_from(["", "a", "b", "a/c"]),
        st.sampled_from(["1.png", "2.png", "no ending", "x.txt"]),
    ),
    max_size=8,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rounds=st.lists(CHANGES, min_size=1, max_size=3))
def test_whatever_changes_the_list_is_the_true_one(rounds, tree, looked_at, monkeypatch, tmp_path):
    root = tmp_path / "changing"
    shutil.rmtree(root, ignore_errors=True)
    for folder in ("a/c", "b"):
        (root / folder).mkdir(parents=True)
    for changes in rounds:
        for change, folder, name in changes:
            _change(root, change, root / folder, name)
        assert names(root) == truth(root, monkeypatch)
        settle_settled(root)
        names(root)  # this one writes a cache that is trusted
        assert names(root) == truth(root, monkeypatch)


def _change(root: Path, change: str, folder: Path, name: str) -> None:
    if change == "folder":
        (folder / "new").mkdir(parents=True, exist_ok=True)
        (folder / "new" / name).write_bytes(PICTURE)
    elif change == "drop" and folder != root:
        shutil.rmtree(folder, ignore_errors=True)
    elif change == "add" and folder.is_dir():
        (folder / name).write_bytes(PICTURE if "." not in name or "png" in name else b"text")
    elif change == "remove":
        (folder / name).unlink(missing_ok=True)
    elif change == "move" and (folder / name).is_file():
        (folder / name).rename(root / f"moved-{name}")


def settle_settled(root: Path) -> None:
    """As `settle`, but no two states of a folder get the same time."""
    settle_settled.clock = getattr(settle_settled, "clock", time.time() - 10**6) + 10
    for path in [root, *root.rglob("*")]:
        os.utime(path, (settle_settled.clock,) * 2)
