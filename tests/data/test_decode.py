"""Decoding: known pixels come out of every kind of file, and nothing but BadImage is raised."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps

from dino_core.data import BadImage, decode_image, open_source
from dino_core.data.decode import looks_like_image

CORNERS = np.zeros((12, 20, 3), np.uint8)  # each quarter its own color: any turn shows
CORNERS[:6, :10], CORNERS[:6, 10:] = (200, 30, 40), (20, 180, 60)
CORNERS[6:, :10], CORNERS[6:, 10:] = (40, 60, 220), (230, 220, 50)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(bits: int, color: int, rows: np.ndarray) -> bytes:
    """A PNG written by hand, for what Pillow does not write: rows uint8 [h, bytes per row]."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color]
    width = rows.shape[1] * 8 // (bits * channels)
    header = struct.pack(">IIBBBBB", width, len(rows), bits, color, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", body), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def reason(data: bytes, **options: int) -> str:
    with pytest.raises(BadImage) as caught:
        decode_image(data, **options)
    return caught.value.reason


@given(arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3))))
def test_decoding_what_was_decoded_changes_nothing(pixels):
    assert np.array_equal(decode_image(encoded(pixels)), pixels)


def test_result_is_contiguous_and_writable(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(CORNERS))
    image = decode_image(path)
    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert image.dtype == np.uint8


# What must be done to the stored picture for each EXIF orientation, from the standard's own words.
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.rot90(np.fliplr(a), 1),  # row 0 is the left side, column 0 the top
    6: lambda a: np.rot90(a, -1),  # row 0 is the right side: turn clockwise
    7: lambda a: np.rot90(np.fliplr(a), -1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(CORNERS, kind, exif=exif, **options)
    assert np.array_equal(decode_image(data), UPRIGHT[orientation](CORNERS))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_of_jpeg_agrees_with_pillow(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(CORNERS, "JPEG", quality=95, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode_image(data), np.asarray(expected))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_impossible_orientation_means_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode_image(encoded(CORNERS, exif=exif)), CORNERS)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_lose_the_picture():
    data = encoded(CORNERS, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert decode_image(data).shape == CORNERS.shape


def test_grayscale_becomes_three_equal_channels():
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(decode_image(encoded(gray)), np.stack([gray] * 3, -1))


def test_one_bit_is_black_and_white():
    bits = np.indices((9, 13)).sum(0) % 2 == 0
    decoded = decode_image(encoded(Image.fromarray(bits)))
    assert np.array_equal(decoded[..., 0], np.where(bits, 255, 0))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_laid_on_white(mode):
    image = Image.new(mode, (3, 1))
    color = (100,) if mode == "LA" else (100, 100, 100)
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (*color, alpha))
    assert decode_image(encoded(image))[0, :, 0].tolist() == [255, 177, 100]


def test_palette_with_a_transparent_color():
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image = image.convert("P")
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 250])
    assert decode_image(encoded(image)).tolist() == [[[10, 20, 30], [200, 0, 0], [0, 0, 250]]]
    clear = decode_image(encoded(image, transparency=1))
    assert clear.tolist() == [[[10, 20, 30], [255, 255, 255], [0, 0, 250]]]


def test_cmyk_tiff():
    inks = np.zeros((1, 4, 4), np.uint8)
    inks[0, 0, 0] = inks[0, 1, 3] = inks[0, 2, 1] = 255  # cyan, black, magenta, no ink
    decoded = decode_image(encoded(Image.fromarray(inks, "CMYK"), "TIFF"))
    assert decoded.tolist() == [[[0, 255, 255], [0, 0, 0], [255, 0, 255], [255, 255, 255]]]


