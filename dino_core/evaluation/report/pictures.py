"""The pictures of a page: made anew from data that is still here, and bounded in bytes."""

import base64
import io
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from PIL import Image

from dino_core.data import BadImage
from dino_core.evaluation.masks import Masks
from dino_core.evaluation.report.board import Record
from dino_core.evaluation.report.elements import escaped
from dino_core.evaluation.report.opening import Here, Opening
from dino_core.lenses.attention import resized
from dino_core.models import Model

T = TypeVar("T")
BYTES = 3_600_000  # of all pictures together: the page stays below 5 MB
THUMB_SIDE, QUALITY = 88, 80  # pixels, and of JPEG


class Pictures:
    """The pictures of one card: how many bytes they take, and what is to be said of them."""

    def __init__(self, opening: Opening, room: int) -> None:
        self.opening = opening
        self.room = room
        self.used = 0
        self.notes: list[str] = []
        self.missing: list[str] = []  # what could not be had, and why

    def data(self, record: Record, name: str) -> Here | None:
        """The data in a record's field `name`; None, noted, where it cannot be had."""
        spec = record.values.get(name)
        if not isinstance(spec, str) or not spec:
            return None
        here, why = self.opening.source(spec, _text(record, f"{name}_hash"))
        return self._noted(here, why)

    def masks(self, record: Record, here: Here) -> Masks | None:
        """The masks that a record names; None, noted, where they cannot be had."""
        folder, digest = _text(record, "masks"), _text(record, "masks_hash")
        return self._noted(*self.opening.masks(here, folder, digest))

    def model(self, record: Record) -> Model | None:
        """The model of a record; None, noted, where it cannot be had."""
        return self._noted(*self.opening.model(*record.model))

    def _noted(self, found: T | None, why: str) -> T | None:
        if why:
            self.missing.append(why)
            self.notes.append(f"no pictures: {why}")
        return found

    def img(self, pixels: np.ndarray, alt: str) -> str:
        """uint8 [H, W, 3] as an element; "", noted, when there is no room for it."""
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY, optimize=True)
        data = base64.b64encode(stream.getvalue()).decode()
        if self.used + len(data) > self.room:
            self.notes.append("further pictures are left out, to keep the page small")
            return ""
        self.used += len(data)
        height, width = pixels.shape[:2]
        return (
            f"<img src='data:image/jpeg;base64,{data}' alt='{escaped(alt)}' "
            f"width='{width}' height='{height}'>"
        )

    def thumb(self, here: Here | None, name: str, caption: str = "") -> str:
        """The middle square of the image of that id; "" where it cannot be had."""
        place = None if here is None else here.places.get(name)
        if here is None or place is None:
            return ""
        try:
            image = here.source.image(place)
        except BadImage:
            return ""
        return self.img(_square(image), caption or name)

    def thumbs(self, here: Here | None, names: Sequence[str], caption: str) -> str:
        """Several of these; the caption stands behind each name for who cannot see them."""
        return "".join(self.thumb(here, name, f"{name}, {caption}") for name in names)


def _text(record: Record, name: str) -> str:
    value = record.values.get(name)
    return value if isinstance(value, str) else ""


def _square(image: np.ndarray) -> np.ndarray:
    """The middle square, `THUMB_SIDE` pixels a side."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return resized(image[top : top + side, left : left + side], THUMB_SIDE, THUMB_SIDE)
