"""Images of other than three channels: what is stored comes out, or a reason does."""

import io
import pickle
import re
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from dino_core.data import BadImage, open_source
from dino_core.data import channels as module
from dino_core.data.channels import decode_channels
from dino_core.errors import UserError
from dino_core.rng import generator

DEEP = generator(0, "tests", "channels").integers(0, 65536, (6, 9, 5)).astype(np.uint16)
DEEP[0, 0] = (0, 128, 129, 257, 65535)
DEEP_AS_8 = np.round(DEEP / 65535 * 255).astype(np.uint8)


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=values.dtype == object)
    return file.getvalue()


def encoded(values: np.ndarray, kind: str = "PNG", mode: str | None = None, **options) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(file, kind, **options)
    return file.getvalue()


def tiff(values: np.ndarray, **options) -> bytes:
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, values, metadata=None, **options)
    return file.getvalue()


def reason(data: bytes, channels: int, **options) -> str:
    with pytest.raises(BadImage) as caught:
        decode_channels(data, channels, **options)
    return caught.value.reason


@given(
    arrays(np.uint8, st.tuples(*[st.integers(1, 6)] * 3)),
    st.sampled_from(["C", "F"]),
)
def test_arrays_of_bytes_come_out_as_they_are(values, order):
    stored = np.asarray(values, order=order)
    decoded = decode_channels(npy(stored), values.shape[2])
    assert np.array_equal(decoded, values)
    assert decoded.flags.c_contiguous and decoded.flags.writeable


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_16_bit_arrays_are_scaled_by_the_full_range(byte_order):
    assert np.array_equal(decode_channels(npy(DEEP.astype(byte_order)), 5), DEEP_AS_8)


def test_other_numbers_keep_the_proportions_of_channels():
    values = np.array([[[0.0, 0.5], [1.0, 0.25]]])
    assert decode_channels(npy(values), 2).tolist() == [[[0, 128], [255, 64]]]
    assert decode_channels(npy(values * 4000), 2).tolist() == [[[0, 128], [255, 64]]]
    assert decode_channels(npy(values > 0.3), 2).tolist() == [[[0, 255], [255, 0]]]


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_tiff_of_five_channels(planar, compression):
    stored = DEEP if planar == "contig" else np.moveaxis(DEEP, -1, 0)
    data = tiff(stored, planarconfig=planar, photometric="minisblack", compression=compression)
    assert np.array_equal(decode_channels(data, 5), DEEP_AS_8)


@pytest.mark.parametrize("options", [{"tile": (16, 16)}, {"byteorder": ">"}, {"bigtiff": True}])
def test_tiff_of_five_channels_stored_otherwise(options):
    data = tiff(DEEP, planarconfig="contig", photometric="minisblack", **options)
    assert np.array_equal(decode_channels(data, 5), DEEP_AS_8)


def test_gray_pages_are_channels():
    data = tiff(np.moveaxis(DEEP, -1, 0), photometric="minisblack")
    assert np.array_equal(decode_channels(data, 5), DEEP_AS_8)
    assert reason(data, 4) == "has 5 channels, not 4"


def test_tiff_is_turned_upright():
    data = tiff(DEEP, planarconfig="contig", photometric="minisblack", extratags=[
        (274, "H", 1, 6, True)
    ])  # fmt: skip
    assert np.array_equal(decode_channels(data, 5), np.rot90(DEEP_AS_8, -1))


def test_transparency_is_the_fourth_channel():
    pixels = generator(1, "tests").integers(0, 256, (4, 5, 4)).astype(np.uint8)
    assert np.array_equal(decode_channels(encoded(pixels), 4), pixels)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_one_channel(kind):
    gray = DEEP[..., 0]
    assert np.array_equal(decode_channels(encoded(gray, kind), 1)[..., 0], DEEP_AS_8[..., 0])
    flat = (gray // 256).astype(np.uint8)
    assert np.array_equal(decode_channels(encoded(flat, kind), 1)[..., 0], flat)
    bits = decode_channels(encoded(flat, kind, mode="1"), 1)
    assert bits.shape == (6, 9, 1) and set(np.unique(bits)) <= {0, 255}


@pytest.mark.parametrize(
    ("data", "channels", "words"),
    [
        (b"", 2, "empty file"),
        (b"hello", 2, "not an image"),
        (npy(DEEP), 4, "has 5 channels, not 4"),
        (npy(DEEP[..., 0]), 2, "has 1 channel, not 2"),
        (npy(DEEP), 6, r"\[H, W, C\]"),
        (npy(DEEP[0, 0]), 5, r"shape \[5\]"),
        (npy(DEEP)[:-1], 5, "truncated"),
        (npy(DEEP)[:20], 5, "broken"),
        (npy(np.array([[[None]]])), 1, "holds object, not numbers"),
        (npy(np.zeros((0, 4, 2))), 2, "no pixels"),
        (encoded(DEEP_AS_8[..., :3]), 4, "has 3 channels, not 4"),
        (encoded(DEEP_AS_8[..., :3], "JPEG"), 1, "has 3 channels, not 1"),
        (encoded(DEEP_AS_8[..., 0], mode="P"), 1, "has 3 channels, not 1"),
    ],
)
def test_reasons(data, channels, words):
    assert re.search(words, reason(data, channels))


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    header = npy(np.zeros((1, 1, 2)))[:128].replace(b"'<f8'", b"'|O' ")
    assert reason(header + pickle.dumps(Bomb()), 2) == "holds object, not numbers"
    assert not (tmp_path / "ran").exists()


def test_an_array_that_says_it_is_huge_costs_nothing():
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (100_000, 100_000, 2)}
    )
    assert "too large" in reason(header.getvalue(), 2)


