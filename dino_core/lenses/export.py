"""The attention of every image of a source, as files: pictures, arrays and one HTML sheet.

    OUT/index.html                      all images, with live controls (see `sheet`)
    OUT/images/dog/1.jpg/               one folder per image, named after its id
        layer11-head0-heat.png          heat map, least to largest value, nearest neighbors
        layer11-head0-overlay.jpg       the same over the photo
        layer11-head0-mask.png          255 where the head keeps `keep` of its mass
        layer11-mean-*.*                the mean of the heads
        attention.npz                   maps float32 [L, heads, h, w], masks bool, layers [L]
        lens.bin, photo.jpg             lens payload, photo as shown
        about.json                      what made these files
    OUT/bad-images.jsonl                images that could not be read, and why (if any)

An image's folder appears whole or not at all. A second run over the same folder keeps what was made
with the same settings from the same bytes, and makes the rest anew.
"""

import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dino_core.data import BadImage, Quarantine, Quarantined, Source
from dino_core.errors import UserError
from dino_core.files import read_json, whole_folder, write_json
from dino_core.lenses import colormap, render
from dino_core.lenses.attention import Attention, look, mass_mask
from dino_core.lenses.payload import LensPayload
from dino_core.lenses.sheet import Entry, Opening, write_sheet

if TYPE_CHECKING:
    from dino_core.models import Model

VERSION = 1  # of the files in an image's folder; another number is made anew
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Settings:
    """What is exported, and how it looks."""

    layer: str = "last"  # "last", "all", or a number (0 is the first, -1 the last)
    size: int | None = None  # short side in pixels; None: the lens's default
    keep: float = 0.6  # share of a head's attention in its mask, 0..1
    opacity: float = 0.6  # of the heat map over the photo, 0..1
    colormap: str = "inferno"  # viridis, inferno or magma

    def __post_init__(self) -> None:
        for name in ("keep", "opacity"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name)}: must lie between 0 and 1")
        colormap.table(self.colormap)

    def layers(self, depth: int) -> tuple[int, ...]:
        """The chosen layers of a model with `depth` of them, by number from 0."""
        if self.layer == "all":
            return tuple(range(depth))
        try:
            number = -1 if self.layer == "last" else int(self.layer)
        except ValueError:
            raise UserError(f"layer {self.layer}: use last, all, or a number") from None
        if not -depth <= number < depth:
            raise UserError(f"layer {number}: the model has layers 0 to {depth - 1}")
        return (number % depth,)


@dataclass(frozen=True)
class Exported:
    """What an export did."""

    sheet: Path
    made: int
    kept: int  # folders of an earlier run that were still right
    bad: int
    sentence: str  # about the bad ones; "" without any


