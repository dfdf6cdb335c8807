"""What a model sees, from plain Python: one function a question, one small result each.

    model = load_model("starter")                           # dino_core.models
    embed(model, "photo.jpg").vector                        # float32 [D]
    attention(model, photo, layer=-1, query=(3, 7)).maps    # float32 [heads, h, w]
    similar(model, "galleries/pets", photo, k=5, where={"label": ["cat", "dog"]}).ids
    pca(model, photo).colors                                # uint8 [h, w, 3]
    mask(model, photo, kind="object").pixels                # bool [H, W]

An image is a path, a PIL image (read as its file would be), or uint8 [H, W, C] as it is. Results
hold arrays; `to_json()` of each gives text with plain lists, for other programs. Everything raises
`UserError` for what a user can mend: another kind of image, a missing file, a layer or head that
the model lacks.

Legend: H x W pixels, h x w patches, D width of the model.
"""

import base64
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from dino_core.data import BadImage, decode_image
from dino_core.data.channels import decode_channels
from dino_core.data.decode import read_file
from dino_core.errors import UserError
from dino_core.gallery import Gallery
from dino_core.gallery import embed as features
from dino_core.lenses import look, mass_mask, outlines
from dino_core.lenses import pca as lens
from dino_core.lenses.objects import object_mask
from dino_core.lenses.pca import PcaBasis
from dino_core.lenses.refine import refined
from dino_core.lenses.render import nearest
from dino_core.lenses.tokens import read_tokens
from dino_core.models import Model

AnyImage = str | Path | Image.Image | np.ndarray
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels, the last exclusive


class Result:
    """What all results can do."""

    def to_json(self) -> str:
        """All fields as one JSON object; arrays become lists."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}  # type: ignore[arg-type]
        return json.dumps(values, default=_plain, ensure_ascii=False)


@dataclass(frozen=True)
class Embedding(Result):
    vector: np.ndarray  # float32 [D], length 1; [2 D] for "cls+gem"
    kind: str
    feature_hash: str  # vectors are comparable only where it is equal
    model: str  # spec


@dataclass(frozen=True)
class HeadMaps(Result):
    """One layer's attention, as `lenses.Attention` has it of all layers."""

    maps: np.ndarray  # float32 [heads, h, w]
    layer: int  # from 0
    query: tuple[int, int] | None  # (row, column) of the patch that looks; None: CLS
    image_size: tuple[int, int]  # (height, width) in pixels as fed to the model
    source_size: tuple[int, int]
    model: str
    model_hash: str


@dataclass(frozen=True)
class Similar(Result):
    """The nearest images of a gallery, best first."""

    rows: np.ndarray  # int64 [K], in the gallery's tables
    ids: list[str]
    labels: list[str | None]
    scores: np.ndarray  # float32 [K], cosine, -1..1
    gallery: str  # its name
    model: str


@dataclass(frozen=True)
class PcaColors(Result):
    """Patch features as colors. In JSON the basis is base64 of `PcaBasis.to_bytes`."""

    colors: np.ndarray  # uint8 [h, w, 3]
    foreground: np.ndarray  # bool [h, w]
    basis: PcaBasis  # give it to `pca` of another image to have the same colors
    model: str
    model_hash: str


@dataclass(frozen=True)
class Mask(Result):
    """Part of an image. In JSON its outlines stand for the pixels (see `lenses.outlines`)."""

    patches: np.ndarray  # bool [h, w]
    pixels: np.ndarray  # bool [H, W], of the image that was given
    kind: str
    model: str
    model_hash: str

    def polygons(self, tolerance: float = 1.0) -> list[outlines.Ring]:
        """Its outlines in pixels, each point at most `tolerance` pixels off."""
        return outlines.polygons(self.pixels, tolerance)

    def to_json(self) -> str:
        """`patches` as lists, and the document of `outlines.to_json` for the pixels."""
        size = (self.pixels.shape[0], self.pixels.shape[1])
        text = outlines.to_json(self.polygons(), size, model=self.model, model_hash=self.model_hash)
        return json.dumps({"kind": self.kind, "patches": self.patches.tolist(), **json.loads(text)})


def embed(model: Model, image: AnyImage, *, kind: str = "cls") -> Embedding:
    """The image's feature as galleries hold it: "cls", "cls+gem" or "mean patch"."""
    found = features(model, [pixels(image, model.info.channels)], kind)
    return Embedding(found.array[0], kind, found.feature_hash, model.spec)


def attention(
    model: Model,
    image: AnyImage,
    *,
    layer: int = -1,
    size: int | None = None,
    query: tuple[int, int] | None = None,
) -> HeadMaps:
    """Where each head of a layer looks, from CLS or from the patch `query` (row, column).

    `size`: short side in pixels (None: `lenses.plan`'s default).
    """
    seen = look(model, pixels(image, model.info.channels), size=size, query=query)
    layer = _index("layer", layer, seen.layers, model)
    return HeadMaps(
        maps=seen.maps[layer],
        layer=layer,
        query=query,
        image_size=seen.image_size,
        source_size=seen.source_size,
        model=model.spec,
        model_hash=model.hash,
    )


