"""A folder of images, nested or flat, as an image source."""

import os
from collections.abc import Sequence
from pathlib import Path

from dino_core.data.decode import looks_like_image, read_file
from dino_core.data.naming import by_name, folder_labels, is_hidden
from dino_core.data.source import Names, Source, checked
from dino_core.errors import UserError

HEAD = 32  # bytes that tell whether a file is an image


class Folder(Source):
    """Images under a folder, in order of their names, whatever order the disk lists them in."""

    def __init__(self, spec: str, root: Path, names: Sequence[str], notes: list[str]) -> None:
        self.spec, self.root, self.notes = spec, root, notes
        self.ids = Names(names)
        found = folder_labels(self.ids)
        self.labels, self.classes, self.splits = found.labels, found.classes, found.splits

    def read(self, i: int) -> bytes:
        """The bytes of file `i`; raises `BadImage`."""
        return read_file(self.path(i))

    def path(self, i: int) -> Path:
        """Where file `i` is."""
        assert self.root is not None and isinstance(self.ids, Names)
        return self.root / os.fsdecode(self.ids.raw(checked(i, len(self))))


def open_folder(spec: str, root: Path) -> Folder:
    """Find all images under `root`; a `UserError` when there are none."""
    names, notes = _find(root)
    if not names:
        raise UserError(f"{spec}: no images here{_hint(root)}{''.join(f' ({n})' for n in notes)}")
    return Folder(spec, root, names, notes)


def open_file(spec: str, path: Path) -> Folder:
    """One image file as a collection of one."""
    return Folder(spec, path.parent, [path.name], [])


def _find(root: Path) -> tuple[list[str], list[str]]:
    """Names of all images under `root` relative to it, sorted, and notes on what was left out.

    Every real folder is read once, and before any link to it: a loop of links ends, and a linked
    copy of a folder does not count its images twice. Hidden files and folders are left out.
    """
    names: list[str] = []
    notes: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting: list[str] = [""]
    links: list[str] = []
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop(0)
        try:
            identity = os.stat(root / folder)
            if (identity.st_dev, identity.st_ino) in seen:
                continue
            seen.add((identity.st_dev, identity.st_ino))
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            notes.append(f"{folder or root}: folder cannot be read ({error.strerror})")
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if is_hidden(entry.name):
                continue
            if os.path.isdir(entry.path):  # where entry.is_dir() would raise on a link to itself
                (links if entry.is_symlink() else waiting).append(name)
            elif _is_image(entry):
                names.append(name)
    return sorted(names, key=os.fsencode), notes


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Whether a directory entry is to be taken as an image, good or bad."""
    told = by_name(entry.name)
    if not os.path.isfile(entry.path):
        # A link to a file that is gone is a missing image to report; a pipe or device is nothing.
        return bool(told) and entry.is_symlink() and not os.path.exists(entry.path)
    if told is not None:
        return told
    try:
        with open(entry.path, "rb") as file:
            return looks_like_image(file.read(HEAD))
    except OSError:
        return False


def _hint(root: Path) -> str:
    """What else lies in a folder without images, if it can be opened instead."""
    try:
        others = sorted(p.name for p in root.iterdir() if p.suffix in (".tar", ".csv", ".parquet"))
    except OSError:
        return ""
    return f"; did you mean {root / others[0]}?" if others else ""
