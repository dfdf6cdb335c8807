"""Deleting: only galleries under the root, never while one is built, and what goes is told."""

import json
import shutil
import tempfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from dino_core.errors import UserError
from dino_core.files import held
from dino_core.gallery import Gallery, clusters, comparing, list_galleries
from dino_core.gallery.atlas import Atlas
from dino_core.gallery.building import draw_map
from dino_core.gallery.deleting import DELETED, delete_gallery, loss, size_on_disk, size_said
from dino_core.gallery.jobs import LOCK
from dino_core.gallery.notes import Notes
from dino_core.processes import this_process


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """What begins like a gallery."""
    folder = tmp_path / "galleries" / "mine"
    (folder / "user").mkdir(parents=True)
    (folder / "thumbs" / "160").mkdir(parents=True)
    (folder / "building.json").write_bytes(b"x" * 100)
    (folder / "thumbs" / "160" / "a.jpg").write_bytes(b"x" * 5000)
    (folder / "user" / "tags.jsonl").write_text("{}\n{}\n\n")
    (folder / "user" / "reviews.jsonl").write_text("{}\n")
    return folder


def test_it_goes_and_leaves_nothing(path: Path, tmp_path: Path) -> None:
    left = path.parent / f"{DELETED}abc.tmp"  # of a deletion that was killed
    theirs = path.parent / ".copy.abc.tmp"  # that somebody is writing
    left.mkdir()
    theirs.mkdir()
    delete_gallery(path, tmp_path)
    assert list(path.parent.iterdir()) == [theirs] and not list_galleries(tmp_path)


def test_working_on_after_a_deletion_does_not_begin_the_folder_again(
    scenes_gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open page still holds the gallery: what it computes has no place any more."""
    path = shutil.copytree(scenes_gallery.path, tmp_path / "galleries" / "scenes")
    gallery = Gallery.open(path)
    match = comparing.match_images(gallery, gallery)
    points = np.zeros((len(gallery), 2), np.float32)

    def deleted_meanwhile(*_: object) -> list[np.ndarray]:
        delete_gallery(path, tmp_path)
        return [points, points]

    monkeypatch.setattr(comparing, "aligned_maps", deleted_meanwhile)
    assert len(comparing.aligned_pair(gallery, gallery, match).rows_S) == len(gallery)
    for work in (
        lambda: clusters.kmeans(gallery, 3),
        lambda: Notes(path).tag(["a"], "mine"),
        lambda: Atlas.write(Mock(), gallery),
        lambda: draw_map(gallery, redo=True),
    ):
        with pytest.raises(UserError, match="scenes is not there any more; reload the page"):
            work()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert gallery.thumbnail(0).is_file()
    assert not path.exists()


def test_what_would_go(path: Path) -> None:
    assert size_on_disk(path) == 100 + 7 + 3
    assert loss(path).notes == 3
    assert loss(path).sentence.startswith(
        "110 bytes are freed, with it go 3 notes that people made"
    )
    assert [size_said(size) for size in (0, 999, 1400, 21_600_000)] == [
        "0 bytes", "999 bytes", "1.4 kB", "21.6 MB",
    ]  # fmt: skip


def test_anything_else_is_left_alone(path: Path, tmp_path: Path) -> None:
    (tmp_path / "galleries" / "photos").mkdir()
    (tmp_path / "galleries" / "photos" / "1.jpg").write_bytes(b"mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "gallery.json").write_text("{}")
    (tmp_path / "galleries" / "link").symlink_to(tmp_path / "elsewhere")
    for other in (
        path.parent / "photos", path.parent / "link", path.parent / "nothing", path.parent,
        tmp_path / "elsewhere", path / "user", path.parent / ".." / "elsewhere",
    ):  # fmt: skip
        with pytest.raises(UserError):
            delete_gallery(other, tmp_path)
    assert (tmp_path / "galleries" / "photos" / "1.jpg").exists()
    assert (tmp_path / "elsewhere" / "gallery.json").exists() and path.exists()


def test_not_while_it_is_built(path: Path, tmp_path: Path) -> None:
    with held(path / LOCK, "busy"), pytest.raises(UserError, match="is being built; stop that"):
        delete_gallery(path, tmp_path)
    status = {"state": "running", "process": this_process()}
    (path / "status.json").write_text(json.dumps(status))
    with pytest.raises(UserError, match="is being built; stop that"):
        delete_gallery(path, tmp_path)
    assert path.exists()
