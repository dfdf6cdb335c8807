"""The head atlas of a gallery: what every head of its model does, image after image.

    atlas = build_atlas(gallery, model)             # gallery.atlas_building; 512 images, minutes
    atlas = Atlas.read(gallery)                     # what is stored: needs no model, and no torch
    atlas.mean["entropy"]                           # float32 [L, A]
    excited(gallery, atlas, layer=11, head=2)       # the images that excite that head most
    atlas.payload(layer=11, head=2)                 # their maps, for a browser to draw

Images are looked at as the lens does (28 patches a side, or the model's own size where that is
larger), but cut to the square in their middle, as features are. Of each image and head, with `a`
the softmax row of CLS over all tokens and P the patches:

entropy      of `a` over the patches, scaled to sum 1: nats, 0 (one patch) to ln P (all alike).
distance     how far a head looks, in patches: from each patch that asks to those it attends to,
             weighted by its attention, averaged over patches that ask. Source: Dosovitskiy et al.,
             arXiv:2010.11929, appendix D.7. CLS has no place to measure from, so it neither asks
             nor counts; those that ask lie on a lattice of at most 8 x 8 over the grid, always the
             same, for all rows of a large grid cost more than the model itself.
foreground   share of the attention on patches that falls inside the image's mask, 0..1.
outside      share of `a` that goes to CLS and registers, 0..1.
excitement   share of `a`, of ALL tokens, on the tenth of the patches that get most, 0..1: high
             where a head has found what it looks for. One that rests on registers has little of
             it, one that spreads evenly about a tenth.

Files in `heads/`: `atlas.json` names its `atlas-HASH.npz`, and is written after it, so whoever
reads it sees one set. Images are known by their ids: an atlas outlives an update of the gallery.

Shapes: L layers, A heads, h x w patches (P of them), K images kept a head, T bins.
"""

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from dino_core.errors import UserError
from dino_core.files import read_json, whole_file, write_json
from dino_core.gallery.manifest import require_there

if TYPE_CHECKING:
    from dino_core.gallery.opened import Gallery

FOLDER, HEADER = "heads", "atlas.json"
VERSION = 1
STATISTICS = ("entropy", "distance", "foreground", "outside", "excitement")
KEPT = 16  # images a head
BINS = 32  # of a histogram
KEEP_STEPS = 21  # shares of a map's mass: 0, 5, .. 100 %, as in the lens payload
QUALITY = 88  # of photos

# Arrays of the .npz, beside `ids`.
_OF_HEADS = ("mean", "deviation", "counts")  # [statistics, L, A, ...]
_OF_KEPT = ("top", "scores", "codes", "peak", "kept")  # [L, A, K, ...]


@dataclass(frozen=True)
class AtlasInfo:
    """What an atlas was made of: the fields of `atlas.json`."""

    model: str  # spec
    model_hash: str
    source_hash: str  # of the gallery as it was then
    layers: int
    heads: int
    grid: tuple[int, int]
    patch_size: int  # pixels
    resize: int  # pixels of the short side before the cut, and of the square cut from its middle
    crop: int
    asked: int  # images that were asked for, at random, always the same ones
    images: int  # that could be read, and were looked at
    masked: int  # of these, how many have a mask
    even: dict[str, float]  # what a head that attends to all tokens alike would have
    most: dict[str, float]  # the greatest value that there can be; the least is always 0
    created: str = ""  # ISO 8601, UTC
    arrays: str = ""  # the .npz beside it
    version: int = VERSION


