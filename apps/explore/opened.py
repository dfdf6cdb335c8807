"""The galleries that are open in this server, shared by its pages and its routes.

A gallery is known to the browser by a key that changes when it is rebuilt, never by a path: so what
a route sends may be cached for good, and no address reaches a folder that no page has opened.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dino_core.errors import UserError
from dino_core.gallery import Gallery
from dino_core.gallery.clusters import clusterings
from dino_core.gallery.columns import column as values_of
from dino_core.gallery.columns import column_names, stamp
from dino_core.gallery.manifest import MANIFEST
from dino_core.gallery.notes import Notes, rows_by_tag
from dino_core.gallery.selection import MAX_CATEGORIES, NO_VALUE, Coloring, color_by
from dino_core.rng import permutation

GALLERIES_KEPT = 4

_open: OrderedDict[str, "Opened"] = OrderedDict()
_lock = threading.Lock()


@dataclass
class Opened:
    """A gallery and what was computed from it for the page."""

    key: str
    gallery: Gallery
    _colorings: dict[str, tuple[int, Coloring]] = field(default_factory=dict)
    _read: dict[str, tuple[Hashable, Any]] = field(default_factory=dict)
    _xy: dict[str, Any] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def labels(self) -> pd.Series:
        """One label per row; missing ones are NA."""
        return self.gallery.images["label"].astype("string")

    @property
    def columns(self) -> list[str]:
        """What the map can be colored by, the label first where there is one."""
        changed = *clusterings(self.gallery), Notes(self.gallery.path).stamp()[0]
        return self._fresh("columns", changed, lambda: column_names(self.gallery))

    @property
    def tagged(self) -> dict[str, np.ndarray]:
        """The rows that have each tag, int64 ascending."""
        notes = Notes(self.gallery.path)
        return self._fresh(
            "tagged",
            notes.stamp()[0],
            lambda: rows_by_tag(self.gallery.images["id"], notes.tags()),
        )

    @cached_property
    def rank(self) -> np.ndarray:
        """Each row's place in a random order that is always the same, int64 [n].

        Grids show images in it: the first page of any selection is then a fair sample of it.
        """
        return permutation(len(self.labels), "explorer", "order of grids")

    @cached_property
    def order(self) -> np.ndarray:
        """All rows in that order, int64 [n]."""
        return np.argsort(self.rank)

    def mixed(self, rows: np.ndarray) -> np.ndarray:
        """Some rows in that order."""
        if len(rows) == len(self.order):
            return self.order
        return rows[np.argsort(self.rank[rows])]

    def coloring(self, column: str) -> Coloring:
        """That column as colors; the first call computes it. Raises `UserError` for no column."""
        changed = stamp(self.gallery, column)
        with self._lock:
            made, coloring = self._colorings.get(column, (None, None))
            if coloring is None or made != changed:
                coloring = color_by(values_of(self.gallery, column), column)
                self._colorings[column] = changed, coloring
            return coloring

    def told(self, column: str, rows: np.ndarray) -> list[str | None]:
        """The values of some rows as text; None for what is missing."""
        coloring = self.coloring(column)
        if coloring.kind == "categories" and len(coloring.entries) < MAX_CATEGORIES:
            names = [None if name == NO_VALUE else name for name, _ in coloring.entries]
            return [names[code] for code in coloring.codes[rows].tolist()]
        values = values_of(self.gallery, column).iloc[rows]
        return [None if pd.isna(value) else _spoken(value) for value in values]

    def code_colors(self, column: str, rows: np.ndarray) -> tuple[list[str], list[str]]:
        """The colors of some rows, on a light page and on a dark one."""
        coloring = self.coloring(column)
        codes = coloring.codes[rows].tolist()
        light, dark = coloring.colors(dark=False), coloring.colors(dark=True)
        return [light[code] for code in codes], [dark[code] for code in codes]

    def label_colors(self) -> dict[str, str]:
        """The CSS color of each label that has one of its own, on either page."""
        coloring = self.coloring("label")
        both = zip(coloring.colors(dark=False), coloring.colors(dark=True), strict=True)
        names = (name for name, _ in coloring.entries)
        return dict(zip(names, (f"light-dark({a},{b})" for a, b in both), strict=True))

    def id(self, row: int) -> str:
        """The id of a row's image."""
        return str(self.gallery.images["id"].iat[row])

    def row(self, id: str | None) -> int | None:
        """The row of an image's id, None for one that is not here."""
        try:
            return None if id is None else self.gallery.row(id)
        except UserError:
            return None

    def xy(self, map_name: str) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates as the browser gets them, float32 [n] each; NaN where a row has none."""
        if map_name not in self._xy:
            frame = self.gallery.map(map_name)
            self._xy[map_name] = tuple(frame[axis].to_numpy(np.float32) for axis in "xy")
        return self._xy[map_name]

    def _fresh(self, name: str, changed: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returns, made anew only where `changed` is not what it was."""
        known = self._read.get(name)
        if known is None or known[0] != changed:
            known = self._read[name] = changed, make()
        return known[1]


def open_gallery(path: Path) -> Opened:
    """Open `path`, or find it open. Raises `UserError` when it is no whole gallery."""
    path = path.resolve()
    key = _key(path)
    with _lock:
        if key in _open:
            _open.move_to_end(key)
            return _open[key]
    gallery = Gallery.open(path)  # no lock: it may wait for an update, and others' galleries do not
    if key != _key(path):
        return open_gallery(path)  # which was replaced meanwhile
    with _lock:
        if key not in _open:
            for older in [key for key, one in _open.items() if one.gallery.path == path]:
                del _open[older]
            _open[key] = Opened(key, gallery)
            while len(_open) > GALLERIES_KEPT:
                _open.popitem(last=False)
        return _open[key]


def _key(path: Path) -> str:
    try:
        made = (path / MANIFEST).stat().st_mtime_ns
    except OSError:
        made = 0  # Gallery.open says what is wrong
    return hashlib.blake2b(f"{path}\n{made}".encode(), digest_size=9).hexdigest()


def _spoken(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def by_key(key: str) -> Opened | None:
    """The gallery that a page opened under this key, if it still is."""
    return _open.get(key)
