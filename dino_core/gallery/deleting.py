"""Deleting a gallery: what would be lost is told first, and only a gallery under a root can go."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dino_core.errors import UserError
from dino_core.files import held, remove_leftovers
from dino_core.gallery.jobs import LOCK, build_status
from dino_core.gallery.listing import is_gallery

USER, THUMBS = "user", "thumbs"
DELETED = ".deleted."  # what a gallery's name begins with from when it is out of sight


@dataclass(frozen=True)
class Loss:
    """What goes with a gallery."""

    bytes: int  # on the disk, but for thumbnails
    notes: int  # lines in `user/`: tags, names, reviews

    @property
    def sentence(self) -> str:
        """What is lost for good; images are never among it."""
        notes = "no notes were made in it"
        if self.notes:
            many = "s" if self.notes > 1 else ""
            notes = f"with it go {self.notes:,} note{many} that people made (tags, names, reviews)"
        return f"{size_said(self.bytes)} are freed, {notes}. The images themselves stay."


def loss(path: Path) -> Loss:
    """What deleting the gallery in `path` would take away."""
    notes = 0
    for file in (path / USER).glob("*.jsonl"):
        with file.open("rb") as lines:
            notes += sum(1 for line in lines if line.strip())
    return Loss(size_on_disk(path), notes)


def size_on_disk(path: Path) -> int:
    """Bytes in a gallery's folder, without its thumbnails, which may be deleted at any time."""
    total = 0
    for folder, names, files in os.walk(path):
        if Path(folder) == path and THUMBS in names:
            names.remove(THUMBS)
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:  # replaced while we look
                continue
    return total


def size_said(count: int) -> str:
    """Bytes as people say them: `1.4 GB`."""
    size, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.3g} {units[0]}" if size < 1000 else f"{size:,.0f} {units[0]}"


def delete_gallery(path: Path, root: Path) -> None:
    """Delete the gallery in `path`, a folder directly in `root/galleries`, for good.

    It goes out of sight at once, and a killed deletion leaves nothing that looks like a gallery.
    Raises `UserError` for anything that is not a gallery there, and while a build runs in it.
    """
    inside = (root / "galleries").resolve()
    if path.is_symlink() or path.resolve().parent != inside or not path.is_dir():
        raise UserError(f"{path}: is not a folder in {inside}; only those can be deleted here")
    if not is_gallery(path):
        raise UserError(f"{path}: is not a gallery; it is left alone")
    busy = f"{path}: is being built; stop that first"
    if build_status(path)["state"] == "running":
        raise UserError(busy)
    with held(path / LOCK, busy):
        aside = Path(tempfile.mkdtemp(dir=inside, prefix=DELETED, suffix=".tmp"))
        os.replace(path, aside)  # an empty folder is replaced
    shutil.rmtree(aside, ignore_errors=True)
    remove_leftovers(inside, DELETED)  # of deletions that were killed
