"""Whole-or-nothing writes: a reader sees the old thing or the new one, never half of one."""

import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from dino_core.errors import UserError
from dino_core.files import read_json, whole_file, whole_folder, write_json


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_at_the_end_only(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole_file(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
        assert aside.parent == tmp_path  # renaming is atomic on one file system only
    assert path.read_text() == "new"
    assert left_in(tmp_path) == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert left_in(tmp_path) == ["a.txt"]


def test_missing_parents_are_made(tmp_path):
    write_json(tmp_path / "a" / "b" / "c.json", 1)
    assert read_json(tmp_path / "a" / "b" / "c.json") == 1


def test_files_and_folders_get_the_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "file") as aside:
            aside.write_text("x")
        with whole_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_a_folder_appears_whole(tmp_path):
    path = tmp_path / "step-00000001"
    with whole_folder(path) as aside:
        (aside / "deep").mkdir()
        (aside / "deep" / "weights").write_bytes(b"123")
        assert not path.exists()
    assert (path / "deep" / "weights").read_bytes() == b"123"
    assert left_in(tmp_path) == [path.name]


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "folder") as aside:
        (aside / "weights").write_bytes(b"123")
        raise ZeroDivisionError
    assert left_in(tmp_path) == []


def test_a_full_folder_is_not_overwritten(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").write_text("kept")
    with (
        pytest.raises(UserError, match=r"folder: cannot be written"),
        whole_folder(tmp_path / "folder"),
    ):
        pass
    assert left_in(tmp_path) == ["folder"]
    assert left_in(tmp_path / "folder") == ["kept"]


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"a\.json: cannot be written"):
        write_json(tmp_path / "file" / "a.json", 1)


@contextmanager
def little_room():
    """Files end at 4 KB: to a writer like a disk that is full, with another word for it.

    Around one write only: what pytest says may go to a longer file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_refused_write_is_a_sentence_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "recipe.json"
    write_json(path, "old")
    refused = pytest.raises(UserError, match=r"recipe\.json: cannot be written \(File too large\)")
    with refused, little_room():
        write_json(path, "new" * 5000)
    assert read_json(path) == "old"
    assert left_in(tmp_path) == ["recipe.json"]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, "old")
    code = f"""
import os, signal
from pathlib import Path
from dino_core.files import whole_file
with whole_file(Path({str(path)!r})) as aside:
    aside.write_text('"ha')
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert read_json(path) == "old"


def test_readers_never_see_half_a_file(tmp_path):
    """One thread keeps writing, another keeps reading: each read is one whole value."""
    path = tmp_path / "status.json"
    values = [{"state": letter * 50_000} for letter in "ab"]
    write_json(path, values[0])
    done = threading.Event()

    def write() -> None:
        for i in range(20):
            write_json(path, values[i % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert read_json(path) in values
    writer.join()


def test_json_is_readable_utf8(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Füße", "n": 1})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "name": "Füße",\n  "n": 1\n}\n'.encode()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_broken_json_names_the_file(tmp_path, content):
    path = tmp_path / "recipe.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"recipe\.json: cannot be read as JSON"):
        read_json(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        read_json(tmp_path / "none.json")
