"""Building the patches of a gallery: one pass over its images, then a folder that appears whole.

    plan = plan_patches(gallery, model)     # plan.sentence says what it takes on the disk
    patches = build_patches(gallery, model)

Images are seen in a random order that is always the same, so the first of them are a fair sample:
the code is fitted to their patches, and then patches are coded as they come. In memory are that
sample (up to 131,072 patches), one batch, and the index itself. A build that was killed begins
again: nothing of it stays.

Which code: a number in 8 bits (`SQ8`) up to a million patches, and beyond that products of small
code books in lists (`IVF,PQ`; Jegou, Douze and Schmid, "Product quantization for nearest neighbor
search", 2011), a quarter of it. What a code costs is measured in every build, on patches whose true
neighbors were found on the way.

Shapes: P patches, Q judged ones, D dimensions, K neighbors, h x w the patch grid.
"""

import math
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import faiss
import numpy as np

from dino_core.errors import UserError, at_least
from dino_core.files import remove_leftovers, whole_folder
from dino_core.gallery.extraction import Embedder, batches, default_workers
from dino_core.gallery.features import model_feature_hash, prepared, preprocessing
from dino_core.gallery.jobs import reported
from dino_core.gallery.opened import Gallery
from dino_core.gallery.patches import (
    INDEX,
    KIND,
    PATCHES,
    TABLE,
    Patches,
    PatchInfo,
    belongs_to,
    parameters,
    patch_hash,
    patch_tokens,
)
from dino_core.gallery.progress import Progress, silent
from dino_core.models import Model
from dino_core.rng import generator, permutation

PER_IMAGE = 49
PLAIN_AT_MOST = 1_000_000  # patches that are compared one by one
LISTS_AT_MOST = 4096
FITTED_ON = 131_072  # patches at most
FITTED_ON_PER_LIST = 64
CODE_WORDS = 256  # of each of a product quantizer's books
ROUNDS = 10  # of k-means
JUDGED = 256  # patches whose true neighbors are known
NEIGHBORS = 10
FEWEST_PROBES, MOST_PROBES = 4, 64
WORTH = 0.005  # recall that looking into twice as many lists has to bring

MESSAGE = "Computing patches"
CODE = re.compile(r"Flat|SQ(8|6|4|fp16)|IVF(?P<lists>\d+),(Flat|SQ(8|6|4|fp16)|PQ(?P<books>\d+))")


@dataclass(frozen=True)
class PatchPlan:
    """What a build will hold, known before any image was read."""

    code: str
    per_image: int | None  # None: all
    grid: tuple[int, int]
    dim: int
    count: int  # patches, if every image can be read
    bytes_each: int  # on the disk, a patch

    @property
    def cells(self) -> int:
        """Patches of an image."""
        all_of_it = self.grid[0] * self.grid[1]
        return all_of_it if self.per_image is None else min(self.per_image, all_of_it)

    @property
    def bytes(self) -> int:
        return self.count * self.bytes_each

    @property
    def sentence(self) -> str:
        """What it takes on the disk."""
        return (
            f"{self.count:,} patches, {self.cells} an image, take about {_size(self.bytes)} on the "
            f"disk ({self.bytes_each} bytes each, coded {self.code})"
        )


def plan_patches(
    gallery: Gallery | str | Path,
    model: Model,
    *,
    per_image: int | None = PER_IMAGE,
    code: str = "auto",
) -> PatchPlan:
    """What `build_patches` will take. Raises `UserError` as it does."""
    at_least(1, patches=per_image)
    gallery = gallery if isinstance(gallery, Gallery) else Gallery.open(gallery)
    gallery.refuse_others(model.spec, model_feature_hash(model, gallery.info.kind))
    side, dim = model.info.image_size, model.backbone.embed_dim
    plan = PatchPlan(code, per_image, model.backbone.grid(side, side), dim, 0, 0)
    images = int((~gallery.images["gone"].to_numpy(bool)).sum())
    plan = replace(plan, count=images * plan.cells)
    plan = replace(plan, code=_usual_code(plan.count, dim) if code == "auto" else code)
    index = _empty_index(plan)
    inverted = faiss.try_extract_index_ivf(index)
    coded = index.sa_code_size() if inverted is None else inverted.code_size + 8  # and its number
    return replace(plan, bytes_each=coded + _table_row(plan.grid).itemsize)


