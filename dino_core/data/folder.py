"""A folder of images, nested or flat, as an image source."""

import os
from collections.abc import Sequence
from pathlib import Path

from dino_core.data.decode import read_file
from dino_core.data.listing import list_images
from dino_core.data.naming import folder_labels
from dino_core.data.source import Names, Source, checked
from dino_core.errors import UserError


class Folder(Source):
    """Images under a folder, in order of their names, whatever order the disk lists them in."""

    def __init__(
        self, spec: str, root: Path, names: Sequence[str], notes: list[str], channels: int = 3
    ) -> None:
        self.spec, self.root, self.notes, self.channels = spec, root, notes, channels
        self.ids = names if isinstance(names, Names) else Names(names)
        found = folder_labels(self.ids)
        self.labels, self.classes, self.splits = found.labels, found.classes, found.splits

    def read(self, i: int) -> bytes:
        """The bytes of file `i`; raises `BadImage`."""
        return read_file(self.path(i))

    def path(self, i: int) -> Path:
        """Where file `i` is."""
        assert self.root is not None and isinstance(self.ids, Names)
        return self.root / os.fsdecode(self.ids.raw(checked(i, len(self))))


def open_folder(spec: str, root: Path, channels: int = 3) -> Folder:
    """Find all images under `root`; a `UserError` when there are none."""
    found = list_images(root, channels)
    if not found.names:
        notes = "".join(f" ({note})" for note in found.notes)
        raise UserError(f"{spec}: no images here{_hint(root)}{notes}")
    return Folder(spec, root, found.names, found.notes, channels)


def open_file(spec: str, path: Path, channels: int = 3) -> Folder:
    """One image file as a collection of one."""
    return Folder(spec, path.parent, [path.name], [], channels)


def _hint(root: Path) -> str:
    """What else lies in a folder without images, if it can be opened instead."""
    try:
        others = sorted(p.name for p in root.iterdir() if p.suffix in (".tar", ".csv", ".parquet"))
    except OSError:
        return ""
    return f"; did you mean {root / others[0]}?" if others else ""
