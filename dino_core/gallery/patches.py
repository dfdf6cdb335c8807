"""Patches of a gallery's images: a click on an eye finds eyes.

    seen = patch_features(model, image)             # every patch of an image, as a gallery holds it
    patches = gallery.patches                       # None where none were built
    hits = patches.search(seen.under(x, y), k=20)   # the patch under a pixel
    hits.boxes                                      # where the patches lie in their images

What is held is a part or all of the patches, each in a few bytes (`patch_building.py`), so a search
is nearly exact; `patches.info.recall` says how nearly.

Shapes: P patches held, N images, M queries, D dimensions, K hits, h x w the patch grid.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from dino_core.errors import UserError
from dino_core.files import read_json
from dino_core.gallery.extraction import Embedder
from dino_core.gallery.features import Features, prepared, preprocessing
from dino_core.gallery.manifest import GalleryInfo, feature_hash
from dino_core.gallery.opened import Gallery, Where
from dino_core.models import Backbone, Model
from dino_core.models.preprocess import LONGEST

FORMAT_VERSION = 1
PATCHES = "patches"  # the folder in a gallery's
INDEX, TABLE, MANIFEST = "index.faiss", "patches.npz", "patches.json"

KIND = "patch"  # the last layer's patch tokens after the final norm
REMEDY = "remove it, build again"
CANDIDATES = 64  # patches looked at first: many of them may be of one image
MORE = 4  # times as many, where that was not enough


@dataclass(frozen=True)
class Frame:
    """Where the patch grid lies on an image that was resized and cropped (`preprocess.cropped`)."""

    left: float  # pixels of the image, as are all below
    top: float
    width: float
    height: float
    grid: tuple[int, int]  # patches per (column, row): (h, w)
    image_size: tuple[int, int]  # (height, width)

    @classmethod
    def of(
        cls, image_size: tuple[int, int], preprocessing: dict[str, Any], grid: tuple[int, int]
    ) -> "Frame":
        """The frame on an image of (height, width) pixels under a gallery's preprocessing."""
        keep, short = LONGEST * min(image_size), min(image_size)
        starts, sides = [], []
        for side in image_size:
            kept = min(side, keep)
            resized = int(preprocessing["resize"] * kept / short)
            scale = kept / resized
            crop_start = round((resized - preprocessing["crop"]) / 2)
            starts.append((side - kept) // 2 + crop_start * scale)
            sides.append(preprocessing["crop"] * scale)
        return cls(starts[1], starts[0], sides[1], sides[0], grid, image_size)

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of a patch, in whole pixels that cover it."""
        rows, columns = self.grid
        x0, x1 = (self.left + (column + end) * self.width / columns for end in (0, 1))
        y0, y1 = (self.top + (row + end) * self.height / rows for end in (0, 1))
        slack = 1e-6  # of rounding in the lines above
        low = [int(max(0, np.floor(at + slack))) for at in (x0, y0)]
        high = [int(np.ceil(at - slack)) for at in (x1, y1)]
        return low[0], low[1], min(high[0], self.image_size[1]), min(high[1], self.image_size[0])

    def cell(self, x: float, y: float) -> tuple[int, int]:
        """(row, column) of the patch under a pixel. Raises `UserError` outside of the grid."""
        row = (y + 0.5 - self.top) / self.height * self.grid[0]
        column = (x + 0.5 - self.left) / self.width * self.grid[1]
        if not (0 <= row < self.grid[0] and 0 <= column < self.grid[1]):
            right, bottom = self.left + self.width, self.top + self.height
            raise UserError(
                f"({x:.0f}, {y:.0f}) is outside of what the model sees of this image, "
                f"x {self.left:.0f} to {right:.0f} and y {self.top:.0f} to {bottom:.0f}; "
                "click inside that"
            )
        return int(row), int(column)


@dataclass(frozen=True, kw_only=True)
class PatchFeatures(Features):
    """Every patch of one image, row by row: `array` float32 [h * w, D], L2-normalized."""

    frame: Frame

    def at(self, row: int, column: int) -> Features:
        """The features of one patch, [1, D]."""
        at = row * self.frame.grid[1] + column
        return Features(self.array[at : at + 1], self.feature_hash, self.model)

    def under(self, x: float, y: float) -> Features:
        """The features of the patch under a pixel. Raises `UserError` outside of the grid."""
        return self.at(*self.frame.cell(x, y))


@dataclass(frozen=True)
class PatchHits:
    """Patches that a search found, best first."""

    rows: np.ndarray  # int64 [K], rows of the gallery's tables
    ids: list[str]  # of the images
    labels: list[str | None]
    cells: np.ndarray  # int64 [K, 2], (row, column) in the grid
    grid: tuple[int, int]  # (h, w)
    boxes: np.ndarray  # int64 [K, 4], (left, top, right, bottom) in pixels of the source image
    scores: np.ndarray  # float32 [K], cosine similarity, as exact as the code is

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class PatchInfo:
    """The fields of `patches.json`."""

    model: str  # the model as the user spelled it
    model_hash: str
    kind: str  # which tokens: "patch"
    feature_hash: str  # over the model, its preprocessing and the kind
    preprocessing: dict[str, Any]
    gallery: dict[str, Any]  # feature_hash, source_hash and count of the gallery these belong to
    grid: tuple[int, int]  # (h, w)
    dim: int
    code: str  # how a patch is stored: FAISS's name of it
    per_image: int | None  # patches of each image; None is all
    count: int = 0  # patches
    images: int = 0  # images that they are of
    skipped: dict[str, int] = field(default_factory=dict)  # why -> images without patches
    probes: int | None = None  # lists that a search looks into, where the code has lists
    recall: float = 0.0  # share of the true nearest others found
    judged: int = 0  # patches that the recall was measured on
    neighbors: int = 0  # nearest others of each of these
    bytes: int = 0  # of the folder
    created: str = ""  # ISO 8601, UTC
    version: int = FORMAT_VERSION

    def write(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "PatchInfo":
        """The manifest of `folder`. Raises `UserError` when it is broken or newer."""
        value = read_json(folder / MANIFEST)
        version = value.get("version") if isinstance(value, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(
                f"{folder}: its {MANIFEST} has format version {version}, and this program reads "
                f"{FORMAT_VERSION}; remove the folder and build it again, or update this program"
            )
        known = {one.name for one in fields(cls)}
        try:
            info = {name: value[name] for name in value if name in known}
            return cls(**info | {"grid": tuple(info["grid"])})
        except (TypeError, KeyError) as error:
            raise UserError(
                f"{folder}: its {MANIFEST} lacks something ({error}); remove the folder and build "
                "it again"
            ) from None

    def says(self) -> str:
        """What a user should know of them, a sentence."""
        left_out = "".join(f", {number:,} {why}" for why, number in self.skipped.items() if number)
        return (
            f"{self.count:,} patches of {self.images:,} images{left_out}; {self.bytes:,} bytes; "
            f"a search finds {100 * self.recall:.1f} % of the true {self.neighbors} nearest, "
            f"judged on {self.judged:,} patches"
        )


def belongs_to(info: GalleryInfo) -> dict[str, Any]:
    """What tells that patches are of the images that the gallery holds now."""
    return {name: getattr(info, name) for name in ("feature_hash", "source_hash", "count")}


def patch_tokens(backbone: Backbone, x_BCHW: Tensor) -> Tensor:
    """The patch tokens after the final norm, those of all images in one column: [B * h * w, D]."""
    return backbone.tokens(x_BCHW)[:, backbone.num_prefix_tokens :].flatten(0, 1)


def patch_hash(model: Model) -> str:
    """What makes patch features comparable: the model's weights, its preprocessing, the kind."""
    return feature_hash(model.hash, preprocessing(model), KIND)


def patch_features(model: Model, image: np.ndarray) -> PatchFeatures:
    """Every patch of one image, uint8 [H, W, C], resized and cropped as in a gallery."""
    run = Embedder(model, patch_tokens, half=False)
    found = run(torch.stack([prepared(image, model.info)]))
    side = model.info.image_size
    frame = Frame.of(
        (image.shape[0], image.shape[1]), preprocessing(model), model.backbone.grid(side, side)
    )
    array = found() if callable(found) else found
    return PatchFeatures(array, patch_hash(model), model.spec, frame=frame)


class Patches:
    """The patches that a gallery holds. Several threads may search at once."""

    def __init__(self, gallery: Gallery, info: PatchInfo) -> None:
        self.gallery, self.info = gallery, info
        self.path = gallery.path / PATCHES

    @classmethod
    def open(cls, gallery: Gallery) -> "Patches | None":
        """The gallery's patches; None where none were built, or of what it held before a redo.

        Raises `UserError` when they are damaged or of a newer format.
        """
        folder = gallery.path / PATCHES
        if not (folder / MANIFEST).is_file():
            return None
        info = PatchInfo.read(folder)
        if info.gallery != belongs_to(gallery.info):
            return None
        for name in (INDEX, TABLE):
            if not (folder / name).is_file():
                raise UserError(f"{folder}: is damaged ({name} is missing); {REMEDY}")
        return cls(gallery, info)

    def __len__(self) -> int:
        return self.info.count

    def __repr__(self) -> str:
        return f"<Patches of {self.gallery.name}: {len(self):,}, {self.info.code}>"

    @cached_property
    def table(self) -> dict[str, np.ndarray]:
        """Where each patch lies: `image` int32 [P], a row of the gallery, `row` and `column`."""
        ends = {"image": len(self.gallery), "row": self.info.grid[0], "column": self.info.grid[1]}
        try:
            with np.load(self.path / TABLE, allow_pickle=False) as file:
                table = {name: file[name] for name in ends}
            whole = all(
                table[name].shape == (len(self),)
                and table[name].min(initial=0) >= 0 and table[name].max(initial=0) < end
                for name, end in ends.items()
            )  # fmt: skip
        except Exception:  # garbage can fail in any way
            whole = False
        if not whole:
            raise UserError(f"{self.path}: is damaged ({TABLE} cannot be read); {REMEDY}")
        return table

    def search(
        self,
        query: "np.ndarray | Features",
        k: int = 20,
        where: Where | None = None,
        per_image: int = 1,
    ) -> PatchHits:
        """The `k` patches most like the query by cosine, at most `per_image` of each image.

        `query`: features of one patch, float [D], or of several, [M, D]: then a patch counts by
        the one it is most like. Features of another model are refused with a `UserError`; of a
        bare array nobody can tell. `where`: which images may be found (see `Gallery.search`).
        """
        query_MD = self._unit(query)
        allowed_P = self._allowed(where)
        found, scores = self._best(query_MD, max(0, k), max(1, per_image), allowed_P)
        rows = self.table["image"][found].astype(np.int64)
        images = self.gallery.images.iloc[rows]
        cells = np.stack([self.table["row"][found], self.table["column"][found]], 1).astype(int)
        frames = [
            Frame.of(size, self.info.preprocessing, self.info.grid)
            for size in zip(images["height"].tolist(), images["width"].tolist(), strict=True)
        ]
        boxes = [frame.box(*cell) for frame, cell in zip(frames, cells.tolist(), strict=True)]
        return PatchHits(
            rows=rows,
            ids=list(images["id"]),
            labels=[label if isinstance(label, str) else None for label in images["label"]],
            cells=cells,
            grid=self.info.grid,
            boxes=np.array(boxes, np.int64).reshape(-1, 4),
            scores=scores,
        )

    @cached_property
    def _index(self) -> faiss.Index:
        """As mapped into memory: only what a search touches is read."""
        files = [self.path / name for name in (INDEX, TABLE)]
        try:
            whole = self.info.bytes == sum(file.stat().st_size for file in files)
            index = faiss.read_index(str(files[0]), faiss.IO_FLAG_MMAP_IFC) if whole else None
        except (OSError, RuntimeError, MemoryError):
            index = None
        if index is None or (index.ntotal, index.d) != (self.info.count, self.info.dim):
            raise UserError(f"{self.path}: is damaged ({INDEX} cannot be read); {REMEDY}")
        return index

    def _unit(self, query: "np.ndarray | Features") -> np.ndarray:
        """Queries of length 1, float32 [M, D]."""
        if isinstance(query, Features):
            if query.feature_hash != self.info.feature_hash:
                raise UserError(
                    f"{self.path}: holds patches seen by {self.info.model}, which cannot be "
                    f"compared with these features of {query.model or 'another model'}; "
                    "make them with that model's `patch_features`"
                )
            query = query.array
        query_MD = np.atleast_2d(np.asarray(query, np.float32))
        if query_MD.ndim != 2 or query_MD.shape[1] != self.info.dim or not len(query_MD):
            raise ValueError(f"query: {query_MD.shape} for features of {self.info.dim} numbers")
        length_M1 = np.linalg.norm(query_MD, axis=1, keepdims=True)
        return np.ascontiguousarray(query_MD / np.maximum(length_M1, 1e-12))

    def _allowed(self, where: Where | None) -> np.ndarray | None:
        """bool [P], or None when all patches may be found."""
        allowed_N = self.gallery.allowed(where)
        return None if allowed_N is None else allowed_N[self.table["image"]]

    def _best(
        self, query_MD: np.ndarray, k: int, per_image: int, allowed_P: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Patches and cosines of the hits, looking at more and more until there are enough."""
        total = self.info.count if allowed_P is None else int(np.count_nonzero(allowed_P))
        if min(k, total) == 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        take, probes, most = min(total, max(CANDIDATES, MORE * k)), self._probes(total), self._lists
        while True:
            found, scores, floor = self._nearest(query_MD, take, probes, allowed_P)
            if take == total:
                floor = -np.inf  # there are no others
            kept = rank_within(self.table["image"][found]) < per_image
            found, scores = found[kept], scores[kept]
            if np.count_nonzero(scores >= floor) >= k or (floor == -np.inf and probes == most):
                return found[:k], scores[:k]
            if floor == -np.inf:
                probes = min(most, MORE * probes)
            take = min(total, MORE * take)

    def _nearest(
        self, query_MD: np.ndarray, take: int, probes: int, allowed_P: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Patches near to any query, best first, their cosines, and what no other one exceeds.

        For lengths of 1, cosine = 1 - distance^2 / 2. FAISS compares by distance: patches all share
        a direction, and in products with it the small errors of their codes would decide.
        """
        distances_MK, patches_MK = self._index.search(
            query_MD, take, params=parameters(probes, allowed_P)
        )
        scores_MK = (1 - distances_MK / 2).astype(np.float32)
        # Fewer than `take` lie in the lists looked into; a damaged index names any number.
        there_MK = (patches_MK >= 0) & (patches_MK < len(self))
        others_M = there_MK.all(axis=1)
        floor = float(scores_MK[others_M, -1].max(initial=-np.inf))
        patches, scores = patches_MK[there_MK], scores_MK[there_MK]
        order = np.lexsort((patches, -scores))
        _, first = np.unique(patches[order], return_index=True)  # its best score comes first
        order = order[np.sort(first)]
        return patches[order], scores[order], floor

    @cached_property
    def _lists(self) -> int:
        """Lists of the index; 0 where the code has none."""
        inverted = faiss.try_extract_index_ivf(self._index)
        return 0 if inverted is None else int(inverted.nlist)

    def _probes(self, total: int) -> int:
        """Lists to look into: where few patches may be found, as many more; 0 without lists."""
        return min(self._lists, -(-(self.info.probes or 0) * self.info.count // total))


def parameters(probes: int, allowed_P: np.ndarray | None = None) -> faiss.SearchParameters:
    """What FAISS is told of a search: lists to look into (0 without lists), what may be found."""
    chosen: dict[str, Any] = {}
    if allowed_P is not None:
        bits = np.packbits(allowed_P, bitorder="little")
        chosen["sel"] = faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg, arg-type]
    if probes:
        chosen["nprobe"] = probes
    return faiss.SearchParametersIVF(**chosen) if probes else faiss.SearchParameters(**chosen)


def rank_within(groups: np.ndarray) -> np.ndarray:
    """How many of the same group come before each, int64 [n]: 0 for the first of each."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(groups) else order
    lengths = np.diff(np.r_[begins, len(groups)])
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - np.repeat(begins, lengths)
    return ranks
