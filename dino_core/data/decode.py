"""Safe decoding: any bytes in, RGB uint8 or one `BadImage` with a reason out.

What is decided here, once, for training, galleries and apps alike:

- The content decides what a file is, never its name. Only formats that Pillow decodes by itself
  are tried (no EPS, which would start another program).
- Size is checked from the header, before any pixel is decompressed.
- EXIF orientation is applied. Transparency is laid on white. Of an animation, the first frame.
- 16 bits become 8 by v * 255 / 65535, rounded: the full range, nothing clipped, the same for every
  file. Floating point in [0, 1] is scaled so that 1 is white, values in [0, 255] are kept, 32-bit
  integers up to 65535 are taken for 16 bits, anything else is stretched from its least to its
  greatest value. What is not a number counts as 0.
- CMYK is converted without a color profile, Adobe's inverted kind told apart by its marker.
- JPEGs can be decoded at a half, a quarter or an eighth of their size where a caller asks for it
  (`shrink`): far less work, other pixels than those of the whole image reduced afterwards.
- A truncated file is bad: half a gray picture would teach a model gray halves.

Nothing here is global or shared, so threads and forked workers may decode at once.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

MAX_PIXELS = 2**27  # 134 million: 400 MB as RGB, beyond any camera
MAX_BYTES = 2**30
FORMATS = (
    "AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TIFF", "WEBP",
)  # fmt: skip
ORIENTATION = 0x0112  # the EXIF tag

# (height, width) of an image -> 1, 2, 4 or 8; it is asked of the pixels as the file stores them.
Shrink = Callable[[int, int], int]

# Pillow warns about huge images and odd EXIF; the first is checked here, the second harmless.
warnings.filterwarnings("ignore", module=r"PIL\.")


class BadImage(ValueError):
    """An image that cannot be used; `reason` says why in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode_image(
    data: bytes | Path, max_pixels: int = MAX_PIXELS, shrink: Shrink | None = None
) -> np.ndarray:
    """Decode an image file or its bytes to RGB, uint8 [H, W, 3], writable and contiguous.

    `shrink` says by how much a JPEG of some size may be reduced while it is decoded. Raises
    `BadImage`, and nothing else, whatever the bytes are.
    """
    with as_bad_image():
        if isinstance(data, Path):
            data = read_file(data)
        return _decode(data, max_pixels, shrink)


@contextmanager
def as_bad_image() -> Iterator[None]:
    """Whatever goes wrong inside is a `BadImage`."""
    try:
        yield
    except BadImage:
        raise
    except MemoryError:
        raise BadImage("too large for this machine's memory") from None
    except Exception as error:  # Pillow's plugins raise nearly everything on broken files
        raise BadImage(_reason(error)) from None


def read_file(path: Path) -> bytes:
    """The bytes of a file; `BadImage` where there are none or too many."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise BadImage(f"too large: {size:,} bytes, the limit is {MAX_BYTES:,}")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, BadImage):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadImage(f"cannot be read ({reason})") from None


def looks_like_image(head: bytes) -> bool:
    """Whether a file that begins with `head` (32 bytes are enough) is of a format we decode."""
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
    if head.startswith((*starts, b"qoif", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")):
        return True
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return True
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return True
    return head[:2] == b"BM" and head[6:10] == bytes(4) and len(head) > 25


def _decode(data: bytes, max_pixels: int, shrink: Shrink | None) -> np.ndarray:
    if not data:
        raise BadImage("empty file")
    with open_checked(data, max_pixels) as image:
        if shrink is not None and image.format == "JPEG" and image.mode in ("RGB", "L"):
            factor = shrink(image.height, image.width)
            if factor > 1:
                image.draft(None, (image.width // factor, image.height // factor))
        image.load()
        rgb = _to_rgb(image)
        # Pillow turns TIFFs while loading and then forgets the tag, so this comes after.
        return np.ascontiguousarray(upright(rgb, orientation_of(image)))


def open_checked(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image and check its size, no pixel decompressed yet; raises `BadImage`."""
    image = _open(io.BytesIO(data), data[:32])
    require_size(*image.size, max_pixels)
    return image


def require_size(width: int, height: int, max_pixels: int) -> None:
    """`BadImage` for an image without pixels, or with more than allowed."""
    if width < 1 or height < 1:
        raise BadImage(f"no pixels ({width} x {height})")
    if width * height > max_pixels:
        limit = f"the limit is {max_pixels:,} pixels"
        raise BadImage(f"too large: {width:,} x {height:,} pixels, {limit}")


def _open(file: BinaryIO, head: bytes) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except Image.UnidentifiedImageError:
        if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"heim"):
            raise BadImage("HEIC is not supported; convert it to JPEG or PNG") from None
        if looks_like_image(head):
            raise BadImage("broken image file (its header cannot be read)") from None
        raise BadImage(f"not an image (begins with {head[:12]!r})") from None


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, Image.DecompressionBombError):
        return "too large: " + text.split(",")[0].lower()
    if "truncated" in text:
        return "truncated"
    return f"broken image file ({text[:120] or type(error).__name__})"


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Pixels of any Pillow mode as RGB uint8 [H, W, 3], before orientation."""
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        values = np.asarray(image)
        gray = _from_deep(values) if mode.startswith("I;16") else _from_unbounded(values)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        paper = Image.new("RGBA", picture.size, "white")
        return np.array(Image.alpha_composite(paper, picture).convert("RGB"))
    if mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        # Pillow takes every CMYK JPEG for Adobe's, whose inks are stored inverted.
        inks = 255 - np.asarray(image)
        image = Image.fromarray(inks, "CMYK")
    return np.array(image.convert("RGB"))


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Pixel values of any kind and shape as uint8, by the rules in the module's docstring."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    deep = values.dtype.kind == "u" and values.dtype.itemsize == 2
    return _from_deep(values) if deep else _from_unbounded(values)


def _from_deep(values: np.ndarray) -> np.ndarray:
    """16-bit values as uint8: the full range scaled down and rounded."""
    wide = values.astype(np.uint32)
    wide *= 255  # in place: an image may take hundreds of megabytes
    wide += 32767
    wide //= 65535
    return wide.astype(np.uint8)


def _from_unbounded(values: np.ndarray) -> np.ndarray:
    """Other integers, or floating point, as uint8, by the rule in the module's docstring."""
    gray = np.where(np.isfinite(values), values, 0).astype(np.float64)
    least, most = gray.min(), gray.max()
    if least >= 0 and most <= 1 and values.dtype.kind == "f":
        gray *= 255
    elif least >= 0 and 255 < most <= 65535 and values.dtype.kind != "f":
        gray *= 255 / 65535
    elif least < 0 or most > 255:
        # Halved first: the difference of two extreme values may not be a number.
        gray = (gray / 2 - least / 2) / max(most / 2 - least / 2, 1e-300) * 255
    return np.round(gray).astype(np.uint8)


def orientation_of(image: Image.Image) -> int:
    """1 to 8 as EXIF has it; broken EXIF means upright, the pixels are still good."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return 1


def upright(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """Undo a camera's orientation (EXIF 2.32, table 6): rgb [H, W, C] as it should be seen."""
    if orientation in (5, 6, 7, 8):
        rgb = rgb.transpose(1, 0, 2)  # 5: this alone
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    return rgb
