"""Which images lie under a folder: found once, and known the next time.

A first look opens every folder, which takes minutes for a million files on a slow disk. The list
is therefore kept in the cache, and checked when it is used: every folder of the tree is asked when
it last changed (a file that came, went or was renamed changes its folder); one that did is listed
again, the others are not. Listed again always is a folder

- that changed in the two seconds before it was listed: a clock that coarse would hide the rest;
- with links in it: what they point to changes elsewhere;
- with files that were no images by their content, if any of these changed: it may be one now.

The cache is written whole or not at all, and a broken one counts for nothing.
"""

import hashlib
import json
import os
import time
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dino_core.data.cache import cache_folder
from dino_core.data.decode import looks_like_image
from dino_core.data.naming import by_name, is_hidden
from dino_core.data.source import Names
from dino_core.errors import UserError
from dino_core.files import whole_file

HEAD = 32  # bytes that tell whether a file is an image
VERSION = 1  # of the cache's format and of what counts as an image
FEWEST = 2_000  # files worth a cache
SETTLED_NS = 2_000_000_000  # the coarsest clock of a file system (FAT's)


@dataclass
class FolderRecord:
    """One folder as it was listed: its state, and what lies in it besides images."""

    name: str
    """Relative to the root, "" for the root."""
    state: list[int]
    """Device, inode and time of the last change in ns."""
    settled: bool
    """Whether an unchanged state means unchanged images."""
    folders: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    others: list[list[Any]] = field(default_factory=list)
    """Files that are no images by their content: [name, size, time of the last change in ns]."""


@dataclass
class Listing:
    """The images under a folder."""

    names: Names
    """Relative to the root, sorted by their bytes."""
    notes: list[str]
    """Folders that could not be read."""


def list_images(root: Path, channels: int = 3) -> Listing:
    """Find the images under `root`, through the cache where there is one.

    Every real folder is read once, and before any link to it: a loop of links ends, and a linked
    copy of a folder does not count its images twice. Hidden files and folders are left out.
    """
    place = _place(root, channels)
    known = _load(place)
    walk = _Walk(root, channels, known)
    walk.run()
    if known and walk.unchanged():
        return Listing(known.names, walk.notes)
    names = walk.names()
    if len(names) + sum(len(record.others) for record in walk.records) >= FEWEST:
        _save(place, walk.records, names)
    return Listing(names, walk.notes)


@dataclass
class _Known:
    """What the cache holds."""

    records: list[FolderRecord]
    names: Names

    def by_folder(self) -> dict[str, list[str]]:
        """The images of every folder."""
        grouped: dict[str, list[str]] = {record.name: [] for record in self.records}
        for i in range(len(self.names)):
            name = os.fsdecode(self.names.raw(i))
            grouped[name.rpartition("/")[0]].append(name)
        return grouped


class _Walk:
    """One way through the tree, which lists only what the cache does not know."""

    def __init__(self, root: Path, channels: int, known: _Known | None) -> None:
        self.root, self.channels, self.known = root, channels, known
        self.by_name = {record.name: record for record in known.records} if known else {}
        self.records: list[FolderRecord] = []
        self.listed: dict[str, list[str]] = {}  # images of the folders that were listed now
        self.notes: list[str] = []

    def run(self) -> None:
        """Visit every folder once."""
        seen: set[tuple[int, int]] = set()
        waiting, links = [""], list[str]()
        while waiting or links:
            folder = waiting.pop() if waiting else links.pop(0)
            try:
                status = os.stat(self.root / folder)
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                state = [status.st_dev, status.st_ino, status.st_mtime_ns]
                record = self._remembered(folder, state) or self._list(folder, state)
            except OSError as error:
                why = f"folder cannot be read ({error.strerror})"
                self.notes.append(f"{folder or self.root}: {why}")
                continue
            self.records.append(record)
            waiting += record.folders
            links += record.links

    def unchanged(self) -> bool:
        """Whether the cache's list is the whole answer."""
        assert self.known is not None
        then, now = self.known.records, self.records
        return not self.listed and [r.name for r in then] == [r.name for r in now]

    def names(self) -> Names:
        """All images, sorted."""
        known = self.known.by_folder() if self.known else {}
        found: list[bytes] = []
        for record in self.records:
            images = self.listed.get(record.name)
            found += map(os.fsencode, known[record.name] if images is None else images)
        return Names(sorted(found))

    def _remembered(self, folder: str, state: list[int]) -> FolderRecord | None:
        """What the cache says of a folder, where that still holds."""
        record = self.by_name.get(folder)
        if record is None or not record.settled or record.state != state:
            return None
        for name, size, changed in record.others:
            status = os.stat(self.root / folder / name)
            if (status.st_size, status.st_mtime_ns) != (size, changed):
                return None
        return record

    def _list(self, folder: str, state: list[int]) -> FolderRecord:
        """Read a folder."""
        settled = time.time_ns() - state[2] > SETTLED_NS
        record = FolderRecord(folder, state, settled)
        images: list[str] = []
        for entry in sorted(os.scandir(self.root / folder), key=lambda entry: entry.name):
            if is_hidden(entry.name):
                continue
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_symlink():
                record.settled = False
            if _is_folder(entry):
                (record.links if entry.is_symlink() else record.folders).append(name)
            elif _is_image(entry, self.channels):
                images.append(name)
            elif record.settled and by_name(entry.name, self.channels) is None:
                status = os.stat(entry.path)
                record.others.append([entry.name, status.st_size, status.st_mtime_ns])
        self.listed[folder] = images
        return record


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # On a link to itself entry.is_dir() would raise.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_image(entry: os.DirEntry[str], channels: int) -> bool:
    """Whether a directory entry is to be taken as an image, good or bad."""
    told = by_name(entry.name, channels)
    if not (os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()):
        # A link to a file that is gone is a missing image to report; a pipe or device is nothing.
        return bool(told) and entry.is_symlink() and not os.path.exists(entry.path)
    if told is not None:
        return told
    try:
        with open(entry.path, "rb") as file:
            return looks_like_image(file.read(HEAD))
    except OSError:
        return False


def _place(root: Path, channels: int) -> Path | None:
    """The cache file of a folder; None where there can be no cache."""
    try:
        key = f"{VERSION}\0{channels != 3}\0".encode() + os.fsencode(root.resolve())
        name = hashlib.blake2b(key, digest_size=16).hexdigest()
        return cache_folder("listings", f"{name}.npz")
    except (OSError, RuntimeError):  # no home
        return None


def _load(place: Path | None) -> _Known | None:
    """Read a cache; None where there is none, or none that can be used."""
    if place is None:
        return None
    try:
        with np.load(place, allow_pickle=False) as file:  # a zip: every part has its checksum
            names = Names.packed(file["buffer"].tobytes(), file["ends"])
            records = [FolderRecord(**record) for record in json.loads(file["records"].tobytes())]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return _Known(records, names)


def _save(place: Path | None, records: list[FolderRecord], names: Names) -> None:
    """Write a cache; where that is not possible there is none, which is no error."""
    if place is None:
        return
    text = json.dumps([asdict(record) for record in records]).encode()
    try:
        with whole_file(place) as aside, aside.open("wb") as file:
            np.savez(
                file,
                buffer=np.frombuffer(names.buffer, np.uint8),
                ends=names.ends,
                records=np.frombuffer(text, np.uint8),
            )
    except UserError:
        return
