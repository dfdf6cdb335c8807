"""Small collections on disk that the tests of this room share."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(value: int, side: int = 8) -> bytes:
    """A PNG of one gray value."""
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists and downloads go where the test's files are."""
    monkeypatch.setenv("DINO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Path]:
    """tree("cat/1.png", "dog/2.png", notes.txt=b"...") fills a folder; image k has gray value k."""

    def fill(*names: str, root: str = "photos", **files: bytes) -> Path:
        folder = tmp_path / root
        contents = {name: picture(k) for k, name in enumerate(names)} | files
        for name, content in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        folder.mkdir(exist_ok=True)
        return folder

    return fill


@pytest.fixture
def packed(tmp_path: Path) -> Callable[..., Path]:
    """packed(folder) puts all its files into an uncompressed tar."""

    def pack(folder: Path, name: str = "photos.tar", mode: str = "w") -> Path:
        with tarfile.open(tmp_path / name, mode) as archive:
            archive.add(folder, arcname=".")
        return tmp_path / name

    return pack