def build_patches(
    gallery: Gallery | str | Path,
    model: Model,
    *,
    per_image: int | None = PER_IMAGE,
    code: str = "auto",
    batch_size: int = 64,
    workers: int | None = None,
    progress: Progress | None = None,
    redo: bool = False,
) -> Patches:
    """Hold patches of the gallery's images in its folder `patches/`, or open those that are there.

    per_image  patches of each image, chosen at random, always the same; None is all of them
    code       how one is stored: "auto", or a name that FAISS knows: "Flat", "SQfp16", "SQ8",
               "SQ6", "SQ4", or "IVF" and a number of lists before one of these or "PQ" and a number
               of bytes, e.g. "IVF1024,PQ48"
    redo       build again what is there with other settings

    Images that are gone, changed since the gallery was built, or cannot be read have no patches;
    `info.skipped` counts them. What a gallery held before it was built again is replaced. Raises
    `UserError` for another model than the gallery's, a code that is unknown or does not fit, other
    settings than those there (without `redo`), a disk too full, and where no image can be read.
    """
    at_least(1, batch_size=batch_size)
    at_least(0, workers=workers)
    path = gallery.path if isinstance(gallery, Gallery) else Path(gallery)
    Gallery.open(path)  # where there is none, no folder is made
    with reported(path, progress) as say:
        return build_patches_here(
            path, model, say, per_image=per_image, code=code, batch_size=batch_size,
            workers=workers, redo=redo,
        )  # fmt: skip


def build_patches_here(
    path: Path,
    model: Model,
    say: Progress,
    *,
    per_image: int | None = PER_IMAGE,
    code: str = "auto",
    batch_size: int = 64,
    workers: int | None = None,
    redo: bool = False,
) -> Patches:
    """`build_patches`, by whoever already holds the folder (see `jobs.reported`)."""
    gallery = Gallery.open(path)
    plan = plan_patches(gallery, model, per_image=per_image, code=code)
    remove_leftovers(path)
    there = _there(gallery, redo)
    if there is not None and _same(there.info, plan):
        return there
    if there is not None and not redo:
        raise UserError(
            f"{there.path}: holds {_amount(there.info.per_image)} patches of each image, coded "
            f"{there.info.code}, not {_amount(per_image)} coded {plan.code}; ask for those, or "
            "give --redo to build them again"
        )
    _require_room(path, plan)
    seen = _Seen(gallery, model, plan, batch_size, workers, say)
    index, judge = _coded(seen, plan)
    _write(gallery, model, plan, seen, index, judge)
    opened = Patches.open(gallery)
    assert opened is not None
    return opened


def _there(gallery: Gallery, redo: bool) -> Patches | None:
    """The patches that are there; with `redo` damaged ones are as good as none."""
    try:
        return Patches.open(gallery)
    except UserError:
        if redo:
            return None
        raise


@dataclass
class _Seen:
    """The patches of a gallery's images, and where they lie; filled while they are iterated."""

    gallery: Gallery
    model: Model
    plan: PatchPlan
    batch_size: int
    workers: int | None
    say: Progress = silent
    where: list[np.ndarray] = field(default_factory=list)  # parts of the table
    images: int = 0
    skipped: dict[str, int] = field(
        default_factory=lambda: {"gone": 0, "changed": 0, "unreadable": 0}
    )

    def __iter__(self) -> Generator[np.ndarray, None, None]:
        """Features of the chosen patches, batch by batch: float32 [P, D], L2-normalized."""
        rows, places = self._to_see()
        row_at = dict(zip(places, rows, strict=True))
        model, done = self.model, 0
        content_hashes = self.gallery.images["content_hash"]
        total = self.plan.grid[0] * self.plan.grid[1]
        self.say(0, len(places), MESSAGE)
        for batch in batches(
            self.gallery.source, places, partial(prepared, info=model.info),
            Embedder(model, patch_tokens), dim=self.plan.dim, batch_size=self.batch_size,
            workers=default_workers(model.device) if self.workers is None else self.workers,
            fingerprints=True, pin=model.device.type == "cuda",
        ):  # fmt: skip
            of_images = iter(batch.features_BD.reshape(-1, total, self.plan.dim))
            chosen = [np.empty((0, self.plan.dim), np.float32)]
            for facts in batch.facts:
                if "bad" in facts:
                    self.skipped["unreadable"] += 1
                    continue
                features_PD, row = next(of_images), row_at[facts["index"]]
                if facts["fingerprint"] != content_hashes[row]:
                    self.skipped["changed"] += 1
                    continue
                cells_P = sampled_cells(self.gallery.images.at[row, "id"], self.plan)
                chosen.append(features_PD[cells_P])
                self._note(row, cells_P)
            yield np.concatenate(chosen)
            done += len(batch.facts)
            self.say(done, len(places), MESSAGE)

    def table(self) -> np.ndarray:
        return np.concatenate([np.empty(0, _table_row(self.plan.grid)), *self.where])

    def _to_see(self) -> tuple[list[int], list[int]]:
        """Rows of the gallery and their places in its source, in the order to see them."""
        images = self.gallery.images
        places = images["id"].map(self.gallery.index_in_source)
        there_N = (places.notna() & ~images["gone"].astype(bool)).to_numpy()
        self.skipped["gone"] = int((~there_N).sum())
        order = permutation(len(images), "order of patches")
        rows = order[there_N[order]]
        return rows.tolist(), places.to_numpy()[rows].astype(np.int64).tolist()

    def _note(self, row: int, cells_P: np.ndarray) -> None:
        part = np.empty(len(cells_P), _table_row(self.plan.grid))
        part["image"] = row
        part["row"], part["column"] = np.divmod(cells_P, self.plan.grid[1])
        self.where.append(part)
        self.images += 1


