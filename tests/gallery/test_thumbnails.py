"""Thumbnails as pictures: sizes, and a tile for what is gone."""

import io
import tempfile

import numpy as np
import pytest
from PIL import Image

from dino_core.gallery.thumbnails import cached, placeholder_jpeg, thumbnail_jpeg


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(300, 600, (100, 50)), (600, 300, (50, 100)), (20, 30, (30, 20)), (3, 4000, (100, 1))],
)
def test_sizes(height: int, width: int, expected: tuple[int, int]) -> None:
    jpeg = thumbnail_jpeg(np.full((height, width, 3), 200, np.uint8), side=100)
    picture = Image.open(io.BytesIO(jpeg))
    assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", expected)
    assert abs(np.asarray(picture).mean() - 200) < 2


def test_the_placeholder_shows_something() -> None:
    picture = np.asarray(Image.open(io.BytesIO(placeholder_jpeg(80))))
    assert picture.shape == (80, 80, 3) and picture.std() > 5


def test_a_failure_leaves_nothing_behind(tmp_path) -> None:
    with pytest.raises(ZeroDivisionError):
        cached(tmp_path / "thumbs" / "160" / "a" / "b.jpg", lambda: bytes(1 // 0))
    assert not list(tmp_path.rglob("*.*"))


def test_the_folder_of_a_deleted_gallery_is_not_made_anew(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    made = cached(tmp_path / "gone" / "thumbs" / "160" / "a" / "b.jpg", lambda: b"a picture")
    assert made.read_bytes() == b"a picture" and made.is_relative_to(tmp_path / "temporary")
    assert not (tmp_path / "gone").exists()
