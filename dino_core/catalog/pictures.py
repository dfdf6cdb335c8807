"""Pictures that someone looks at: uploaded, an example, or one of a gallery.

A `Picture` holds no pixels, only how to read them again: a visitor may keep one for hours.
"""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dino_core.catalog.entries import Example
from dino_core.data import BadImage, decode_image, open_source
from dino_core.errors import UserError

if TYPE_CHECKING:
    from dino_core.gallery import Gallery

MAX_PIXELS = 50_000_000  # of an upload: a page must not spend a gigabyte on one visitor
MAX_UPLOAD = 20 * 2**20  # bytes


@dataclass(frozen=True)
class Picture:
    """A picture someone looks at: what it is called, and where its pixels come from."""

    title: str
    credit: str
    key: str  # tells it from all others
    read: Callable[[], np.ndarray] = field(repr=False, compare=False)  # uint8 [H, W, 3]
    gallery: str | None = None  # public name of the gallery it belongs to
    row: int | None = None  # and its row there


def uploaded(path: Path, title: str) -> Picture:
    """A picture from an uploaded file; read at once, so that a bad one is refused at once.

    Raises `UserError` with the reason: no image, too many pixels, zero bytes, ...
    """
    picture = Picture(title, "", f"upload:{path}", lambda: decode_image(path, MAX_PIXELS))
    load(picture)
    return picture


def from_example(example: Example) -> Picture:
    """A picture from the catalog's examples."""
    key = f"example:{example.path or example.scene}"
    return Picture(example.title, example.credit, key, lambda: _example_image(example))


def from_gallery(gallery: "Gallery", key: str, row: int) -> Picture:
    """One image of an opened gallery, whose public name is `key`. Raises `UserError`."""
    if not 0 <= row < len(gallery):
        raise UserError(f"{gallery.name}: has no image {row}; press refresh")
    title = str(gallery.images["id"].iloc[row])
    content = gallery.images["content_hash"].iloc[row]
    return Picture(
        title=title,
        credit=f"from {gallery.name}",
        key=f"gallery:{key}:{title}:{content}",
        read=lambda: gallery.image(row),
        gallery=key,
        row=row,
    )


def load(picture: Picture) -> np.ndarray:
    """The pixels, uint8 [H, W, 3]; a bad image or a file that is gone becomes a `UserError`."""
    try:
        return picture.read()
    except BadImage as error:
        raise UserError(f"{picture.title}: {error.reason}; choose another picture") from None
    except OSError as error:
        reason = error.strerror or "it is gone"
        raise UserError(f"{picture.title}: cannot be read ({reason}); choose it again") from None


def jpeg(image: np.ndarray, side: int, quality: int = 90) -> bytes:
    """`image` as JPEG, its long side at most `side` pixels."""
    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def jpeg_url(data: bytes) -> str:
    """JPEG bytes as an address that a browser shows without asking anyone."""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def _example_image(example: Example) -> np.ndarray:
    if example.path is not None:
        return decode_image(example.path, MAX_PIXELS)
    return open_source(f"scenes:{example.scene}-{example.scene + 1}").image(0)
