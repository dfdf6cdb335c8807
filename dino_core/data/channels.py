"""Images of other than three channels: satellite bands, fluorescence stains, RGB with infrared.

`decode_channels` is `decode_image` for these, with the same promises: any bytes in, uint8
[H, W, C] or one `BadImage` with a reason out. What is decided here:

- An image has the channels that its file stores: transparency is the fourth channel of an RGBA
  PNG, not laid on white. Another number of channels than was asked for is a bad image; nothing is
  converted or left out in silence.
- TIFFs of several channels are read by tifffile (an extra: `pip install tifffile`), samples
  interleaved or in planes. A TIFF of as many gray pages as channels were asked for is one image.
- NumPy's `.npy` files [H, W, C] (or [H, W] for one channel) need nothing else.
- Values become 8 bits as in `decode.py`: unsigned 16 bits by v * 255 / 65535, rounded; other kinds
  by the same rule for the whole image, so that its channels keep their proportions. (Of 16-bit
  color PNGs Pillow gives the upper byte, at most 1 less.)
"""

import io
import logging
import math
import zlib
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from dino_core.data.decode import (
    MAX_PIXELS,
    ORIENTATION,
    BadImage,
    as_bad_image,
    open_checked,
    orientation_of,
    require_size,
    to_bytes,
    upright,
)

MAX_VALUES = 3 * MAX_PIXELS  # as many as the largest RGB image has
DENSEST = 1100  # bytes that one byte can unpack to: deflate's limit is 1032
DEFLATE, LZMA = (8, 32946, 50013), (34887, 34925)  # TIFF's numbers for kinds of compression
# tifffile logs what it finds odd in a broken file, on stderr where nobody asked for logs.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

NUMPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
NEEDS_TIFFFILE = "a TIFF of several channels needs a package: pip install tifffile"


@cache
def has_tifffile() -> bool:
    """Whether TIFFs of several channels can be read here."""
    return find_spec("tifffile") is not None


def decode_channels(data: bytes, channels: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file's bytes to uint8 [H, W, `channels`], writable and contiguous.

    Raises `BadImage`, and nothing else, whatever the bytes are.
    """
    with as_bad_image():
        if not data:
            raise BadImage("empty file")
        if data.startswith(NUMPY):
            pixels = _read_numpy(data, channels, max_pixels)
        elif data.startswith(TIFF) and channels > 1:
            pixels = _read_tiff(data, channels, max_pixels)
        else:
            pixels = _read_pillow(data, channels, max_pixels)
        return np.require(to_bytes(pixels), requirements=("C", "W"))


def _read_pillow(data: bytes, channels: int, max_pixels: int) -> np.ndarray:
    """What Pillow reads, as stored: gray, gray and alpha, RGB, RGBA, four inks."""
    with open_checked(data, max_pixels) as image:
        image.load()
        if image.mode == "1":
            image = image.convert("L")
        elif image.mode in ("P", "PA"):
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        pixels = _stacked(np.asarray(image))
        _require(pixels.shape[2], channels)
        return upright(pixels, orientation_of(image))


def _read_numpy(data: bytes, channels: int, max_pixels: int) -> np.ndarray:
    """An array of numbers in NumPy's own file format; objects (pickles) are refused."""
    file = io.BytesIO(data)
    header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(np.lib.format.read_magic(file))
    if header is None:
        raise BadImage("an .npy file of an unknown version")
    shape, fortran, dtype = header(file)
    if dtype.kind not in "buif":
        raise BadImage(f"holds {dtype}, not numbers")
    if len(shape) not in (2, 3):
        raise BadImage(f"an array of shape {list(shape)}; an image is [H, W, C]")
    require_size(shape[1], shape[0], max_pixels)
    if len(shape) == 3 and shape[2] != channels and shape[0] == channels:
        raise BadImage(f"an array of shape {list(shape)}; channels come last, [H, W, C]")
    _require(shape[2] if len(shape) == 3 else 1, channels)
    count = math.prod(shape)
    _require_values(count)
    if len(data) - file.tell() < count * dtype.itemsize:
        raise BadImage("truncated")
    values = np.frombuffer(data, dtype, count, offset=file.tell())
    return _stacked(values.reshape(shape, order="F" if fortran else "C"))


def _read_tiff(data: bytes, channels: int, max_pixels: int) -> np.ndarray:
    """The first page of a TIFF, or all of its pages where each is one channel."""
    if not has_tifffile():
        raise BadImage(NEEDS_TIFFFILE)
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        first = file.pages.first
        require_size(first.imagewidth, first.imagelength, max_pixels)
        samples = first.samplesperpixel
        _require(samples if samples > 1 else len(file.pages), channels)  # reads no page yet
        planes = [first] if samples > 1 else [p for p in file.pages if p.shape == first.shape]
        _require(samples if samples > 1 else len(planes), channels)
        count = first.imagewidth * first.imagelength * first.imagedepth * channels
        _require_values(count)
        packed = DENSEST if first.compression > 1 else 1
        if count * (first.bitspersample // 8) > len(data) * packed:
            raise BadImage("truncated (its header says more than the file can hold)")
        for page in planes:
            _check_whole(page, data)
            _check_inflated(page, data)
        if samples == 1:
            pixels = np.stack([page.asarray() for page in planes], axis=-1)
        elif first.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
            pixels = np.moveaxis(first.asarray(), 0, -1)
        else:
            pixels = first.asarray()
        if pixels.shape != (first.imagelength, first.imagewidth, channels):
            raise BadImage("broken image file (its header contradicts itself)")
        tag = first.tags.get(ORIENTATION)
        return upright(pixels, int(tag.value) if tag is not None else 1)


def _check_whole(page: Any, data: bytes) -> None:
    """`BadImage` where strips or tiles are missing: tifffile would fill in black."""
    places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    if len(places) < math.prod(page.chunked):
        raise BadImage("truncated")
    if any(offset + count > len(data) for offset, count in places):
        raise BadImage("truncated")


def _check_inflated(page: Any, data: bytes) -> None:
    """`BadImage` for strips or tiles that unpack to more than the header says (a bomb).

    tifffile unpacks them whole before it looks at their size.
    """
    if page.compression not in DEFLATE:
        if page.compression in LZMA:
            raise BadImage("LZMA compression is not supported; save it with deflate or without")
        return
    expected = math.prod(page.chunks) * page.dtype.itemsize
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        packed = memoryview(data)[offset : offset + count]
        if len(zlib.decompressobj().decompress(packed, expected + 1)) > expected:
            raise BadImage("broken image file (unpacks to more than its header says)")


def _stacked(pixels: np.ndarray) -> np.ndarray:
    """One plane [H, W] as an image of one channel [H, W, 1]."""
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _require_values(count: int) -> None:
    if count > MAX_VALUES:
        raise BadImage(f"too large: {count:,} values, the limit is {MAX_VALUES:,}")


def _require(found: int, wanted: int) -> None:
    if found != wanted:
        channels = "channel" if found == 1 else "channels"
        raise BadImage(f"has {found} {channels}, not {wanted}")