def test_cmyk_jpeg_with_and_without_adobe_marker():
    """Adobe stores inks inverted and says so in a marker; without the marker they are plain."""
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[..., 0], inks[..., 1] = 230, 40
    adobe = encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=95)
    marker = adobe.index(b"\xff\xee\x00\x0eAdobe")
    plain = adobe[:marker] + adobe[marker + 16 :]
    assert np.abs(decode_image(adobe)[8, 8].astype(int) - (25, 215, 255)).max() < 8
    # The same stored values, read as plain inks: 255 - 230 of cyan, 255 - 40 of magenta, all black.
    assert np.abs(decode_image(plain)[8, 8].astype(int) - (0, 0, 0)).max() < 8
    inverted = 255 - inks
    stored_plain = encoded(Image.fromarray(inverted, "CMYK"), "JPEG", quality=95)
    marker = stored_plain.index(b"\xff\xee\x00\x0eAdobe")
    stored_plain = stored_plain[:marker] + stored_plain[marker + 16 :]
    assert np.abs(decode_image(stored_plain)[8, 8].astype(int) - (25, 215, 255)).max() < 8


DEEP = np.array([[0, 128, 129, 257, 32768, 40000, 65407, 65535]], np.uint16)
DEEP_AS_8 = np.round(DEEP / 65535 * 255).astype(int)  # 0 0 1 1 128 156 255 255: no clipping


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled(kind):
    decoded = decode_image(encoded(Image.fromarray(DEEP), kind))
    assert np.array_equal(decoded[..., 0], DEEP_AS_8)


def test_16_bit_big_endian_tiff_is_scaled():
    image = Image.frombytes("I;16B", (8, 1), DEEP.astype(">u2").tobytes())
    assert np.array_equal(decode_image(encoded(image, "TIFF"))[..., 0], DEEP_AS_8)


@pytest.mark.parametrize(("color", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_16_bit_color_png_is_scaled(color, channels):
    values = np.full((2, 3, channels), 65535, ">u2")
    values[..., 0] = 40000
    decoded = decode_image(png(16, color, values.reshape(2, -1).view(np.uint8)))
    assert abs(int(decoded[0, 0, 0]) - 156) <= 1
    assert decoded.shape == (2, 3, 3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 1000.0, 4000.0], [0, 64, 255]),
        ([np.nan, np.inf, 1.0], [0, 0, 255]),
        ([7.0, 7.0, 7.0], [7, 7, 7]),
        ([-3.0, -3.0, -3.0], [0, 0, 0]),
        ([-3e38, 0.0, 3e38], [0, 128, 255]),
    ],
)
def test_floating_point_tiff(values, expected):
    image = Image.fromarray(np.array([values], np.float32))
    assert decode_image(encoded(image, "TIFF"))[0, :, 0].tolist() == expected


def test_32_bit_integers_that_are_16_bits():
    image = Image.fromarray(DEEP.astype(np.int32))
    assert np.array_equal(decode_image(encoded(image, "TIFF"))[..., 0], DEEP_AS_8)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    assert (decode_image(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "AVIF"])
def test_truncated_files_are_bad(kind):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = encoded(noise, kind)
    assert decode_image(data).shape == (64, 64, 3)
    assert reason(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty file"),
        (b"hello world, I am a text", "not an image (begins with"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\xff\xd8\xff", "broken image file"),
        (bytes(100), "not an image"),
    ],
)
def test_reasons(data, words):
    assert words in reason(data)


def test_missing_file_and_folder_are_bad_images(tmp_path):
    with pytest.raises(BadImage, match="No such file"):
        decode_image(tmp_path / "gone.jpg")
    with pytest.raises(BadImage, match="directory"):
        decode_image(tmp_path)


def test_bombs_are_refused_by_their_header():
    """30,000 x 30,000 pixels of nothing in under a kilobyte: refused with no pixel decoded."""
    header = png(8, 2, np.zeros((1, 3), np.uint8))
    width = struct.pack(">II", 30000, 30000)
    body = b"IHDR" + width + header[24:29]
    bomb = header[:12] + body + struct.pack(">I", zlib.crc32(body)) + header[33:]
    assert reason(bomb).startswith("too large")


