"""An uncompressed tar file as an image source, read at random without unpacking."""

import os
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from dino_core.data.decode import MAX_BYTES, BadImage, looks_like_image
from dino_core.data.naming import by_name, folder_labels, is_hidden
from dino_core.data.source import Names, Source, checked
from dino_core.errors import UserError

HEAD = 32


class Tar(Source):
    """Images in a tar: their places are found once, and then read by offset.

    Reads use `pread`, which moves no shared file position: threads and forked workers may share
    one descriptor. Pickling leaves the descriptor behind; the copy opens its own.
    """

    def __init__(self, spec: str, file: Path, members: dict[str, tuple[int, int]]) -> None:
        names = sorted(members, key=os.fsencode)
        self.spec, self.root, self.notes = spec, file.parent, []
        self.ids = Names(names)
        found = folder_labels(self.ids)
        self.labels, self.classes, self.splits = found.labels, found.classes, found.splits
        self.file = file
        places = np.array([members[name] for name in names], np.int64).reshape(-1, 2)
        self._offsets, self._sizes = places[:, 0].copy(), places[:, 1].copy()
        self._opened: int | None = None
        self._opening = threading.Lock()

    def read(self, i: int) -> bytes:
        """The bytes of member `i`; raises `BadImage`."""
        i = checked(i, len(self))
        size = int(self._sizes[i])
        if size > MAX_BYTES:
            raise BadImage(f"too large: {size:,} bytes, the limit is {MAX_BYTES:,}")
        try:
            data = _read_at(self._descriptor(), int(self._offsets[i]), size)
        except OSError as error:
            raise BadImage(f"cannot be read ({error.strerror})") from None
        if len(data) < size:
            raise BadImage("truncated (the tar file ends within it)")
        return data

    def _descriptor(self) -> int:
        with self._opening:
            if self._opened is None:
                self._opened = os.open(self.file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None, "_opening": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _opening=threading.Lock())

    def __del__(self) -> None:
        if getattr(self, "_opened", None) is not None:
            os.close(self._opened)  # type: ignore[arg-type]


def open_tar(spec: str, file: Path, channels: int = 3) -> Tar:
    """Index the images of a tar; a `UserError` when it is compressed, broken or has none."""
    notes: list[str] = []
    try:
        members = _index(file, notes, channels)
    except tarfile.TarError as error:
        raise UserError(f"{spec}: is not a tar file that can be read ({error})") from None
    except OSError as error:
        raise UserError(f"{spec}: cannot be read ({error.strerror})") from None
    if not members:
        raise UserError(f"{spec}: no images in this tar file")
    source = Tar(spec, file, members)
    source.notes, source.channels = notes, channels
    return source


def _index(file: Path, notes: list[str], channels: int) -> dict[str, tuple[int, int]]:
    """Offset and size of every image by name; of a name that comes twice, the last, as tar does."""
    found: dict[str, tuple[int, int]] = {}
    everything: dict[str, tuple[int, int]] = {}
    with tarfile.open(file, "r:") as archive, open(file, "rb") as raw:
        try:
            for member in archive:
                # The archive would keep every header it has seen.
                archive.members = []  # type: ignore[attr-defined]
                if member.islnk():
                    place = everything.get(member.linkname)
                elif member.isreg() and not member.issparse():
                    place = (member.offset_data, member.size)
                else:
                    continue
                if place is None:
                    continue
                everything[member.name] = place
                name = _clean(member.name)
                if name and _is_image(raw.fileno(), name, place, channels):
                    found[name] = place
        except tarfile.ReadError as error:
            if not found:
                raise
            notes.append(f"{file}: the tar file is cut off; what comes before is used ({error})")
    return found


def _clean(name: str) -> str:
    """A member's name as an id, "" for a hidden one: "./a/1.jpg" is "a/1.jpg"."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return "" if any(is_hidden(part) for part in parts) else "/".join(parts)


def _is_image(descriptor: int, name: str, place: tuple[int, int], channels: int) -> bool:
    told = by_name(name.rpartition("/")[2], channels)
    if told is None:
        return looks_like_image(_read_at(descriptor, place[0], min(HEAD, place[1])))
    return told


def _read_at(descriptor: int, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`, fewer only at the end of the file."""
    pieces: list[bytes] = []
    while size > 0:
        piece = os.pread(descriptor, size, offset)
        if not piece:
            break
        pieces.append(piece)
        offset, size = offset + len(piece), size - len(piece)
    return b"".join(pieces)
