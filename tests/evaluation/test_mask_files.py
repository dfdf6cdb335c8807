"""Mask files of all kinds, decoded once; what `masks` and `davis` make of the same files."""

import io

import numpy as np
import pytest
from PIL import Image

from dino_core.data import BadImage
from dino_core.evaluation.davis import read_labels
from dino_core.evaluation.mask_files import mask_values
from dino_core.evaluation.masks import read_mask

VALUES = np.array([[0, 1, 2], [90, 254, 255]], np.uint8)


def encoded(picture: Image.Image, format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format)
    return stream.getvalue()


def with_palette(colors: np.ndarray) -> Image.Image:
    picture = Image.frombytes("P", VALUES.shape[::-1], VALUES.tobytes())
    picture.putpalette(colors.astype(np.uint8).tobytes())
    return picture


def test_a_palette_of_colors_has_indices():
    colors = np.random.default_rng(0).integers(0, 256, (256, 3))
    values, indexed = mask_values(encoded(with_palette(colors)))
    assert indexed and values.dtype == np.uint8
    np.testing.assert_array_equal(values, VALUES)


def test_a_palette_of_grays_is_looked_up():
    """Indices say nothing where they stand for grays: here the first is white."""
    ramp = np.repeat(255 - np.arange(256)[:, None], 3, axis=1)
    values, indexed = mask_values(encoded(with_palette(ramp)))
    assert not indexed
    np.testing.assert_array_equal(values, 255 - VALUES)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "CMYK", "I;16", "I", "F"])
def test_gray_comes_as_it_was_stored(mode):
    picture = Image.fromarray(VALUES)
    picture = picture.convert(mode) if mode != "I;16" else Image.fromarray(VALUES.astype("<u2"))
    format = "TIFF" if mode in ("CMYK", "F", "I") else "PNG"
    values, indexed = mask_values(encoded(picture, format))
    assert not indexed
    np.testing.assert_array_equal(values, VALUES)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty file"),
        (b"text", "not an image"),
        (encoded(Image.fromarray(np.zeros((64, 64), np.uint8)))[:60], "truncated|broken"),
        (encoded(Image.new("RGB", (4, 4), (255, 0, 1))), "in color without a palette"),
    ],
)
def test_what_is_no_mask(data, says):
    with pytest.raises(BadImage, match=says):
        mask_values(data)


def test_both_readers_agree_on_palettes_and_differ_on_small_grays(tmp_path):
    path = tmp_path / "m.png"
    colors = np.random.default_rng(0).integers(0, 256, (256, 3))
    path.write_bytes(encoded(with_palette(colors)))
    np.testing.assert_array_equal(read_labels(path), read_mask(path).labels)
    path.write_bytes(encoded(Image.fromarray(VALUES)))
    np.testing.assert_array_equal(read_labels(path), read_mask(path).labels)  # one object
    path.write_bytes(encoded(Image.fromarray(VALUES[:1])))
    np.testing.assert_array_equal(read_labels(path), [[0, 1, 2]])  # indices without palette
    np.testing.assert_array_equal(read_mask(path).labels, [[0, 1, 1]])  # gray, and one object
