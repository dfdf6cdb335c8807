"""Where the model looks in one image of the gallery: the lens of the other app, in a panel.

The server looks once an image; layers, heads, sliders and colors then change in the browser, and
where layer and head come to rest goes into the address.
"""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st
from PIL import Image

from dino_core.catalog.entries import model_stamp
from dino_core.gallery import Gallery
from dino_core.gallery.progress import Progress
from explore import address, components, models
from explore.here import Here
from explore.server import publish
from explore.working import work

if TYPE_CHECKING:
    from dino_core.models import Model

LONGEST = 1200  # pixels of the photo under the maps
QUALITY = 88
KEY = "attention"


@dataclass(frozen=True)
class Looked:
    """One image as the lens draws it."""

    payload: bytes  # `LensPayload`
    photo: bytes  # JPEG
    of_gallery: bool  # whether the gallery's features are of the same weights


def show(here: Here, row: int) -> bool:
    """Draw the lens of the image in a row, or say what it waits for, or why there is none.

    Returns whether it is there.
    """
    opened, gallery = here.opened, here.gallery
    assert opened is not None
    if (model := models.wanted(here)) is None:
        return False
    stamp = model_stamp(here.root, here.model)
    looked = work(
        ("attention", opened.key, here.model, stamp, row),
        "Looking",
        lambda progress: _look(gallery, row, model, progress),
    )
    if looked is None:
        return False
    if not looked.of_gallery:
        st.caption(
            f"This is the attention of {here.model}; the gallery, its map and neighbors are of "
            f"{gallery.info.model}."
        )
    layer, head = chosen()
    components.attention(
        key=KEY,
        data={
            "payload": publish(looked.payload),
            "image": publish(looked.photo, "image/jpeg"),
            "title": opened.id(row).rsplit("/", 1)[-1],
            "layer": layer,
            "head": head,
        },
        on_place_change=_on_place,
    )
    return True


def chosen() -> tuple[int | None, int | None]:
    """Layer and head of the address, from 0, head -1 for the mean; None where it names none."""
    layer, head = (address.whole_of(address.get(name)) for name in ("layer", "head"))
    return (layer - 1, (head or 0) - 1) if layer else (None, None)


def spelled(layer: int, head: int) -> dict[str, str | None]:
    """Layer and head as the address has them: from 1, as people count; no head is the mean."""
    return {"layer": str(layer + 1), "head": str(head + 1) if head >= 0 else None}


def _on_place() -> None:
    place = st.session_state[KEY]["place"]
    if isinstance(place, dict) and all(isinstance(place.get(n), int) for n in ("layer", "head")):
        address.put(**spelled(place["layer"], place["head"]))


def _look(gallery: Gallery, row: int, model: "Model", progress: Progress) -> Looked:
    """Raises `UserError` where the file is gone, or the model has no attention."""
    from dino_core.lenses import LensPayload, look

    progress(0, 0, "Reading the image")
    image = gallery.image(row)
    progress(0, 0, "Running the model")
    payload = LensPayload.from_attention(look(model, image)).to_bytes()
    picture = Image.fromarray(image)
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return Looked(payload, buffer.getvalue(), model.hash == gallery.info.model_hash)
