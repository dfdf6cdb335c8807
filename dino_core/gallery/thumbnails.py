"""Thumbnails: small JPEGs in the gallery's `thumbs/`, made when first asked for.

The cache is named by content, so it outlives a rebuild, and may be deleted at any time.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

QUALITY = 85
PLACEHOLDER_BACKGROUND = (226, 232, 240)  # slate, readable on light and on dark pages
PLACEHOLDER_LINE = (148, 163, 184)
PLACEHOLDER = "missing.jpg"  # no thumbnail's name: those are hexadecimal


def thumbnail_jpeg(image: np.ndarray, side: int) -> bytes:
    """uint8 [H, W, 3] as JPEG whose longer side is at most `side` pixels; nothing is enlarged."""
    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return _jpeg(picture)


def placeholder_jpeg(side: int) -> bytes:
    """A crossed-out gray tile: what stands in for an image that is not where it was."""
    picture = Image.new("RGB", (side, side), PLACEHOLDER_BACKGROUND)
    near, far = side * 3 // 8, side * 5 // 8
    draw, width = ImageDraw.Draw(picture), max(1, side // 40)
    draw.line((near, near, far, far), PLACEHOLDER_LINE, width)
    draw.line((near, far, far, near), PLACEHOLDER_LINE, width)
    return _jpeg(picture)


def is_placeholder(path: Path) -> bool:
    """Whether what `Gallery.thumbnail` returned stands in for an image that may come back."""
    return path.name == PLACEHOLDER


def cached(path: Path, make: Callable[[], bytes]) -> Path:
    """`path`, GALLERY/thumbs/SIDE/XX/NAME, made first if it is not there.

    Elsewhere where the gallery cannot be written, or was deleted: its folder is not made anew.
    """
    if not path.is_file():
        try:
            _write(path, make())
        except OSError:  # a gallery shared read-only or deleted, or a full disk
            folder = Path(tempfile.gettempdir()) / f"dino-thumbs-{_user()}"
            folder.mkdir(exist_ok=True)
            path = folder.joinpath(*path.parts[-4:])
            if not path.is_file():
                _write(path, make())
    return path


def _write(path: Path, data: bytes) -> None:
    """Write aside and rename: many may ask at once. Not flushed to the disk: it is a cache."""
    for folder in reversed(path.parents[:3]):
        folder.mkdir(exist_ok=True)
    descriptor, aside = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "0"
