"""The galleries that are open in this server, shared by its pages and its routes.

A gallery is known to the browser by a key that changes when it is rebuilt, never by a path: so what
a route sends may be cached for good, and no address reaches a folder that no page has opened.
"""

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dino_core.gallery import Gallery
from dino_core.gallery.manifest import MANIFEST
from dino_core.gallery.selection import Coloring, color_by
from dino_core.rng import permutation

GALLERIES_KEPT = 4
SIMILARITY = "similarity to nearest"  # low: an outlier; 1.00: a duplicate
_OURS = {"id", "path", "label", "split", "mask", "content_hash", "size", "mtime", "gone"}

_open: OrderedDict[str, "Opened"] = OrderedDict()
_lock = threading.Lock()


@dataclass
class Opened:
    """A gallery and what was computed from it for the page."""

    key: str
    gallery: Gallery
    _colorings: dict[str, Coloring] = field(default_factory=dict)
    _xy: dict[str, Any] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def labels(self) -> pd.Series:
        """One label per row; missing ones are NA."""
        return self.gallery.images["label"].astype("string")

    @cached_property
    def columns(self) -> list[str]:
        """What the map can be colored by, the label first where there is one."""
        images = self.gallery.images
        standard = [name for name in ("label", "split") if images[name].notna().any()]
        own = [name for name in images.columns if name not in _OURS]
        return [*standard, *own, SIMILARITY]

    @cached_property
    def rank(self) -> np.ndarray:
        """Each row's place in a random order that is always the same, int64 [n].

        Grids show images in it: the first page of any selection is then a fair sample of it.
        """
        return permutation(len(self.labels), "explorer", "order of grids")

    def coloring(self, column: str) -> Coloring:
        """That column as colors; the first call computes it."""
        with self._lock:
            if column not in self._colorings:
                self._colorings[column] = color_by(self._values(column), column)
            return self._colorings[column]

    def _values(self, column: str) -> pd.Series:
        if column != SIMILARITY:
            return self.gallery.images[column]
        _, scores = self.gallery.neighbors()
        return pd.Series(scores[:, 0] if scores.shape[1] else np.full(len(scores), np.nan))

    def xy(self, map_name: str) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates as the browser gets them, float32 [n] each; NaN where a row has none."""
        if map_name not in self._xy:
            frame = self.gallery.map(map_name)
            self._xy[map_name] = tuple(frame[axis].to_numpy(np.float32) for axis in "xy")
        return self._xy[map_name]


def open_gallery(path: Path) -> Opened:
    """Open `path`, or find it open. Raises `UserError` when it is no whole gallery."""
    path = path.resolve()
    try:
        made = (path / MANIFEST).stat().st_mtime_ns
    except OSError:
        made = 0  # Gallery.open says what is wrong
    key = hashlib.blake2b(f"{path}\n{made}".encode(), digest_size=9).hexdigest()
    with _lock:
        if key not in _open:
            _open[key] = Opened(key, Gallery.open(path))
            while len(_open) > GALLERIES_KEPT:
                _open.popitem(last=False)
        _open.move_to_end(key)
        return _open[key]


def by_key(key: str) -> Opened | None:
    """The gallery that a page opened under this key, if it still is."""
    return _open.get(key)