def similar(
    model: Model,
    gallery: Gallery | str | Path,
    image: AnyImage,
    *,
    k: int = 20,
    box: Box | None = None,
    where: Mapping[str, Any] | None = None,
) -> Similar:
    """The `k` images of a gallery most like the image, or like the part of it in `box`.

    `where`: values by column of the gallery's table, one or several; an image is found only if it
    has one of them in each column. The image itself is found, too, if it is in the gallery.
    """
    opened = gallery if isinstance(gallery, Gallery) else Gallery.open(gallery)
    if k < 1:
        raise UserError(f"k is {k}; it must be 1 or more")
    asked = pixels(image, model.info.channels)
    asked = asked if box is None else _cropped(asked, box)
    allowed = None if where is None else _allowed(opened, where)
    hits = opened.search(asked, k=k, where=allowed, model=model)
    return Similar(hits.rows, hits.ids, hits.labels, hits.scores, opened.name, model.spec)


def pca(
    model: Model,
    image: AnyImage,
    basis: PcaBasis | None = None,
    *,
    foreground: bool = False,
    size: int | None = None,
) -> PcaColors:
    """The image's patches in the colors of `basis`; None: of one fitted on this image alone.

    `foreground`: fit the colors of the foreground alone, the rest is black.
    """
    tokens = read_tokens(model, pixels(image, model.info.channels), size=size)
    basis = lens.fit([tokens], foreground=foreground) if basis is None else basis
    return PcaColors(
        colors=lens.colors(basis, tokens),
        foreground=lens.foreground(basis, tokens),
        basis=basis,
        model=model.spec,
        model_hash=model.hash,
    )


def mask(
    model: Model,
    image: AnyImage,
    *,
    kind: str = "object",
    layer: int = -1,
    head: int | None = None,
    keep: float = 0.6,
    size: int | None = None,
    refine: bool = False,
) -> Mask:
    """The object by normalized cut ("object"), or the patches that hold `keep` of a head's
    attention ("head"; `head` None: the mean of the layer's heads).

    `refine`: draw the outline to the edges of the photo; else patches stay squares. The object's
    mask may be empty, where to this model nothing stands out.
    """
    source = pixels(image, model.info.channels)
    if kind == "object":
        patches = object_mask(read_tokens(model, source, size=size)).component
    elif kind == "head":
        if not 0 <= keep <= 1:
            raise UserError(f"keep is {keep}; it must lie between 0 and 1")
        maps = attention(model, source, layer=layer, size=size).maps
        shown = maps.mean(axis=0) if head is None else maps[_index("head", head, len(maps), model)]
        patches = mass_mask(shown, keep)
    else:
        raise UserError(f"mask kind {kind!r}: unknown; use object or head")
    whole = refined(patches, source) if refine else nearest(patches, *source.shape[:2])
    return Mask(patches, whole, kind, model.spec, model.hash)


def pixels(image: AnyImage, channels: int = 3) -> np.ndarray:
    """Any kind of image as uint8 [H, W, channels], a PIL image with the rules of files."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
            kind = f"{image.dtype} {list(image.shape)}"
            raise UserError(f"image: is {kind}; give uint8 [height, width, {channels}]")
        if 0 in image.shape:
            raise UserError(f"image: has no pixels ({image.shape[1]} x {image.shape[0]})")
        return image
    name, data = _file(image)
    try:
        data = data if isinstance(data, bytes) else read_file(data)
        return decode_image(data) if channels == 3 else decode_channels(data, channels)
    except BadImage as error:
        raise UserError(f"{name}: {error.reason}") from None


def _file(image: str | Path | Image.Image) -> tuple[str, bytes | Path]:
    """What to call an image, and its file: a PIL image as TIFF, which holds most of its modes."""
    if not isinstance(image, Image.Image):
        return str(image), Path(image)
    picture = ImageOps.exif_transpose(image)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
    elif picture.mode in ("P", "PA", "YCbCr", "HSV", "LAB", "RGBX"):
        picture = picture.convert("RGB")
    file = io.BytesIO()
    picture.save(file, "TIFF")
    return "image", file.getvalue()


def _index(what: str, number: int, count: int, model: Model) -> int:
    """`number` from the front, as sequences do. Raises `UserError` where there is none such."""
    if not -count <= number < count:
        raise UserError(f"{what} {number}: {model.spec} has {count} {what}s, 0 to {count - 1}")
    return number % count


def _cropped(image: np.ndarray, box: Box) -> np.ndarray:
    """The part of `image` in `box`, rounded outwards to whole pixels."""
    height, width = image.shape[:2]
    left, top, right, bottom = box
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise UserError(
            f"box {tuple(box)}: must be left, top, right, bottom within {width} x {height} pixels"
        )
    return image[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]


def _allowed(gallery: Gallery, where: Mapping[str, Any]) -> np.ndarray:
    """Which images have one of the values in each column, bool [n]."""
    allowed = pd.Series(True, index=gallery.images.index)
    for column, values in where.items():
        if column not in gallery.images:
            there = ", ".join(gallery.images.columns)
            raise UserError(f"{gallery.name}: has no column {column!r}; there are {there}")
        several = isinstance(values, Iterable) and not isinstance(values, str | bytes)
        allowed &= gallery.images[column].isin(list(values) if several else [values])
    return allowed.to_numpy(bool)


def _plain(value: Any) -> Any:
    """What JSON does not know by itself."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, PcaBasis):
        return base64.b64encode(value.to_bytes()).decode()
    raise TypeError(f"{type(value).__name__} has no JSON form")
