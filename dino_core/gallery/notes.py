"""What people add to a gallery: tags, names of clusters, decisions of a review.

    galleries/NAME/user/
        tags.jsonl      {"time", "tag", "ids", "on"}: put on, or taken off (ids null: off all)
        clusters.jsonl  {"time", "clustering", "cluster", "name"}: a name, or null for none
        reviews.jsonl   {"time", "ids", "decision", "label"}: keep, remove, relabel, null (undone)

Each file is only ever appended to, one JSON object a line, and a later line counts over an earlier
one. So several processes may write at once, a crash costs at most the line that it cut short, and
the files tell their own history. No build touches them; ids that are not in the gallery (any more)
stay, and do no harm.

    notes = Notes(gallery.path)
    notes.tag(ids, "to label")
    notes.tags()["to label"]          # a slice: the ids that have the tag
"""

import contextlib
import json
import os
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from dino_core.errors import UserError
from dino_core.gallery.manifest import require_there

if TYPE_CHECKING:
    import pandas as pd

USER = "user"  # the folder in a gallery
TAGS, CLUSTERS, REVIEWS = "tags.jsonl", "clusters.jsonl", "reviews.jsonl"
LONGEST_NAME = 80  # characters
DECISIONS = ("keep", "remove", "relabel")
FILES_KEPT = 12  # files whose content is kept in memory

_Stamp = tuple[int, int, int]
_kept: OrderedDict[Path, tuple[_Stamp, Any]] = OrderedDict()
_kept_lock = threading.Lock()


@dataclass(frozen=True)
class Review:
    """What was decided about one image."""

    decision: str  # one of DECISIONS
    label: str | None = None  # the right one, of "relabel"
    time: str = ""  # ISO 8601, UTC


class Notes:
    """The notes of the gallery in a folder. Making one reads nothing."""

    def __init__(self, gallery: str | Path) -> None:
        self.folder = Path(gallery) / USER

    def stamp(self) -> tuple[_Stamp, ...]:
        """What changes whenever something was noted: for what is computed from notes."""
        return tuple(_stamp(self.folder / name) for name in (TAGS, CLUSTERS, REVIEWS))

    # -- tags -------------------------------------------------------------------------------

    def tag(self, ids: Iterable[str], tag: str) -> str:
        """Put a tag on images; returns the tag as it is kept.

        Raises `UserError` for a name that is no name, for no images at all, and where the gallery
        was deleted or cannot be written.
        """
        name, several = clean_name(tag, "tag"), _listed(ids)
        if not several:
            raise UserError(f"tag {name!r}: no image is selected; select some first")
        self._add(TAGS, {"tag": name, "ids": several, "on": True})
        return name

    def untag(self, ids: Iterable[str] | None, tag: str) -> None:
        """Take a tag off images, or off everything (None), which ends the tag."""
        several = None if ids is None else _listed(ids)
        if several != []:
            self._add(TAGS, {"tag": clean_name(tag, "tag"), "ids": several, "on": False})

    def tags(self) -> dict[str, list[str]]:
        """The ids that have each tag, in the order they were tagged; tags by name."""
        return {tag: list(ids) for tag, ids in self._read(TAGS, _tags).items()}

    # -- names of clusters ------------------------------------------------------------------

    def name_cluster(self, clustering: str, cluster: int, name: str | None) -> None:
        """Name a cluster of a clustering; None or "" takes its name away."""
        kept = clean_name(name, "cluster") if name and name.strip() else None
        self._add(CLUSTERS, {"clustering": clustering, "cluster": int(cluster), "name": kept})

    def cluster_names(self, clustering: str) -> dict[int, str]:
        """The names that clusters of a clustering were given."""
        return dict(self._read(CLUSTERS, _cluster_names).get(clustering, {}))

    # -- reviews ----------------------------------------------------------------------------

    def review(
        self,
        ids: Iterable[str],
        decision: str | None,
        label: str | None = None,
        known: Container[str | None] = (),
    ) -> None:
        """Decide about images: keep, remove, relabel (to `label`), or None to undo.

        `known`: labels that are kept as they are; another one was typed, and is cleaned.
        Raises `UserError` for a relabel without a label and where the gallery was deleted or cannot
        be written, `ValueError` for another decision.
        """
        right = right_label(decision, label, known)
        if several := _listed(ids):
            self._add(REVIEWS, {"ids": several, "decision": decision, "label": right})

    def reviews(self) -> dict[str, Review]:
        """The last decision about each image that has one, in the order they were first made."""
        return dict(self._read(REVIEWS, _reviews))

    # -- files ------------------------------------------------------------------------------

    def _add(self, name: str, fields: dict[str, Any]) -> None:
        """Append one line, whole or not at all, on the disk when this returns."""
        require_there(self.folder.parent)
        path = self.folder / name
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds")} | fields
        # As JSON's reader has it: an id may come from a file name that is not UTF-8.
        data = json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        try:
            self.folder.mkdir(exist_ok=True)
            with _locked(path) as file:
                _append(file, data)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror or error}), so nothing was noted; "
                "make the folder writable, or copy the gallery to where you may write"
            ) from None

    def _read(self, name: str, fold: Callable[[Iterator[dict[str, Any]]], Any]) -> Any:
        """What a file's lines come to; read anew only when it has changed. Not to be changed."""
        path = self.folder / name
        stamp = _stamp(path)
        with _kept_lock:
            if path in _kept and _kept[path][0] == stamp:
                _kept.move_to_end(path)
                return _kept[path][1]
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return fold(iter(()))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
        value = fold(_lines(data))
        with _kept_lock:
            _kept[path] = stamp, value
            while len(_kept) > FILES_KEPT:
                _kept.popitem(last=False)
        return value


