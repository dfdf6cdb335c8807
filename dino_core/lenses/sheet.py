"""One HTML page that shows the attention of many images: no network, no other file.

Photo and lens payload of each image are embedded, so opacity, mass threshold, color map and layer
move in the page. It opens from a disk, a mail or a web server alike, light or dark.
"""

import base64
import html
import io
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from dino_core.files import whole_file
from dino_core.lenses.colormap import ANCHORS

FEW = 200  # up to so many images, photos are embedded larger
PHOTO_SIDES = (640, 320)  # long side in pixels, for few and for many
PHOTO_QUALITY = 82


@dataclass(frozen=True)
class Entry:
    """One image of a sheet."""

    name: str
    folder: str  # its files, relative to the page
    photo: Path  # any picture that Pillow opens
    payload: bytes  # `LensPayload.to_bytes()`


@dataclass(frozen=True)
class Opening:
    """How a sheet stands when it is opened; `layers` are the payloads' layers by number."""

    title: str
    model: str
    data: str
    layers: tuple[int, ...]
    keep: float
    opacity: float
    colormap: str


def write_sheet(path: Path, opening: Opening, entries: Iterable[Entry], count: int) -> None:
    """Write the page to `path`, whole or not at all; `entries` (`count` of them) are streamed."""
    template = resources.files("dino_core.lenses").joinpath("sheet.html").read_text("utf-8")
    head, tail = _filled(template, opening, count).split("<!-- cards -->")
    side = PHOTO_SIDES[0] if count <= FEW else PHOTO_SIDES[1]
    with whole_file(path) as aside, aside.open("w", encoding="utf-8") as file:
        file.write(head)
        for entry in entries:
            file.write(_card(entry, side))
        file.write(tail)


def _filled(template: str, opening: Opening, count: int) -> str:
    """The template with its fields replaced; every value is escaped."""
    layers = "".join(
        f'<option value="{place}"{" selected" if place == len(opening.layers) - 1 else ""}>'
        f"{layer}</option>"
        for place, layer in enumerate(opening.layers)
    )
    colormaps = "".join(
        f'<option value="{codes}"{" selected" if name == opening.colormap else ""}>{name}</option>'
        for name, codes in ANCHORS.items()
    )
    fields = {
        "title": html.escape(opening.title),
        "model": html.escape(opening.model),
        "data": html.escape(opening.data),
        "count": f"{count:,} image{'' if count == 1 else 's'}",
        "layers": layers,
        "one-layer": " hidden" if len(opening.layers) == 1 else "",
        "layer-text": f"layer {opening.layers[0]}" if len(opening.layers) == 1 else "all layers",
        "colormaps": colormaps,
        "keep": f"{opening.keep * 100:g}",
        "opacity": f"{opening.opacity * 100:g}",
    }
    for name, value in fields.items():
        template = template.replace("{{" + name + "}}", value)
    return template


def _card(entry: Entry, side: int) -> str:
    """One image's part of the page; the script fills in its heads."""
    with Image.open(entry.photo) as file:
        photo = file.convert("RGB")
        photo.thumbnail((side, side), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    photo.save(stream, "JPEG", quality=PHOTO_QUALITY)
    source = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    name = html.escape(entry.name)
    return (
        f'<article class="card" data-lens="{base64.b64encode(entry.payload).decode()}">'
        f'<header><h2>{name}</h2><a href="{quote(entry.folder)}/">files</a></header>'
        f'<div class="tiles"><figure class="tile photo"><img src="{source}" alt="{name}" '
        f'width="{photo.width}" height="{photo.height}">'
        "<figcaption>photo</figcaption></figure></div></article>\n"
    )