def test_pixel_limit_is_exact():
    data = encoded(CORNERS)
    assert decode_image(data, max_pixels=240).shape == CORNERS.shape
    assert reason(data, max_pixels=239) == "too large: 20 x 12 pixels, the limit is 239 pixels"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "AVIF"])
def test_images_are_known_by_their_first_bytes(kind):
    assert looks_like_image(encoded(CORNERS, kind)[:32])


def test_text_is_not_known_as_an_image():
    for text in (b"BMW is a car maker from Munich, Bavaria", b"II. Chapter", b"P6 or P5", b""):
        assert not looks_like_image(text[:32])


KINDS = ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "PPM", "AVIF"]
SAMPLES = [encoded(CORNERS, kind) for kind in KINDS]
SAMPLES += [
    encoded(Image.fromarray(CORNERS).convert("P")),
    encoded(Image.fromarray(CORNERS).convert("CMYK"), "JPEG"),
    encoded(Image.fromarray(DEEP)),
    encoded(Image.fromarray(CORNERS), "TIFF", compression="tiff_lzw"),
    encoded(Image.fromarray(CORNERS), "TIFF", compression="jpeg"),
]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, cut, doubled or swapped at random, mostly near the header."""
    body = bytearray(data)
    for _ in range(int(rng.integers(1, 12))):
        reach = len(body) if rng.random() < 0.5 else min(len(body), 64)
        if reach:
            body[int(rng.integers(reach))] = int(rng.integers(256))
    if rng.random() < 0.3:
        body = body[: int(rng.integers(len(body) + 1))]
    if rng.random() < 0.2:
        body += body[: int(rng.integers(len(body) + 1))]
    return bytes(body)


def outcome(data: bytes) -> str:
    """ "image" or "bad"; anything raised but BadImage goes through."""
    try:
        image = decode_image(data, max_pixels=4_000_000)
    except BadImage as error:
        return "bad" if error.reason else "no reason given"
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    return "image"


@pytest.mark.filterwarnings("ignore:::PIL")
@settings(max_examples=150)
@given(st.sampled_from(SAMPLES), st.integers(0, 2**32 - 1))
def test_mutated_bytes_raise_nothing_but_bad_image(data, seed):
    assert outcome(mutated(data, np.random.default_rng(seed))) in ("image", "bad")


@settings(max_examples=60)
@given(st.binary(max_size=200))
def test_any_bytes_raise_nothing_but_bad_image(data):
    assert outcome(data) in ("image", "bad")


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:::PIL")
def test_300_mutated_files_of_every_kind():
    rng = np.random.default_rng(1)
    outcomes = [outcome(mutated(data, rng)) for data in SAMPLES for _ in range(300)]
    assert {"image", "bad"} == set(outcomes)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_jpegs_are_reduced_while_decoded(mode, factor):
    """As if decoded whole and averaged; CMYK and other formats stay as they are."""
    picture = Image.fromarray(open_source("scenes:1").image(0)).resize((250, 133)).convert(mode)
    files = {kind: io.BytesIO() for kind in ("JPEG", "PNG")}
    picture.save(files["JPEG"], "JPEG", quality=95)
    whole = decode_image(files["JPEG"].getvalue())
    asked = []

    def shrink(height, width):
        asked.append((height, width))
        return factor

    small = decode_image(files["JPEG"].getvalue(), shrink=shrink)
    if mode == "CMYK":
        assert np.array_equal(small, whole) and asked == []
        return
    assert asked == [(133, 250)]
    assert small.shape == (-(-133 // factor), -(-250 // factor), 3)
    inside = small[: 133 // factor, : 250 // factor].astype(float)
    height, width = inside.shape[:2]
    blocks = whole[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    assert np.abs(inside - blocks.mean((1, 3))).mean() < 2.5
    picture.save(files["PNG"], "PNG")
    assert decode_image(files["PNG"].getvalue(), shrink=shrink).shape == (133, 250, 3)
