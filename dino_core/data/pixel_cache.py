"""Decoded, reduced images kept on disk between runs: for slow disks and big photos.

    store = cached_store(open_source("photos/"), stored_size=288, threads=2)

The first run that asks decodes every image once into one file; later ones map it. A cache belongs
to the names, sizes and times of the files, so changed images are decoded anew. It appears whole or
not at all; a second process waits for the first. All of it can be deleted at any time.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dino_core.data.cache import alone, cache_folder
from dino_core.data.decode import Shrink
from dino_core.data.quarantine import Quarantined
from dino_core.data.source import Source
from dino_core.data.store import SPARE, PixelStore, Progress, down_to, judged_bytes, mapped, pour
from dino_core.errors import UserError
from dino_core.files import read_json, whole_folder, write_json

VERSION = 1
PIXELS, PLACES, ABOUT = "pixels.u8", "places.npy", "about.json"
ORDER = ("offsets", "heights", "widths")  # the rows of places.npy, int64 [3, n]


def cached_store(
    source: Source,
    stored_size: int,
    *,
    threads: int = 1,
    draft: bool = False,
    tell: Progress | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> PixelStore:
    """All images of a source, reduced to `stored_size`, mapped from the cache; made where missing.

    With `draft` JPEGs are reduced while they are decoded, as far as that is possible. `say` hears
    where the cache lies. Raises `UserError` where the disk is too full, and as `pour` does.
    """
    shrink = partial(down_to, stored_size) if draft else None
    folder = cache_folder("pixels", source_digest(source, stored_size, draft))
    if not (folder / ABOUT).is_file():
        with alone(folder.with_suffix(".lock")):
            if not (folder / ABOUT).is_file():
                _remove_leftovers(folder)
                _make(folder, source, stored_size, threads, shrink, tell)
                say(f"keeps {len(source):,} reduced images in {folder}")
    return _opened(folder, source)


def source_digest(source: Source, stored_size: int, draft: bool) -> str:
    """A name for the pixels of a source: by what its images are called and when they changed."""
    digest = hashlib.blake2b(digest_size=16)
    about = (VERSION, source.spec, source.channels, stored_size, draft, len(source))
    digest.update(repr(about).encode("utf-8", "surrogateescape"))
    container = getattr(source, "file", None)  # of images packed in one
    if isinstance(container, Path):
        digest.update(_stamp(container))
    for i, name in enumerate(source.ids):
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
        path = source.path(i)
        if path is not None:
            digest.update(_stamp(path))
    return digest.hexdigest()


def _stamp(path: Path) -> bytes:
    try:
        found = path.stat()
    except OSError:
        return b"missing\0"
    return f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0".encode("utf-8", "surrogateescape")


def _make(
    folder: Path,
    source: Source,
    stored_size: int,
    threads: int,
    shrink: Shrink | None,
    tell: Progress | None,
) -> None:
    images = np.arange(len(source))
    _check_room(folder, int(SPARE * judged_bytes(source, images, stored_size, shrink)))
    with whole_folder(folder) as aside:
        with open(aside / PIXELS, "wb") as file:
            layout = pour(source, images, stored_size, FilePixels(file), threads, shrink, tell)
        quarantined = [asdict(item) for item in layout.pop("quarantined")]
        np.save(aside / PLACES, np.stack([layout[name] for name in ORDER]), allow_pickle=False)
        about = {"spec": source.spec, "channels": source.channels, "stored_size": stored_size}
        write_json(aside / ABOUT, about | {"quarantined": quarantined})


class FilePixels:
    """Pixels appended to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def append(self, pixels: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(pixels).data)


def _opened(folder: Path, source: Source) -> PixelStore:
    about = read_json(folder / ABOUT)
    try:
        places = np.load(folder / PLACES, allow_pickle=False)
        pixels = mapped(folder / PIXELS)
        expected = int((places[1] * places[2]).sum()) * source.channels
        if places.shape != (len(ORDER), len(source)) or len(pixels) != expected:
            raise ValueError("its parts do not belong together")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: this cache is damaged ({error}); delete it") from None
    return PixelStore(
        pixels=pixels,
        images=np.arange(len(source)),
        channels=source.channels,
        quarantined=[Quarantined(**item) for item in about["quarantined"]],
        file=folder / PIXELS,
        **dict(zip(ORDER, places, strict=True)),
    )


def _remove_leftovers(folder: Path) -> None:
    """What a killed process left half made of this very cache; others may be at work on theirs."""
    for path in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def _check_room(folder: Path, needed: int) -> None:
    place = next(path for path in folder.parents if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{place}: the reduced images need {needed / 2**20:,.1f} MB of disk, and "
            f"{free / 2**20:,.1f} MB are free: make room, set DINO_CACHE to a larger disk, or "
            "leave out --cache"
        )