def export(
    model: "Model", source: Source, out: Path, settings: Settings, *, progress: bool = True
) -> Exported:
    """Write the attention of all images of `source` below `out`.

    Raises `UserError` if `out` is a file, if no image can be read, or as `look` does.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder for the results")
    layers = settings.layers(model.backbone.depth)
    quarantine = Quarantine()
    done: list[int] = []
    made = 0
    for i in tqdm(range(len(source)), desc="attention", unit="img", disable=not progress):
        try:
            made += _export_image(model, source, i, out, settings, layers)
        except BadImage as error:
            quarantine.add([Quarantined(source.ids[i], error.reason)])
        else:
            done.append(i)
    if not done:
        raise UserError(f"{source.spec}: no image to look at; {quarantine.sentence() or 'empty'}")
    _report(quarantine, out / "bad-images.jsonl")
    opening = Opening(
        title="Attention heads",
        model=model.spec,
        data=source.spec,
        layers=layers,
        keep=settings.keep,
        opacity=settings.opacity,
        colormap=settings.colormap,
    )
    entries = tqdm(
        _entries(source, out, done), "sheet", len(done), unit="img", disable=not progress
    )
    write_sheet(out / "index.html", opening, entries, len(done))
    sheet = out / "index.html"
    return Exported(sheet, made, len(done) - made, len(quarantine), quarantine.sentence())


def _export_image(
    model: "Model",
    source: Source,
    i: int,
    out: Path,
    settings: Settings,
    layers: tuple[int, ...],
) -> bool:
    """Make the folder of image `i`, unless it is there already; whether it was made."""
    about = _about(model, settings, layers, source.ids[i], source.fingerprint(i))
    folder = image_folder(out, source.ids[i])
    if _made_before(folder, about):
        return False
    image = source.image(i)
    attention = look(model, image, size=settings.size).select(layers)
    shutil.rmtree(folder, ignore_errors=True)
    with whole_folder(folder) as aside:
        _write_image(aside, image, attention, layers, settings)
        write_json(aside / "about.json", about)
    return True


def _report(quarantine: Quarantine, path: Path) -> None:
    """Write what was bad; without any, no report of an earlier run stays."""
    if len(quarantine):
        quarantine.write(path)
    else:
        path.unlink(missing_ok=True)


def image_folder(out: Path, name: str) -> Path:
    """Where the files of the image with id `name` go: inside `out`, whatever the id says."""
    parts = [part.lstrip(".") or "_" for part in PurePosixPath(name).parts if part != "/"]
    return out.joinpath("images", *parts)


def _about(
    model: "Model", settings: Settings, layers: tuple[int, ...], name: str, fingerprint: str
) -> dict[str, Any]:
    """Everything that decides an image's files."""
    return {
        "version": VERSION,
        "image": name,
        "fingerprint": fingerprint,
        "model": model.spec,
        "model_hash": model.hash,
        **dataclasses.asdict(settings),
        "layers": list(layers),
    }


def _made_before(folder: Path, about: dict[str, Any]) -> bool:
    """Whether `folder` holds the very files that would be written."""
    try:
        return read_json(folder / "about.json") == about
    except UserError:
        return False


def _write_image(
    folder: Path,
    image: np.ndarray,
    attention: Attention,
    layers: tuple[int, ...],
    settings: Settings,
) -> None:
    """All files of one image but `about.json`."""
    photo = render.displayed(image)
    for place, layer in enumerate(layers):
        heads = {f"head{head}": each for head, each in enumerate(attention.maps[place])}
        for name, each in {**heads, "mean": attention.head_mean(place)}.items():
            _write_pictures(folder / f"layer{layer}-{name}", photo, each, settings)
    np.savez_compressed(
        folder / "attention.npz",
        maps=attention.maps,
        masks=attention.mass_mask(settings.keep),
        layers=np.array(layers),
        image_size=np.array(attention.image_size),
        source_size=np.array(attention.source_size),
        keep=np.array(settings.keep),
    )
    (folder / "lens.bin").write_bytes(LensPayload.from_attention(attention).to_bytes())
    Image.fromarray(photo).save(folder / "photo.jpg", quality=JPEG_QUALITY)


def _write_pictures(stem: Path, photo: np.ndarray, each: np.ndarray, settings: Settings) -> None:
    """Heat map, overlay and mask of one map [h, w] at the photo's size."""
    height, width = photo.shape[:2]
    render.heat(each, height, width, settings.colormap).save(f"{stem}-heat.png")
    blended = render.overlay(photo, each, settings.opacity, settings.colormap)
    Image.fromarray(blended).save(f"{stem}-overlay.jpg", quality=JPEG_QUALITY)
    mask = mass_mask(each, settings.keep)
    render.mask_picture(mask, height, width).save(f"{stem}-mask.png")


def _entries(source: Source, out: Path, indices: list[int]) -> Iterator[Entry]:
    """What the sheet shows, read back from the images' folders."""
    for i in indices:
        folder = image_folder(out, source.ids[i])
        yield Entry(
            name=source.ids[i],
            folder=folder.relative_to(out).as_posix(),
            photo=folder / "photo.jpg",
            payload=(folder / "lens.bin").read_bytes(),
        )