@dataclass(frozen=True)
class Atlas:
    """Every head over a gallery's images. `mean` and `deviation` are NaN for what is not known:
    `foreground` without masks, `distance` where patches do not attend (XCiT).
    """

    info: AtlasInfo
    mean: Mapping[str, np.ndarray]  # by statistic, float32 [L, A]
    deviation: Mapping[str, np.ndarray]  # standard, over images, float32 [L, A]
    counts: Mapping[str, np.ndarray]  # images in equal bins from 0 to `info.most`, int32 [L, A, T]
    ids: tuple[str, ...]  # of the images below
    top: np.ndarray  # int32 [L, A, K], places in `ids`, most excited first; -1 for none
    scores: np.ndarray  # float32 [L, A, K], their excitement
    codes: np.ndarray = field(repr=False)  # uint8 [L, A, K, h, w], 255 sqrt(a / max of the map)
    peak: np.ndarray = field(repr=False)  # float32 [L, A, K], that max
    kept: np.ndarray = field(repr=False)  # int32 [L, A, K, 21], as in the lens payload

    @classmethod
    def read(cls, gallery: "Gallery") -> "Atlas | None":
        """The gallery's atlas; None where none was made.

        Raises `UserError` when it is damaged, of a newer format, or of other weights than the
        gallery's features.
        """
        folder = gallery.path / FOLDER
        if not (folder / HEADER).is_file():
            return None
        info = _read_info(folder)
        if info.model_hash != gallery.info.model_hash:
            raise UserError(
                f"{folder}: is of {info.model} ({info.model_hash[:8]}), and the gallery of "
                f"{gallery.info.model} ({gallery.info.model_hash[:8]}); compute the atlas again"
            )
        try:
            with np.load(folder / info.arrays, allow_pickle=False) as file:
                return cls._of_arrays(info, {name: file[name] for name in file.files})
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(
                f"{folder / info.arrays}: cannot be read ({error}); compute the atlas again"
            ) from None

    @classmethod
    def _of_arrays(cls, info: AtlasInfo, arrays: dict[str, np.ndarray]) -> "Atlas":
        """Raises `ValueError` where shapes are not those that `info` tells."""
        heads = info.layers, info.heads
        kept = (*heads, arrays["top"].shape[-1])
        wanted: dict[str, tuple[int, ...]] = {
            "mean": (len(STATISTICS), *heads),
            "deviation": (len(STATISTICS), *heads),
            "counts": (len(STATISTICS), *heads, BINS),
            **dict.fromkeys(("top", "scores", "peak"), kept),
            "kept": (*kept, KEEP_STEPS),
            "codes": (*kept, *info.grid),
        }
        for name, shape in wanted.items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name} is {arrays[name].shape}, not {shape}")
        ids = tuple(arrays["ids"].tolist())
        if arrays["top"].max(initial=-1) >= len(ids):
            raise ValueError("images without ids")
        by_name: dict[str, Any] = {
            name: dict(zip(STATISTICS, arrays[name], strict=True)) for name in _OF_HEADS
        }
        rest: dict[str, Any] = {name: arrays[name] for name in _OF_KEPT}
        return cls(info=info, ids=ids, **by_name, **rest)

    def write(self, gallery: "Gallery") -> None:
        """Keep it with the gallery, in place of what was there; whole or not at all."""
        require_there(gallery.path)
        folder = gallery.path / FOLDER
        stacked: dict[str, Any] = {
            name: np.stack([getattr(self, name)[statistic] for statistic in STATISTICS])
            for name in _OF_HEADS
        }
        rest: dict[str, Any] = {name: getattr(self, name) for name in _OF_KEPT}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, ids=np.array(self.ids, np.str_), **stacked, **rest)
        content = buffer.getvalue()
        name = f"atlas-{hashlib.blake2b(content, digest_size=6).hexdigest()}.npz"
        with whole_file(folder / name) as aside:
            aside.write_bytes(content)
        write_json(folder / HEADER, asdict(self.info) | {"arrays": name})
        for old in folder.glob("atlas-*.npz"):
            if old.name != name:
                old.unlink(missing_ok=True)

    def is_current(self, gallery: "Gallery") -> bool:
        """Whether the gallery still holds the images that it was made of."""
        return self.info.source_hash == gallery.info.source_hash

    def payload(self, layer: int, head: int) -> bytes:
        """The maps of the images that excite a head most, as a lens payload of one layer (see
        `lenses.payload`, which needs torch): each image takes the place of a head.
        """
        there = self.top[layer, head] >= 0
        codes = self.codes[layer, head][there]
        header = {
            "version": 1,
            "layers": 1,
            "heads": len(codes),
            "grid": list(self.info.grid),
            "image": [self.info.crop, self.info.crop],
            "max": [self.peak[layer, head][there].astype(float).tolist()],
            "kept": [self.kept[layer, head][there].tolist()],
            "model": self.info.model,
            "model_hash": self.info.model_hash,
            "patch": self.info.patch_size,
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        return struct.pack("<I", len(text)) + text + codes.tobytes()


@dataclass(frozen=True)
class Excited:
    """One of the images that excite a head most."""

    id: str
    row: int | None  # in the gallery; None when it is not there any more
    score: float  # excitement, 0..1
    photo: bytes | None  # JPEG, the square that the model saw; None when the file is gone


def excited(
    gallery: "Gallery", atlas: Atlas, layer: int, head: int, side: int = 400
) -> list[Excited]:
    """The images that excite a head most, in the order of `Atlas.payload`, `side` pixels square."""
    share, found = atlas.info.crop / atlas.info.resize, []
    for at, score in zip(atlas.top[layer, head], atlas.scores[layer, head], strict=True):
        if at >= 0:
            row = _row(gallery, atlas.ids[at])
            photo = None if row is None else _photo(gallery, row, side, share)
            found.append(Excited(atlas.ids[at], row, float(score), photo))
    return found


def commonest(labels: pd.Series) -> tuple[str, int]:
    """The label that most of some images have, the first in the alphabet among equals, and how
    many have it; ("", 0) where none has any.
    """
    counts = labels.dropna().astype(str).value_counts()
    if counts.empty:
        return "", 0
    most = int(counts.max())
    return min(str(name) for name in counts.index[counts == most]), most


def in_words(seconds: float) -> str:
    """About how long something takes: `about 40 seconds`, `about 3 minutes`."""
    for unit, length, from_ in (("hour", 3600, 5400), ("minute", 60, 90)):
        if seconds >= from_:
            return f"about {round(seconds / length)} {unit}s"
    rounded = max(5, 5 * round(seconds / 5))
    return f"about {rounded} seconds"


def _read_info(folder: Path) -> AtlasInfo:
    value: Any = read_json(folder / HEADER)
    again = "compute the atlas again"
    if not isinstance(value, dict) or value.get("version") != VERSION:
        version = value.get("version") if isinstance(value, dict) else None
        raise UserError(
            f"{folder / HEADER}: has format version {version}, and this program reads {VERSION}; "
            f"{again}, or update this program"
        )
    known = {one.name for one in fields(AtlasInfo)}
    try:
        info = AtlasInfo(**{name: value[name] for name in value if name in known})
        rows, columns = info.grid
        if Path(info.arrays).name != info.arrays or not info.arrays:
            raise TypeError("it names no arrays")
        return AtlasInfo(**asdict(info) | {"grid": (int(rows), int(columns))})
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / HEADER}: is damaged ({error}); {again}") from None


def _row(gallery: "Gallery", id: str) -> int | None:
    try:
        return gallery.row(id)
    except UserError:  # an update dropped it
        return None


def _photo(gallery: "Gallery", row: int, side: int, share: float) -> bytes | None:
    """The square in the middle of an image, `share` of its short side long, as a JPEG."""
    try:
        image = Image.fromarray(gallery.image(row))
    except UserError:
        return None
    long = share * min(image.size)
    left, top = ((length - long) / 2 for length in image.size)
    box = (left, top, left + long, top + long)
    square = image.resize((side, side), Image.Resampling.BICUBIC, box, reducing_gap=2.0)
    buffer = io.BytesIO()
    square.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
