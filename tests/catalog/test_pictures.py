"""Uploads, examples, images of galleries: one kind of thing."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_core import catalog
from dino_core.catalog import pictures
from dino_core.errors import UserError


def test_an_upload_is_read_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), (10, 200, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side
    image.save(tmp_path / "a.jpg", exif=exif)
    picture = catalog.uploaded(tmp_path / "a.jpg", "a.jpg")
    assert catalog.load(picture).shape == (40, 20, 3)


@pytest.mark.parametrize("content", [b"", b"this is a text, named .jpg", b"\xff\xd8\xff\xe0half"])
def test_a_bad_upload_is_one_sentence_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^holiday\.jpg: .+; choose another picture$"):
        catalog.uploaded(path, "holiday.jpg")


def test_too_many_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "big.png")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 9_999)
    with pytest.raises(UserError, match=r"big\.png"):
        catalog.uploaded(tmp_path / "big.png", "big.png")


def test_a_file_that_is_gone_is_a_sentence(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    picture = catalog.uploaded(tmp_path / "a.png", "a.png")
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png"):
        catalog.load(picture)


def test_every_example_can_be_read_and_has_its_own_key() -> None:
    shown = [catalog.from_example(example) for example in catalog.examples()]
    assert len({picture.key for picture in shown}) == len(shown)
    for picture in shown:
        image = catalog.load(picture)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def test_a_photo_for_the_page_is_bounded() -> None:
    image = np.zeros((30, 90, 3), np.uint8)
    assert Image.open(io.BytesIO(catalog.jpeg(image, 45))).size == (45, 15)
    assert Image.open(io.BytesIO(catalog.jpeg(image, 500))).size == (90, 30), "nothing is enlarged"