def test_a_strip_that_unpacks_to_more_than_it_should_is_refused():
    data = tiff(DEEP, planarconfig="contig", photometric="minisblack", compression="deflate")
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offset, size = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    bomb = zlib.compress(bytes(10**6))
    assert "unpacks to more" in reason(data[:offset] + bomb.ljust(size) + data[offset + size :], 5)


@pytest.mark.parametrize("options", [{}, {"compression": "deflate"}, {"tile": (16, 16)}])
def test_a_damaged_tiff_is_decoded_or_refused_at_no_great_cost(options):
    whole = tiff(
        np.tile(DEEP, (4, 4, 1)), planarconfig="contig", photometric="minisblack", **options
    )
    draw = generator(0, "tests", "damaged tiff")
    start, reasons = time.perf_counter(), list[str]()
    for k in range(200):
        data = bytearray(whole if k % 4 else whole[: int(draw.integers(len(whole)))])
        for at in draw.integers(0, max(1, min(300, len(data))), 3):
            data[at : at + 1] = draw.bytes(1)
        try:
            assert decode_channels(bytes(data), 5).shape[2] == 5
        except BadImage as error:
            reasons.append(error.reason)
    assert len(reasons) > 20 and all(reasons)
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_a_tiff_that_says_more_than_it_holds_is_truncated(compression):
    """Nothing is allocated for it, and no strip that is missing becomes black."""
    options = {"planarconfig": "contig", "photometric": "minisblack", "compression": compression}
    tifffile = pytest.importorskip("tifffile")
    data = bytearray(tiff(DEEP, rowsperstrip=2, **options))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        tag = file.pages[0].tags["ImageLength"]
    for height in (8, 60_000):
        data[tag.valueoffset : tag.valueoffset + 2] = struct.pack("<H", height)
        assert "truncated" in reason(bytes(data), 5)


@given(st.binary(max_size=40), st.integers(0, 200), st.integers(1, 5))
def test_only_bad_images_are_raised(noise, at, channels):
    whole = npy(DEEP)
    for data in (noise, whole[:at], whole[:at] + noise + whole[at + len(noise) :]):
        try:
            decoded = decode_channels(data, channels)
        except BadImage:
            continue
        assert decoded.shape[2] == channels


@pytest.fixture
def bands(tree):
    folder = tree("rgb.png")
    np.save(folder / "a.npy", DEEP)
    np.save(folder / "b.npy", DEEP[:3])
    return folder


def test_a_source_knows_its_channels(bands, packed):
    for source in (open_source(bands, channels=5), open_source(packed(bands), channels=5)):
        assert list(source.ids) == ["a.npy", "b.npy", "rgb.png"]
        assert source.channels == 5
        assert np.array_equal(source.image(1), DEEP_AS_8[:3])
        with pytest.raises(BadImage, match="has 3 channels, not 5"):
            source.image(2)
    (bands / "list.csv").write_text("path\na.npy\n")
    assert open_source(bands / "list.csv", channels=5).image(0).shape == (6, 9, 5)
    assert open_source(bands / "b.npy", channels=5).image(0).shape == (3, 9, 5)


def test_without_being_asked_arrays_are_no_images(bands):
    assert list(open_source(bands).ids) == ["rgb.png"]


def test_a_missing_package_is_a_sentence(bands, monkeypatch):
    monkeypatch.setattr(module, "has_tifffile", lambda: False)
    monkeypatch.setattr("dino_core.data.opening.has_tifffile", lambda: False)
    (bands / "c.tif").write_bytes(b"II*\0")
    with pytest.raises(UserError, match="pip install tifffile"):
        open_source(bands, channels=5)
    assert len(open_source(bands)) == 2
    assert "pip install tifffile" in reason(b"II*\0", 5)


@pytest.mark.parametrize(("spec", "channels"), [("scenes", 4), (".", 0)])
def test_channels_that_cannot_be(spec, channels):
    with pytest.raises(UserError, match="channels"):
        open_source(spec, channels=channels)
