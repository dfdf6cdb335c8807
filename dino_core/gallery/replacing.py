"""A gallery's files replaced by a new set: all of them or none, killed at any moment.

    update/        a new set in the making; nobody reads it
    updated/       the new set, whole: from the rename to this name on, the gallery is the new one

The files are then moved out of `updated/` one by one, `gallery.json` last. Whoever finds `updated/`
moves on what is left of it (`settle`), so a mixture of two sets is never read. Files are renamed
and never written in place: a program that has the old features mapped into memory keeps them.
"""

import os
import shutil
import time
from pathlib import Path

from dino_core.errors import UserError
from dino_core.files import flush_to_disk, held
from dino_core.gallery.jobs import LOCK
from dino_core.gallery.manifest import MANIFEST, UPDATE, GalleryInfo

NEW = "new"  # in `update/`: what becomes `updated/`
UPDATED = "updated"
MAPS = "maps"
PATCHES = "patches"
QUARANTINE = "quarantine.jsonl"
PATIENCE = 30.0  # seconds; moving takes milliseconds
PAUSE = 0.02


def replace_by_new(path: Path) -> bool:
    """Make `update/new/` the gallery's files; the caller holds the gallery's lock.

    Whether there were patches: they go where they belong to other images.
    """
    new = path / UPDATE / NEW
    for folder in (new / MAPS, new):
        flush_to_disk(folder)
    os.replace(new, path / UPDATED)
    flush_to_disk(path)
    had_patches = (path / PATCHES).exists()
    _move_in(path)
    return had_patches


def is_settled(path: Path) -> bool:
    """Whether the files of the gallery in `path` are of one set."""
    return not (path / UPDATED).exists()


def settle(path: Path) -> None:
    """Finish what a killed update has begun to move, or wait for the one that is moving.

    Raises `UserError` where the folder cannot be written.
    """
    limit = time.monotonic() + PATIENCE
    while not is_settled(path):
        busy = f"{path}: is being updated; try again in a moment"
        try:
            with held(path / LOCK, busy):
                move_on(path)
        except UserError as error:
            if str(error) != busy or time.monotonic() > limit:
                raise
            time.sleep(PAUSE)


def move_on(path: Path) -> None:
    """`settle`, by whoever holds the gallery's lock."""
    if is_settled(path):
        return
    try:
        _move_in(path)
    except OSError as error:
        raise UserError(
            f"{path}: an update was killed while its files were put in place, and they cannot be "
            f"now ({error.strerror or error}); make the folder writable"
        ) from None


def _move_in(path: Path) -> None:
    """Move the new files in; the manifest, which is last, tells which of the old have to go."""
    updated = path / UPDATED
    if (updated / MANIFEST).is_file():
        info = GalleryInfo.read(updated)
        (path / MAPS).mkdir(exist_ok=True)
        for file in sorted(updated.rglob("*")):
            if file.is_file() and file != updated / MANIFEST:
                os.replace(file, path / file.relative_to(updated))
        for file in (path / MAPS).glob("*.parquet"):
            if file.stem not in info.maps:
                file.unlink()
        if not info.quarantined:
            (path / QUARANTINE).unlink(missing_ok=True)
        if not _same_rows(path, info):
            shutil.rmtree(path / PATCHES, ignore_errors=True)
        for folder in (path / MAPS, path):
            flush_to_disk(folder)
        shutil.rmtree(path / UPDATE, ignore_errors=True)  # else it looks like one to go on with
        os.replace(updated / MANIFEST, path / MANIFEST)
        flush_to_disk(path)
    shutil.rmtree(updated)


def _same_rows(path: Path, info: GalleryInfo) -> bool:
    """Whether what belongs to the rows of the gallery in `path` fits those of `info`, too."""
    try:
        there = GalleryInfo.read(path)
    except UserError:
        return False
    names = ("feature_hash", "source_hash", "count")
    return all(getattr(there, name) == getattr(info, name) for name in names)
