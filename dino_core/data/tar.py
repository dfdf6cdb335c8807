"""An uncompressed tar file as an image source, read at random without unpacking."""

import os
import tarfile
from pathlib import Path

import numpy as np

from dino_core.data.decode import looks_like_image
from dino_core.data.naming import by_name, folder_labels, is_hidden
from dino_core.data.packed import Packed, read_at
from dino_core.data.source import Names
from dino_core.errors import UserError

HEAD = 32


class Tar(Packed):
    """Images in a tar: their places are found once, and then read by offset."""

    container = "tar file"

    def __init__(self, spec: str, file: Path, members: dict[str, tuple[int, int]]) -> None:
        names = sorted(members, key=os.fsencode)
        places = np.array([members[name] for name in names], np.int64).reshape(-1, 2)
        super().__init__(spec, file, Names(names), places[:, 0].copy(), places[:, 1].copy())
        self.root = file.parent
        found = folder_labels(self.ids)
        self.labels, self.classes, self.splits = found.labels, found.classes, found.splits


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
        return looks_like_image(read_at(descriptor, place[0], min(HEAD, place[1])))
    return told
