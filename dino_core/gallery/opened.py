"""An opened gallery: search it, look at its map and its images.

    gallery = Gallery.open("galleries/pets")
    hits = gallery.search("dog/1.jpg", k=5)
    hits = gallery.search(photo, model=model, where=lambda images: images.label == "dog")

Several threads may use one at once: nothing in it changes after it was read.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from pandas.util import hash_array

from dino_core.data import BadImage, Source, decode_image, open_source
from dino_core.errors import UserError
from dino_core.gallery.damage import (
    MISSING,
    NEIGHBORS,
    UNREADABLE,
    Damaged,
    features_damage,
    is_there,
    map_damage,
    map_file,
    neighbors_damage,
    patches_damage,
    table_damage,
    unreadable,
)
from dino_core.gallery.images import COLUMNS, IMAGES, read_table
from dino_core.gallery.listing import is_gallery, update_waiting
from dino_core.gallery.manifest import BUILDING, MANIFEST, GalleryInfo, build_command
from dino_core.gallery.mapped import let_go, map_arrays
from dino_core.gallery.maps import PLACING_NEIGHBORS, place
from dino_core.gallery.neighbors import nearest
from dino_core.gallery.partial import FEATURES
from dino_core.gallery.replacing import is_settled, settle
from dino_core.gallery.thumbnails import PLACEHOLDER, cached, placeholder_jpeg, thumbnail_jpeg

if TYPE_CHECKING:
    from dino_core.gallery.features import Features
    from dino_core.gallery.patches import Patches
    from dino_core.models import Model

PATHS_LOOKED_AT = 16
HASHED_AT_ONCE = 65_536  # ids
_HEX = re.compile("[0-9a-f]{2,128}")
Where = np.ndarray | Sequence[bool] | Callable[[pd.DataFrame], Any]


@dataclass(frozen=True)
class Hits:
    """What a search found, best first."""

    rows: np.ndarray  # int64 [K], rows of the gallery's tables
    ids: list[str]
    labels: list[str | None]
    scores: np.ndarray  # float32 [K], cosine similarity, -1 to 1

    def __len__(self) -> int:
        return len(self.rows)


class Gallery:
    """A whole gallery on disk. Opening it reads one JSON file; the rest is read when asked for."""

    def __init__(self, path: Path, info: GalleryInfo) -> None:
        self.path, self.info = path, info
        self._source: Source | None = None
        self._patches: Patches | None = None
        self.news = ""  # what the build or update that returned it changed, a sentence

    @classmethod
    def open(cls, path: str | Path) -> "Gallery":
        """Open the gallery in a folder.

        Raises `UserError` when there is none, when it is half made (with the command that finishes
        it), when its features or its table are damaged, or of a newer format. What else is wrong
        with it, `problems` tells.
        """
        path = Path(path)
        settle(path)
        if not (path / MANIFEST).is_file():
            raise UserError(_not_whole(path))
        gallery = cls(path, GalleryInfo.read(path))
        gallery._check()
        gallery._refuse_replaced()
        return gallery

    def __repr__(self) -> str:
        return f"<Gallery {self.name}: {len(self):,} images, {self.info.model}>"

    def __len__(self) -> int:
        return self.info.count

    @property
    def name(self) -> str:
        return self.path.name

    # -- tables -----------------------------------------------------------------------------

    @cached_property
    def images(self) -> pd.DataFrame:
        """One row an image (see `gallery.images.COLUMNS`), then the user's own columns.

        Raises `UserError` when the file is damaged, as do `neighbors` and `map`, or when an update
        has replaced the gallery's files since it was opened.
        """
        table = self._read(IMAGES, lambda: read_table(self.path), self._build_again)
        if len(table) != len(self) or not set(COLUMNS) <= set(table.columns):
            raise Damaged(self._build_again(IMAGES, UNREADABLE))
        return table

    @cached_property
    def features(self) -> np.ndarray:
        """float32 [n, D], L2-normalized, memory-mapped (read-only)."""
        if self.info.count == 0:  # an empty file cannot be mapped
            return np.empty((0, self.info.dim), np.float32)
        features_ND: np.ndarray = self._read(
            FEATURES,
            lambda: np.load(self.path / FEATURES, mmap_mode="r", allow_pickle=False),
            self._build_again,
        )
        return features_ND

    @cached_property
    def _neighbors(self) -> tuple[np.ndarray, np.ndarray]:
        rows_NK, scores_NK = self._read(NEIGHBORS, self._read_neighbors, self._find_again)
        shape = (self.info.count, self.info.neighbors)
        whole = rows_NK.shape == scores_NK.shape == shape
        whole = whole and (rows_NK.dtype.kind, scores_NK.dtype.kind) == ("i", "f")
        if not whole or (rows_NK.size and not 0 <= rows_NK.min() <= rows_NK.max() < len(self)):
            raise Damaged(self._find_again(NEIGHBORS, UNREADABLE))
        let_go(rows_NK)
        return rows_NK, scores_NK

    def _read_neighbors(self) -> tuple[np.ndarray, np.ndarray]:
        rows_NK, scores_NK = map_arrays(self.path / NEIGHBORS, ("rows", "scores"))
        return rows_NK, scores_NK

    def neighbors(self) -> tuple[np.ndarray, np.ndarray]:
        """Every image's nearest others, best first: rows int32 [n, K], cosines float32 [n, K]."""
        return self._neighbors

    def map(self, name: str = "umap") -> pd.DataFrame:
        """Columns `x` and `y`, one row an image; and `placed`, bool, where an update put images on
        a map that was drawn before. Raises `UserError` for a map that was not made, or is damaged.
        """
        if name not in self.info.maps:
            there = ", ".join(self.info.maps)
            raise UserError(f"{self.path}: has no map {name!r}; there are {there}")
        file = map_file(name)
        frame = self._read(
            file,
            lambda: pd.read_parquet(self.path / file, page_checksum_verification=True),
            self._draw_again,
        )
        whole = len(frame) == len(self) and {"x", "y"} <= set(frame.columns)
        if not whole or not all(frame[axis].dtype.kind == "f" for axis in "xy"):
            raise Damaged(self._draw_again(file, UNREADABLE))
        return frame

    def row(self, id: str) -> int:
        """The row of an image's id. Raises `UserError` for an id that is not here."""
        ids = self.images["id"]
        hashes_N, rows_N = self._rows_by_hash
        text = id.encode("utf-8", "replace").decode()  # half a pair of UTF-16 is no id of ours
        hashed = _hashed(pd.Series([text], dtype=object))[0]
        first, last = (
            np.searchsorted(hashes_N, hashed, "left"),
            np.searchsorted(hashes_N, hashed, "right"),
        )
        for row in rows_N[first:last].tolist():
            if ids.iat[row] == id:
                return row
        raise UserError(f"{self.path}: has no image {id!r}")

    @cached_property
    def _rows_by_hash(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of all ids, ascending, and the rows they are of.

        A dict of a million texts would take 150 MB; this takes 16.
        """
        hashes_N = _hashed(self.images["id"])
        rows_N = np.argsort(hashes_N, kind="stable")
        return hashes_N[rows_N], rows_N

    # -- search -----------------------------------------------------------------------------

    def search(
        self,
        query: "np.ndarray | str | Features",
        k: int = 20,
        where: Where | None = None,
        model: "Model | None" = None,
    ) -> Hits:
        """The `k` images most like the query, exactly, by cosine.

        `query`: an image, uint8 [H, W, 3], which needs the gallery's `model`; the id of an image of
        the gallery, which is then not among its own neighbors; or `Features` of one image.
        `where`: which images may be found: bool [n], rows, or a function from `images` to either.
        Raises `UserError` for an unknown id and for features of another model.
        """
        allowed_N = self.allowed(where)
        if isinstance(query, str):
            row = self.row(query)
            if allowed_N is None:
                allowed_N = np.ones(len(self), bool)
            allowed_N[row] = False
            query_1D = self.features[row : row + 1]
        else:
            query_1D = self._comparable(query, model)
            if len(query_1D) != 1:
                raise ValueError(f"one query at a time, not {len(query_1D)}")
        rows_1K, scores_1K = nearest(self.features, query_1D, k, allowed_N)
        found = self.images.iloc[rows_1K[0]]
        labels = [label if isinstance(label, str) else None for label in found["label"]]
        return Hits(rows_1K[0], list(found["id"]), labels, scores_1K[0])

    def place(
        self, features: "np.ndarray | Features", name: str = "umap", model: "Model | None" = None
    ) -> pd.DataFrame:
        """Where new images go on a map: at the weighted mean of their ten nearest neighbors.

        Takes an image or `Features` as `search` does. Returns columns `x`, `y` and `placed` (True:
        these points were not part of what the map was fitted on).
        """
        query_MD = self._comparable(features, model)
        if len(self) == 0:
            raise UserError(f"{self.path}: is empty, so nothing can be placed on its map")
        rows_MK, scores_MK = nearest(self.features, query_MD, PLACING_NEIGHBORS)
        xy_N2 = self.map(name)[["x", "y"]].to_numpy(np.float32)
        placed = pd.DataFrame(place(xy_N2, rows_MK, scores_MK), columns=["x", "y"])
        return placed.assign(placed=True)

    def _comparable(self, query: "np.ndarray | Features", model: "Model | None") -> np.ndarray:
        """Features of the query, float32 [M, D], refused when they are of another model."""
        from dino_core.gallery.features import Features, embed, model_feature_hash

        if isinstance(query, Features):
            self.refuse_others(query.model or "another model", query.feature_hash)
            return np.atleast_2d(np.asarray(query.array, np.float32))
        if not (query.dtype == np.uint8 and query.ndim == 3):
            raise ValueError("query: an image, uint8 [H, W, 3], an id, or Features")
        if model is None:
            raise UserError(
                f"{self.path}: searching with an image needs the model that made the gallery; "
                f"give model=load_model({self.info.model!r})"
            )
        self.refuse_others(model.spec, model_feature_hash(model, self.info.kind))
        return embed(model, [query], self.info.kind).array

    def refuse_others(self, model: str, feature_hash: str) -> None:
        """Raise `UserError` unless features of this hash can be compared with the gallery's."""
        if feature_hash != self.info.feature_hash and model == self.info.model:
            raise UserError(
                f"{self.path}: holds features of other weights of {model} than are there now; "
                "build it again with --redo, or name the checkpoint it was made with"
            )
        if feature_hash != self.info.feature_hash:
            raise UserError(
                f"{self.path}: holds features of {self.info.model} "
                f"({self.info.feature_hash[:8]}), which cannot be compared with features of "
                f"{model} ({feature_hash[:8]}); build a gallery with that model"
            )

    def allowed(self, where: Where | None) -> np.ndarray | None:
        """Which images `where` lets a search find: bool [n], a copy, or None for all of them."""
        if callable(where):
            where = where(self.images)
        gone_N = self.images["gone"].to_numpy(bool)
        if where is None:
            return ~gone_N if gone_N.any() else None
        chosen = np.asarray(where)
        if chosen.dtype == bool:
            if chosen.shape != (len(self),):
                raise ValueError(f"where: {chosen.shape} for {len(self)} images")
            return chosen & ~gone_N
        allowed_N = np.zeros(len(self), bool)
        allowed_N[chosen.astype(np.int64)] = True
        return allowed_N & ~gone_N

    @property
    def patches(self) -> "Patches | None":
        """The patches it holds, to be searched; None where none were built (`build_patches`).

        Raises `UserError` when they are damaged or of a newer format.
        """
        from dino_core.gallery.patches import Patches

        there = Patches.open(self)
        if there is None or self._patches is None or there.info != self._patches.info:
            self._patches = there  # built since they were last asked for
        return self._patches

    # -- pictures ---------------------------------------------------------------------------

    def image(self, row: int) -> np.ndarray:
        """The image of a row, uint8 [H, W, 3], read from where it lies.

        Raises `UserError` when it is not there any more.
        """
        id, path = self.images.at[int(row), "id"], self.images.at[int(row), "path"]
        try:
            if isinstance(path, str):
                return decode_image(Path(self.info.root or "", path))
            return self._from_source(id)
        except (BadImage, OSError) as error:
            raise UserError(
                f"{self.path}: {id} cannot be read ({error}); the images are expected in "
                f"{self.info.root or self.info.data}"
            ) from None

    def thumbnail(self, row: int, side: int = 160) -> Path:
        """A small JPEG of a row's image, at most `side` pixels long.

        A gray tile when the image is gone (`thumbnails.is_placeholder`): for a browser not to keep.
        """
        content = str(self.images.at[int(row), "content_hash"])
        if not _HEX.fullmatch(content):  # of a gallery made elsewhere: no path is made of it
            text = f"{content}\0{self.images.at[int(row), 'id']}"
            content = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        folder = self.path / "thumbs" / str(side)
        try:
            return cached(
                folder / content[:2] / f"{content}.jpg",
                lambda: thumbnail_jpeg(self.image(row), side),
            )
        except UserError:
            return cached(folder / "missing" / PLACEHOLDER, lambda: placeholder_jpeg(side))

    def images_missing(self) -> str:
        """A sentence when the images are not where they were at building, "" when they are."""
        place = self.info.root or self.info.data
        if not self._has_moved():
            return ""
        command = build_command(self.info.model, "FOLDER", self.path)
        return (
            f"{self.name}: its images are not in {place} any more, so gray tiles stand in for "
            "them; search and map work as before; put them back, or run "
            f"`{command} --update` with the folder that they are in now"
        )

    def _has_moved(self) -> bool:
        """Whether the folder or file of the images is gone, or the first images in it are."""
        root = self.info.root
        if root is not None and not Path(root).exists():
            return True
        if root is None:  # an archive or a table, named by its full path; or no file at all
            return Path(self.info.data).is_absolute() and not Path(self.info.data).exists()
        try:
            with pq.ParquetFile(self.path / IMAGES) as file:
                first = next(file.iter_batches(PATHS_LOOKED_AT, columns=["path"]), None)
            paths = [] if first is None else first.column("path").to_pylist()
        except Exception:  # garbage can fail in any way; reading the table says so
            return False
        paths = [path for path in paths if path is not None]
        return bool(paths) and not any(Path(root, path).exists() for path in paths)

    def _from_source(self, id: str) -> np.ndarray:
        return self.source.image(self.index_in_source[id])

    @property
    def source(self) -> Source:
        """The data the gallery was made of, opened again. Raises `UserError` if it is gone."""
        if self._source is None:
            self._source = open_source(self.info.data)
        return self._source

    @cached_property
    def index_in_source(self) -> dict[str, int]:
        """Where each id lies in `source`."""
        return {id: index for index, id in enumerate(self.source.ids)}

    # -- checks -----------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """What does not work, a sentence each, told from sizes and headers: cheap.

        Everything that none of them names works.
        """
        of = self.path, self.info
        found = [
            self.images_missing(),
            _said(partial(neighbors_damage, *of), NEIGHBORS, self._find_again),
        ]
        found += [
            _said(partial(map_damage, *of, name), map_file(name), self._draw_again)
            for name in self.info.maps
        ]
        if reason := patches_damage(self.path, self.info):
            found.append(
                f"{self.path}: patches/ {reason}, so a search among parts of images does not work; "
                f"run `{self._command} --patches 49 --redo` to build them again"
            )
        found.append(update_waiting(self.path))
        return [sentence for sentence in found if sentence]

    def _check(self) -> None:
        """That what everything else hangs on is whole; content is read later."""
        for name, damage in ((FEATURES, features_damage), (IMAGES, table_damage)):
            if reason := damage(self.path, self.info):
                self._refuse_replaced()
                raise Damaged(self._build_again(name, reason))
        _ = self.features  # mapped now: these stay the same when an update replaces the file

    def _read(self, name: str, read: Callable[[], Any], say: Callable[[str, str], str]) -> Any:
        """What `read` gives of a file; `Damaged` for one whose bytes it can make nothing of."""
        try:
            value = read()
        except Exception as error:  # garbage can fail in any way
            self._refuse_replaced()
            file = self.path / name
            reason = unreadable(file, error) if is_there(file) else MISSING
            raise Damaged(say(name, reason)) from None
        self._refuse_replaced()
        return value

    def _refuse_replaced(self) -> None:
        """Never mix files of two sets of images: refuse what an update or a redo has replaced."""
        try:
            same = GalleryInfo.read(self.path).identity == self.info.identity
        except UserError:
            same = False
        if not same or not is_settled(self.path):
            raise UserError(
                f"{self.path}: was built again or removed since it was opened; open it again"
            )

    @property
    def _command(self) -> str:
        return build_command(self.info.model, self.info.data, self.path)

    def _build_again(self, name: str, reason: str) -> str:
        return (
            f"{self.path}: is damaged ({name} {reason}); run `{self._command}` to build it again, "
            "what you added stays"
        )

    def _find_again(self, name: str, reason: str) -> str:
        return (
            f"{self.path}: is damaged ({name} {reason}), so what asks for each image's neighbors "
            f"does not work, while search and maps do; run `{self._command}` to find them again"
        )

    def _draw_again(self, name: str, reason: str) -> str:
        return (
            f"{self.path}: is damaged ({name} {reason}), so this map cannot be shown; look at "
            f"another, or run `{self._command}` to draw it again"
        )


def _said(look: Callable[[], str], name: str, say: Callable[[str, str], str]) -> str:
    """What `say` makes of what `look` finds wrong with a file; "" where that is nothing."""
    try:
        reason = look()
    except UserError as error:
        return str(error)
    return say(name, reason) if reason else ""


def _hashed(ids: pd.Series) -> np.ndarray:
    """uint64 [n], in blocks: texts of Arrow become Python's for it."""
    starts = range(0, len(ids), HASHED_AT_ONCE)
    parts = (ids.iloc[start : start + HASHED_AT_ONCE].to_numpy(object) for start in starts)
    hashed = [hash_array(part, categorize=False) for part in parts]
    return np.concatenate([np.empty(0, np.uint64), *hashed])


def _not_whole(path: Path) -> str:
    if not path.exists():
        return f"{path}: no such gallery; make one with python scripts/embed.py --data FOLDER"
    if not is_gallery(path):
        return f"{path}: is not a gallery (it has no gallery.json)"
    command = "python scripts/embed.py"
    try:
        from dino_core.files import read_json

        plan = read_json(path / BUILDING)["plan"]
        command = build_command(plan["model"], plan["data"], path)
    except (UserError, KeyError, TypeError):
        pass
    return f"{path}: is half made; run `{command}` again to finish it"