def rows_by_tag(ids: "pd.Series", tags: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """The rows that have each tag, int64 ascending; `ids` [n] are the gallery's.

    Tags none of whose images is there are left out.
    """
    everything = {id for tagged in tags.values() for id in tagged}
    found = ids.isin(list(everything)).to_numpy(bool).nonzero()[0]
    row_of = dict(zip(ids.iloc[found], found.tolist(), strict=True))
    rows = {
        tag: sorted(row_of[id] for id in tagged if id in row_of) for tag, tagged in tags.items()
    }
    return {tag: np.array(several, np.int64) for tag, several in rows.items() if several}


def right_label(
    decision: str | None, label: str | None, known: Container[str | None]
) -> str | None:
    """The label that a decision sets, as `Notes.review` keeps it; None but for relabel."""
    if decision is not None and decision not in DECISIONS:
        raise ValueError(f"decision {decision!r}: one of {DECISIONS}, or None")
    if decision != "relabel":
        return None
    return label if label is not None and label in known else clean_name(label or "", "label")


def clean_name(name: str, what: str) -> str:
    """A name that a person typed, trimmed, in one line and one spelling of its letters.

    Raises `UserError` unless 1 to 80 characters are left.
    """
    kept = unicodedata.normalize("NFC", " ".join(name.split()))
    if not kept:
        raise UserError(f"The {what} has no name; type one of 1 to {LONGEST_NAME} characters")
    if len(kept) > LONGEST_NAME:
        raise UserError(
            f"The {what} {kept[:24]!r}... has {len(kept)} characters; {LONGEST_NAME} are the most"
        )
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in kept):
        raise UserError(f"The {what} {kept!r} has characters that cannot be shown; type it again")
    return kept


def _listed(ids: Iterable[str]) -> list[str]:
    if isinstance(ids, str):
        raise TypeError("ids: several, not one string")
    return [str(id) for id in ids]


def _stamp(path: Path) -> _Stamp:
    """What tells that a file is as it was; a file that only grows cannot keep its size."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0, 0
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """A file open for reading and appending that no other process appends to meanwhile.

    Where the system or the disk has no locks, appending alone must do.
    """
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)


def _append(file: int, data: bytes) -> None:
    """Write one line at the end; on failure the file is as it was."""
    before = os.lseek(file, 0, os.SEEK_END)
    if before:
        os.lseek(file, before - 1, os.SEEK_SET)
        if (
            os.read(file, 1) != b"\n"
        ):  # a crash cut the last line short: it must not take ours along
            data = b"\n" + data
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(file, before)
        raise


def _lines(data: bytes) -> Iterator[dict[str, Any]]:
    """The lines that are whole."""
    for line in data.split(b"\n"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def _tags(lines: Iterator[dict[str, Any]]) -> dict[str, dict[str, None]]:
    tags: dict[str, dict[str, None]] = {}
    for line in lines:
        tag, ids = line.get("tag"), line.get("ids")
        if not isinstance(tag, str) or not (ids is None or _are_ids(ids)):
            continue
        if line.get("on") is True:
            tags.setdefault(tag, {}).update(dict.fromkeys(ids or ()))
        elif ids is None:
            tags.pop(tag, None)
        else:
            for id in ids:
                tags.get(tag, {}).pop(id, None)
    return {
        tag: tags[tag] for tag in sorted(tags, key=lambda tag: (tag.casefold(), tag)) if tags[tag]
    }


def _cluster_names(lines: Iterator[dict[str, Any]]) -> dict[str, dict[int, str]]:
    names: dict[str, dict[int, str]] = {}
    for line in lines:
        clustering, cluster, name = (line.get(key) for key in ("clustering", "cluster", "name"))
        if not isinstance(clustering, str) or type(cluster) is not int:
            continue
        if isinstance(name, str):
            names.setdefault(clustering, {})[cluster] = name
        else:
            names.get(clustering, {}).pop(cluster, None)
    return names


def _reviews(lines: Iterator[dict[str, Any]]) -> dict[str, Review]:
    reviews: dict[str, Review] = {}
    for line in lines:
        ids, decision, label = (line.get(key) for key in ("ids", "decision", "label"))
        if not _are_ids(ids) or (decision == "relabel" and not isinstance(label, str)):
            continue
        if decision in DECISIONS:
            reviews.update(dict.fromkeys(ids, Review(decision, label, str(line.get("time", "")))))
        elif decision is None:
            for id in ids:
                reviews.pop(id, None)
    return reviews


def _are_ids(ids: Any) -> TypeGuard[list[str]]:
    return isinstance(ids, list) and all(isinstance(id, str) for id in ids)