def sampled_cells(id: str, plan: PatchPlan) -> np.ndarray:
    """Which patches of an image are held, int64, ascending: by its id, so always the same."""
    total = plan.grid[0] * plan.grid[1]
    if plan.cells == total:
        return np.arange(total)
    return np.sort(generator("patches", id).permutation(total)[: plan.cells])


class _Judge:
    """Some patches' true nearest others among all that pass by."""

    def __init__(self, sample_PD: np.ndarray) -> None:
        self.patches_Q = np.sort(permutation(len(sample_PD), "judged patches")[:JUDGED])
        self.query_QD = sample_PD[self.patches_Q]
        self.scores_QK = np.empty((len(self.query_QD), 0), np.float32)
        self.nearest_QK = np.empty((len(self.query_QD), 0), np.int64)
        self.seen = 0

    def see(self, features_PD: np.ndarray) -> None:
        """The next patches in the order of the index."""
        k = min(NEIGHBORS + 1, len(features_PD))
        if k:
            found = faiss.knn(self.query_QD, features_PD, k, faiss.METRIC_INNER_PRODUCT)
            scores = np.concatenate([self.scores_QK, found[0]], axis=1)
            nearest = np.concatenate([self.nearest_QK, found[1] + self.seen], axis=1)
            best = np.argsort(-scores, axis=1, kind="stable")[:, : NEIGHBORS + 1]
            self.scores_QK = np.take_along_axis(scores, best, axis=1)
            self.nearest_QK = np.take_along_axis(nearest, best, axis=1)
        self.seen += len(features_PD)

    @property
    def neighbors(self) -> int:
        """How many others each has."""
        return min(NEIGHBORS, self.seen - 1)

    def recall(self, index: faiss.Index, probes: int) -> float:
        """The share of true nearest others that the index finds, 0 to 1."""
        found_QK = index.search(self.query_QD, self.neighbors + 1, params=parameters(probes))[1]
        pairs = zip(self.patches_Q, self.nearest_QK, found_QK, strict=True)
        right = sum(
            len(np.intersect1d(_others(true, own)[: self.neighbors], _others(found, own)))
            for own, true, found in pairs
        )
        return right / max(1, len(self.patches_Q) * self.neighbors)


def _others(patches_K: np.ndarray, own: int) -> np.ndarray:
    return patches_K[patches_K != own]


def _coded(seen: _Seen, plan: PatchPlan) -> tuple[faiss.Index, _Judge]:
    """All patches in an index, and what judges it."""
    index, coming = _empty_index(plan), iter(seen)
    sample_PD = _first(coming, _fitted_on(plan), plan.dim)
    if not len(sample_PD):
        raise UserError(
            f"{seen.gallery.path}: none of its images can be read where they were at building, so "
            "there are no patches of them; bring them back, or build the gallery again"
        )
    try:
        index.train(sample_PD)
    except RuntimeError:
        raise UserError(
            f"code {plan.code}: cannot be fitted to the {len(sample_PD):,} patches that could be "
            "read; choose SQ8"
        ) from None
    judge = _Judge(sample_PD)
    for features_PD in _again(sample_PD, coming):
        index.add(features_PD)
        judge.see(features_PD)
    return index, judge


def _first(coming: Iterator[np.ndarray], count: int, dim: int) -> np.ndarray:
    """The first `count` rows or a few more, float32 [P, D]; fewer where there are no more."""
    parts, there = [np.empty((0, dim), np.float32)], 0
    while there < count and (part := next(coming, None)) is not None:
        parts.append(part)
        there += len(part)
    return np.concatenate(parts)


def _again(sample_PD: np.ndarray, coming: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield sample_PD
    yield from coming


def _write(
    gallery: Gallery, model: Model, plan: PatchPlan, seen: _Seen, index: faiss.Index, judge: _Judge
) -> None:
    """`patches/`, in place of what was there."""
    probes, recall = _probes(index, judge)
    table = seen.table()
    info = PatchInfo(
        model=model.spec,
        model_hash=model.hash,
        kind=KIND,
        feature_hash=patch_hash(model),
        preprocessing=preprocessing(model),
        gallery=belongs_to(gallery.info),
        grid=plan.grid,
        dim=plan.dim,
        code=plan.code,
        per_image=plan.per_image,
        count=len(table),
        images=seen.images,
        skipped=seen.skipped,
        probes=probes or None,
        recall=round(recall, 4),
        judged=len(judge.patches_Q),
        neighbors=judge.neighbors,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    folder = gallery.path / PATCHES
    with whole_folder(folder) as aside:
        try:
            faiss.write_index(index, str(aside / INDEX))
        except RuntimeError as error:
            raise UserError(f"{folder}: cannot be written ({error}); make room") from None
        with open(aside / TABLE, "wb") as file:
            np.savez(file, image=table["image"], row=table["row"], column=table["column"])
        size = sum(path.stat().st_size for path in aside.iterdir())
        replace(info, bytes=size).write(aside)
        _put_away(folder)


def _put_away(folder: Path) -> None:
    """Make place for a new folder; killed in between, there is neither, never half of one."""
    if folder.exists():
        old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{PATCHES}.", suffix=".tmp"))
        os.replace(folder, old)
        shutil.rmtree(old, ignore_errors=True)


def _probes(index: faiss.Index, judge: _Judge) -> tuple[int, float]:
    """Lists that a search should look into (0 without lists), and the recall of that."""
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is None:
        return 0, judge.recall(index, 0)
    most = min(MOST_PROBES, inverted.nlist)
    probes = min(FEWEST_PROBES, most)
    recall = judge.recall(index, probes)
    while probes < most:
        more = min(2 * probes, most)
        better = judge.recall(index, more)
        if better < recall + WORTH:
            break
        probes, recall = more, better
    return probes, recall


def _usual_code(count: int, dim: int) -> str:
    """The code for so many patches."""
    if count <= PLAIN_AT_MOST:
        return "SQ8"
    books = next(books for books in range(max(1, dim // 4), 0, -1) if dim % books == 0)
    return f"IVF{min(LISTS_AT_MOST, math.isqrt(count))},PQ{books}"


def _empty_index(plan: PatchPlan) -> faiss.Index:
    """An index for the plan's code. Raises `UserError` for one that is unknown or does not fit."""
    match = CODE.fullmatch(plan.code)
    if match is None:
        raise UserError(
            f"code {plan.code!r} is unknown; use auto, Flat, SQfp16, SQ8, SQ6, SQ4, or lists of "
            "these or of products, e.g. IVF256,SQ8 or IVF1024,PQ48"
        )
    lists, books = (int(match[name] or 0) for name in ("lists", "books"))
    if match["books"] and (not books or plan.dim % books):
        raise UserError(f"code {plan.code}: {plan.dim} numbers cannot be parted into {books}")
    fewest = max(lists, CODE_WORDS if books else 1)
    if plan.count < fewest or (match["lists"] and not lists):
        raise UserError(
            f"code {plan.code}: needs at least {fewest:,} patches and one list, and there are "
            f"{plan.count:,} patches; choose SQ8"
        )
    index = faiss.index_factory(plan.dim, plan.code, faiss.METRIC_L2)
    for clustering in (getattr(index, "cp", None), getattr(getattr(index, "pq", None), "cp", None)):
        if clustering is not None:
            clustering.niter, clustering.min_points_per_centroid = ROUNDS, 1
            clustering.max_points_per_centroid = FITTED_ON_PER_LIST
    if isinstance(index, faiss.IndexIVFPQ):
        # It puts code words in an order that Hamming distances ask for, and takes 99 % of the time.
        index.do_polysemous_training = False  # type: ignore[attr-defined]  # not in its stub
    return index


def _fitted_on(plan: PatchPlan) -> int:
    """How many patches a code is fitted to."""
    inverted = faiss.try_extract_index_ivf(_empty_index(plan))
    if inverted is None:
        return FITTED_ON
    return min(FITTED_ON, FITTED_ON_PER_LIST * max(inverted.nlist, CODE_WORDS))


def _table_row(grid: tuple[int, int]) -> np.dtype:
    """A row of `patches.npz`: an image, and a place in the grid in as few bytes as hold it."""
    small = [np.min_scalar_type(side - 1) for side in grid]
    return np.dtype([("image", np.int32), ("row", small[0]), ("column", small[1])])


def _same(there: PatchInfo, plan: PatchPlan) -> bool:
    return (there.per_image, there.code, there.grid) == (plan.per_image, plan.code, plan.grid)


def _amount(per_image: int | None) -> str:
    return "all" if per_image is None else str(per_image)


def _require_room(folder: Path, plan: PatchPlan) -> None:
    free = shutil.disk_usage(folder).free
    if free < plan.bytes:
        raise UserError(
            f"{folder}: {plan.sentence}, and {_size(free)} are free; make room, or ask for fewer"
        )


def _size(count: int) -> str:
    """Bytes as people say them: `19 MB`."""
    size, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.3g} {units[0]}" if size < 1000 else f"{size:,.0f} {units[0]}"
